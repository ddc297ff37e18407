"""What runs on a node of a Ray cluster: an actor that works on one task at a time and answers while it does."""

import queue
from typing import Any

import ray

from fmnist_transfer.workers.task import attempt


class RayActor:
    """Its own thread works; those of group `mail` hand out its messages and take the order to stop."""

    def __init__(self) -> None:
        from fmnist_transfer.training.device import prepare_process

        prepare_process()
        self._messages: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        self._stopped = False
        self._cancelled = 0  # number of the last task that is to stop
        self._job: tuple[Any, Any] | None = None
        self._reference: Any = None

    def node(self) -> str:
        """Id of its node."""
        return str(ray.get_runtime_context().get_node_id())

    def begin(self, job: list[Any]) -> None:
        """Take the function and what its tasks share; `job` holds one reference into the object store."""
        self._job, self._reference = None, job[0]

    def work(self, number: int, task: Any) -> None:
        """Run the task, which `cancel` knows by its number; reports and the outcome become messages."""

        def should_stop() -> bool:
            return self._stopped or self._cancelled == number

        def report(news: Any) -> None:
            self._messages.put(("report", news))

        def run(_: Any, task: Any, *more: Any) -> Any:
            self._job = self._job or ray.get(self._reference)  # within the attempt: it may not be importable here
            function, shared = self._job
            return function(shared, task, *more)

        self._messages.put(("outcome", attempt(run, None, task, report, should_stop)))

    @ray.method(concurrency_group="mail")
    def message(self) -> tuple[str, Any]:
        """The next one, as soon as there is one."""
        return self._messages.get()

    @ray.method(concurrency_group="mail")
    def stop(self) -> None:
        self._stopped = True

    @ray.method(concurrency_group="mail")
    def cancel(self, number: int) -> None:
        self._cancelled = number
