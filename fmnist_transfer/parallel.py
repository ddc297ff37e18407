"""Run many independent tasks: in this process, on worker processes of this machine, or on a Ray cluster.

    with StopSignal() as stop, Workers(2, stop) as workers:
        for outcome in workers.run(square, shared, numbers, on_report=show):
            ...

A worker lives as long as the `with` block, imports torch once, and receives what the tasks of a `run` share once. A
worker that dies takes only its own task with it, which is tried once more on another, by us: no engine retries itself.
"""

import functools
import importlib.util
import math
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Literal, Protocol, TypeVar

from fmnist_transfer.errors import Interrupted, StoreError, UsageError
from fmnist_transfer.stopping import StopSignal

if TYPE_CHECKING:
    from fmnist_transfer.recipe import Precision

Task = TypeVar("Task")
Result = TypeVar("Result")
Report = Callable[[Any], None]
# (shared, task, report, should_stop) -> result; must be importable by name in a worker.
TaskFunction = Callable[[Any, Any, Report, Callable[[], bool]], Any]
Engine = Literal["local", "ray"]

POLL_SECONDS = 0.25
MOST_WORKERS = 10_000


@dataclass(frozen=True)
class Outcome(Generic[Task, Result]):
    """How a task, or one attempt at it, ended.

    `result` is there if and only if `status` is `done`; else `reason` says why. `lost`: its worker died, and it is
    tried again, unless the caller sees to that.
    """

    task: Task
    status: Literal["done", "failed", "interrupted", "lost"]
    result: Result | None = None
    reason: str = ""
    details: str = ""
    """Traceback of an unexpected failure."""
    outage: StoreError | None = None
    """Of an interrupted task that lost its store."""


@dataclass(frozen=True)
class Job:
    """What all tasks of a `Workers.run` share."""

    function: TaskFunction
    shared: Any
    on_report: Callable[[Any, Any], None]
    on_start: Callable[[Any], None]
    retry_lost: bool


class Worker(Protocol):
    """A process that runs one task at a time; `task` is None while it is idle."""

    task: Any

    def hand_out(self, job: Job, task: Any, *, again: bool) -> None:
        """Start the task; `again`: another worker died of it."""

    def receive(self, job: Job) -> Outcome[Any, Any] | None:
        """The outcome of the task, or None after a mere report. A dead worker keeps its task."""


class Pool(Protocol):
    """The workers of an engine."""

    def idle(self) -> Sequence[Worker]:
        """Those that a task can be handed to; none, perhaps, while they start."""

    def wait(self, busy: Sequence[Worker]) -> Iterable[Worker]:
        """Those of the busy ones that have something to `receive`, after a while at the latest."""

    def remove(self, worker: Worker) -> None:
        """It died."""

    def stop_tasks(self) -> None:
        """Tell running tasks that they are to stop."""

    def close(self) -> None:
        """End all of them at once."""


class Workers:
    """`n` processes that run tasks until the `with` block ends. One worker is this process itself, unless `apart`.

    Args:
        n: at most, on a cluster: as many as it has room for.
        apart: run tasks in other processes, even one at a time.
        prepare: whether those are prepared for training (`training.prepare_process`) or left as torch comes.
        engine: `local`, or `ray` for the actors of a Ray cluster.
        gpus_per_task: share of a GPU that an actor takes.
    """

    def __init__(
        self,
        n: int,
        stop: StopSignal,
        *,
        apart: bool = False,
        prepare: bool = True,
        engine: Engine = "local",
        gpus_per_task: float = 0.0,
    ):
        self.n, self.stop, self._prepare, self._gpus_per_task = n, stop, prepare, gpus_per_task
        self.engine = engine
        self._apart = apart or n > 1 or engine != "local"
        self._pool: Pool | None = None

    def __enter__(self) -> "Workers":
        if self.engine == "ray":
            from fmnist_transfer.cluster import RayPool

            self._pool = RayPool(self.n, self._gpus_per_task)
        elif self._apart:
            from fmnist_transfer.processes import ProcessPool

            self._pool = ProcessPool(self.n, self.stop, self._prepare)
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool:
            self._pool.close()

    def run(
        self,
        function: TaskFunction,
        shared: Any,
        tasks: Iterable[Task],
        *,
        on_report: Callable[[Task, Any], None] = lambda task, report: None,
        on_start: Callable[[Task], None] = lambda task: None,
        retry_lost: bool = True,
    ) -> Iterator[Outcome[Task, Any]]:
        """Yield the outcome of each task as it finishes.

        Args:
            function: called as function(shared, task, report, should_stop).
            tasks: taken one at a time, when a worker is free; so it may depend on earlier outcomes.
            on_report: receives what a running task passes to `report`, in this process.
            on_start: called in this process when a task is handed out; after a `lost` outcome, once more.
            retry_lost: whether a task whose worker died is tried once more, on another.

        After a signal no further task is started; the running ones end as `interrupted`.
        """
        job = Job(function, shared, on_report, on_start, retry_lost)
        if self._pool:
            yield from self._run_on(self._pool, job, iter(tasks))
        else:
            yield from self._run_here(job, iter(tasks))

    def _run_here(self, job: Job, tasks: Iterator[Any]) -> Iterator[Outcome[Any, Any]]:
        from fmnist_transfer.training import prepare_process

        prepare_process()
        should_stop = self.stop.is_set
        while not should_stop() and (task := next(tasks, None)) is not None:
            job.on_start(task)
            yield attempt(job.function, job.shared, task, functools.partial(job.on_report, task), should_stop)

    def _run_on(self, pool: Pool, job: Job, tasks: Iterator[Any]) -> Iterator[Outcome[Any, Any]]:
        busy: list[Worker] = []
        lost: list[Any] = []
        there_are_more = True
        while True:
            for worker in pool.idle():
                if self.stop.is_set():
                    break
                again = bool(lost)
                if (task := lost.pop() if lost else next(tasks, None)) is None:
                    there_are_more = False
                    break
                job.on_start(task)
                worker.hand_out(job, task, again=again)
                busy.append(worker)
            if self.stop.is_set():
                pool.stop_tasks()
            if not busy and (self.stop.is_set() or not (lost or there_are_more)):
                return
            for worker in pool.wait(busy):
                if (outcome := worker.receive(job)) is None:
                    continue
                busy.remove(worker)
                if worker.task is not None:  # it died
                    pool.remove(worker)
                    if outcome.status == "lost" and job.retry_lost:
                        lost.append(outcome.task)
                yield outcome


def attempt(
    function: TaskFunction, shared: Any, task: Any, report: Report, should_stop: Callable[[], bool]
) -> Outcome[Any, Any]:
    """Run the task in this process."""
    try:
        return Outcome(task, "done", function(shared, task, report, should_stop))
    except Interrupted as error:
        return Outcome(task, "interrupted", reason=str(error))
    except StoreError as error:  # without its store a task has not failed: it is still to be done
        return Outcome(task, "interrupted", reason=str(error), outage=error)
    except Exception as error:  # one task's failure is its own; the caller sees the reason
        outcome = Outcome[Any, Any](
            task, "failed", reason=f"{type(error).__name__}: {error}", details=traceback.format_exc()
        )
    from fmnist_transfer.training import free_memory

    free_memory()  # now that the error's frames are gone
    return outcome


def died(task: Any, how: str, *, again: bool) -> Outcome[Any, Any]:
    """The outcome of a task whose worker died; `again`: it is the second one."""
    reason = f"the worker process died ({how})"
    return Outcome(task, "failed", reason=f"{reason}, twice") if again else Outcome(task, "lost", reason=reason)


def available_cores() -> int:
    """Cores that this process may use: affinity and the limits of control groups count."""
    import joblib

    return int(joblib.cpu_count())


def parse_workers(text: str) -> int | None:
    """A number, or None for `auto`. Raises UsageError."""
    if text == "auto":
        return None
    if not text.isdecimal() or not 1 <= int(text) <= MOST_WORKERS:
        raise UsageError(f"--workers {text}: must be auto or a number from 1 to {MOST_WORKERS}")
    return int(text)


def count_workers(text: str, device: str, n_tasks: int, engine: Engine = "local") -> int:
    """Workers for `--workers`, no more than there are tasks.

    `auto`: one per core, or one for an accelerator; on a cluster one per task, of which it starts what it has room for.
    """
    there = n_tasks if engine == "ray" else available_cores() if device == "cpu" else 1
    return max(1, min(parse_workers(text) or there, n_tasks))


class EngineSettings(Protocol):
    """What the settings of a command that trains hold of its engine."""

    @property
    def workers(self) -> str: ...
    @property
    def engine(self) -> Engine: ...
    @property
    def gpus_per_task(self) -> float: ...
    @property
    def dry_run(self) -> bool: ...


def workers_for(settings: EngineSettings, device: str, n_tasks: int, stop: StopSignal) -> Workers:
    """As the command's flags say; a dry run asks no cluster."""
    return Workers(
        count_workers(settings.workers, device, n_tasks, settings.engine),
        stop,
        apart=device != "cpu",
        engine="local" if settings.dry_run else settings.engine,
        gpus_per_task=settings.gpus_per_task,
    )


def check_engine(engine: Engine, gpus_per_task: float) -> None:
    """Raise UsageError for an engine that is not installed, or for a share that cannot be."""
    if engine == "ray" and importlib.util.find_spec("ray") is None:
        raise UsageError("--engine ray needs: pip install 'fmnist-transfer[ray]'")
    if gpus_per_task and engine != "ray":
        raise UsageError(
            f"--gpus-per-task {gpus_per_task:g}: only with --engine ray; --workers share this machine's GPU"
        )
    if not (0 <= gpus_per_task <= 1 or (1 < gpus_per_task < math.inf and gpus_per_task == int(gpus_per_task))):
        raise UsageError(f"--gpus-per-task {gpus_per_task:g}: must be from 0 to 1, or a whole number")


def device_of_tasks(device: str, precision: "Precision", engine: Engine, gpus_per_task: float) -> str:
    """The device that tasks train on: this machine's, or what the flags say where this one cannot see.

    Raises UsageError for a device that is not there, or that does not know the precision.
    """
    if engine == "local":
        from fmnist_transfer.training import choose_device

        return str(choose_device(device, precision))
    if device.startswith("cuda") and not gpus_per_task:
        raise UsageError(f"--device {device} --engine ray: give --gpus-per-task, by which Ray shares the GPUs out")
    kind = device if device != "auto" else "cuda" if gpus_per_task else "cpu"
    if precision == "tf32" and kind != "cuda":
        raise UsageError(f"--precision tf32: {kind} has none; use float32 or bf16, or give --gpus-per-task")
    return kind
