"""Run many independent tasks: in this process, on worker processes of this machine, or on a Ray cluster.

A worker imports torch once, and receives the shared data of a `run` once. If a worker dies, only its task is lost. The
task is retried once on another worker; a death before the task began does not count. Engines must not retry.
"""

import functools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import KW_ONLY, dataclass, field
from typing import TYPE_CHECKING, Any, cast

from fmnist_transfer.errors import UsageError
from fmnist_transfer.workers.stop import StopSignal
from fmnist_transfer.workers.task import Engine, Job, Outcome, Pool, Task, TaskFunction, Worker, attempt

if TYPE_CHECKING:
    from fmnist_transfer.data.examples import Half

MOST_UNUSED = 3  # dead workers in a row that never began a task, after which `run` gives up


@dataclass(eq=False)
class Workers:
    """Processes that run tasks until the `with` block ends. A single local worker is this process, unless `apart`."""

    n: int  # of workers; on a cluster at most
    stop: StopSignal
    _: KW_ONLY
    apart: bool = False
    prepare: bool = True  # prepare local processes for training (`device.prepare_process`)
    engine: Engine = "local"
    gpus_per_task: float = 0.0
    bf16_on: str | None = None  # kind of device that must have bf16 on a cluster
    _pool: Pool | None = field(default=None, init=False)
    _busy: list[Worker] = field(default_factory=list, init=False)
    _is_cancelled: bool = field(default=False, init=False)  # the task that runs in this process

    def __enter__(self) -> "Workers":
        if self.engine == "ray":
            from fmnist_transfer.workers.ray_pool import RayPool

            self._pool = RayPool(self.n, self.gpus_per_task, self.bf16_on)
        elif self.apart or self.n > 1:
            from fmnist_transfer.workers.local import ProcessPool

            self._pool = ProcessPool(self.n, self.prepare)
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool:
            self._pool.close()

    def share(self, half: "Half") -> "Half":
        """Return `half`, moved to shared memory for local worker processes. Raises UsageError if that is too small."""
        if self._pool and self.engine == "local":
            try:
                half.share_memory()
            except RuntimeError as error:
                remedy = "A container gets more by docker run --shm-size=1g; on the CPU --workers 1 needs none"
                raise UsageError(f"workers need shared memory: {error}. {remedy}") from error
        return half

    def run(
        self,
        function: TaskFunction,
        shared: Any,
        tasks: Iterable[Task],
        *,
        on_report: Callable[[Task, Any], None] = lambda task, report: None,
        on_lost: Callable[[Task, str], None] = lambda task, reason: None,
    ) -> Iterator[Outcome[Task, Any]]:
        """Yield the outcome of each task as it finishes. After a signal no task starts; running ones are interrupted.

        A worker calls function(shared, task, report, should_stop). The next task is taken when a worker is free, so it
        may depend on earlier outcomes. In this process, `on_report` gets a task and what it passes to `report` (and may
        `cancel` it), and `on_lost` why its worker died if it is to be retried.
        """
        job, todo = Job(function, shared, on_report, on_lost), iter(tasks)
        return self._run_on(self._pool, job, todo) if self._pool else self._run_here(job, todo)

    def cancel(self, task: Any) -> None:
        """Stop this running task only; its outcome is `interrupted` unless it ended first."""
        self._is_cancelled = True
        for worker in self._busy:
            if worker.task == task:
                worker.is_cancelled = True
                worker.cancel()

    def _run_here(self, job: Job, tasks: Iterator[Any]) -> Iterator[Outcome[Any, Any]]:
        from fmnist_transfer.training.device import prepare_process

        prepare_process()
        while not self.stop.is_set() and (task := next(tasks, None)) is not None:
            self._is_cancelled = False
            report = functools.partial(job.on_report, task)
            yield attempt(job.function, job.shared, task, report, lambda: self._is_cancelled or self.stop.is_set())

    def _run_on(self, pool: Pool, job: Job, tasks: Iterator[Any]) -> Iterator[Outcome[Any, Any]]:
        has_more, is_stopping = True, False
        while self._busy or job.lost or has_more:
            if self.stop.is_set():
                if not is_stopping:
                    pool.stop_tasks()
                for task in job.lost:
                    yield Outcome(task, "interrupted", reason="its worker died")
                job.lost, has_more, is_stopping = [], False, True
            elif (job.lost or has_more) and (idle := pool.idle()):
                if (task := job.lost.pop() if job.lost else next(tasks, None)) is None:
                    has_more = False
                else:
                    worker = idle[0]
                    worker.task, worker.is_at_work, worker.is_cancelled = task, False, False
                    worker.send(job, task)
                    self._busy.append(worker)
                continue  # fill every idle worker before waiting
            for worker in pool.wait(self._busy):
                if outcome := self._receive(pool, worker, job):
                    yield outcome

    def _receive(self, pool: Pool, worker: Worker, job: Job) -> Outcome[Any, Any] | None:
        """Handle the worker's message. Returns the outcome of its task once the task has ended."""
        kind, content = worker.message()
        if kind in ("begun", "report"):
            worker.is_at_work = worker.has_worked = job.has_begun = True
            job.n_unused = 0
            if kind == "report":
                job.on_report(worker.task, content)
            return None
        self._busy.remove(worker)
        if kind == "died":
            pool.workers.remove(worker)
            return self._after_death(worker, job, f"the worker process died ({content})")
        worker.task = None
        return cast(Outcome[Any, Any], content)

    def _after_death(self, worker: Worker, job: Job, reason: str) -> Outcome[Any, Any] | None:
        """Return the outcome of the dead worker's task; None if the task is to be retried."""
        task = worker.task
        if worker.is_cancelled or self.stop.is_set():  # it was to end in any case
            return Outcome(task, "interrupted", reason=reason)
        job.deaths[task, worker.is_at_work] += 1
        if job.deaths[task, True] == 2:
            return Outcome(task, "failed", reason=f"{reason}, twice")
        if job.has_begun and job.deaths[task, False] >= MOST_UNUSED:  # it cannot be unpickled, for example
            return Outcome(task, "failed", reason=f"{reason}, {MOST_UNUSED} times before the task began")
        job.n_unused += not worker.has_worked
        if job.n_unused >= MOST_UNUSED:
            remedy = "a program needs `if __name__ == '__main__':` in a file. On the CPU --workers 1 needs no process"
            problem = f"{MOST_UNUSED} workers in a row ended before their first task: {reason}"
            raise UsageError(f"{problem}. Their own lines above say why; {remedy}")
        job.on_lost(task, reason)
        job.lost.append(task)
        return None


def available_cores() -> int:
    """Return the number of cores this process may use, within its CPU affinity and control-group limits."""
    import joblib

    return int(joblib.cpu_count())
