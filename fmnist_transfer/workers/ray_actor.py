"""A Ray actor that runs one task at a time and answers calls meanwhile."""

import queue
from typing import Any

import ray

from fmnist_transfer.workers.task import attempt


class RayActor:
    """Runs tasks on its main thread. The threads of group `mail` return messages and receive stop and cancel calls."""

    def __init__(self) -> None:
        from fmnist_transfer.training.device import prepare_process

        prepare_process()
        self._messages: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        self._stopped = False
        self._cancelled = 0  # number of the task that was cancelled last
        self._job: tuple[Any, Any] | None = None
        self._reference: Any = None

    def node(self) -> str:
        """Id of the actor's node."""
        return str(ray.get_runtime_context().get_node_id())

    def begin(self, job: list[Any]) -> None:
        """Prepare for a job; `job` holds one reference to (function, shared) in the object store."""
        self._job, self._reference = None, job[0]

    def work(self, number: int, task: Any) -> None:
        """Run the task; its start, reports and outcome become messages. `number` identifies the task for `cancel`."""

        def should_stop() -> bool:
            return self._stopped or self._cancelled == number

        def report(news: Any) -> None:
            self._messages.put(("report", news))

        def run(_: Any, task: Any, *more: Any) -> Any:
            self._job = self._job or ray.get(self._reference)  # in `attempt`: its import may fail here
            function, shared = self._job
            return function(shared, task, *more)

        self._messages.put(("begun", None))
        self._messages.put(("outcome", attempt(run, None, task, report, should_stop)))

    @ray.method(concurrency_group="mail")
    def message(self) -> tuple[str, Any]:
        """Wait for the next message and return it."""
        return self._messages.get()

    @ray.method(concurrency_group="mail")
    def stop(self) -> None:
        self._stopped = True

    @ray.method(concurrency_group="mail")
    def cancel(self, number: int) -> None:
        self._cancelled = number
