"""The one loop that runs tasks and logs them: what ends how, also when the store is lost."""

import time
from typing import Any

import pytest

from fmnist_transfer.errors import Interrupted, StoreError
from fmnist_transfer.logged_tasks import run_logged
from fmnist_transfer.terminal.progress import Progress
from fmnist_transfer.workers.run import Workers
from fmnist_transfer.workers.stop import StopSignal
from fmnist_transfer.workers.task import Outcome


def work(shared: Any, task: Any, report: Any, should_stop: Any) -> Any:
    report(0.5)
    if task == "fail":
        raise ValueError("no")
    while task == "wait":
        if should_stop():
            raise Interrupted("stopped")
        time.sleep(0.01)
    return task


class Log:
    """Writes down what it is told; loses the store at the call `lost_at`."""

    def __init__(self, lost_at: str = ""):
        self.calls: list[str] = []
        self._lost_at = lost_at

    def _note(self, call: str) -> None:
        self.calls.append(call)
        if call == self._lost_at:
            raise StoreError("the store did not answer")

    def name(self, task: Any) -> str:
        return f"task {task}"

    def begin(self, task: Any) -> None:
        self._note(f"begin {task}")

    def report(self, task: Any, news: float) -> tuple[float, str]:
        self._note(f"report {task}")
        return news, "half"

    def end(self, outcome: Outcome[Any, Any]) -> str | None:
        self._note(f"{outcome.status} {outcome.task}")
        return None if outcome.status == "interrupted" else ""

    def close(self) -> None:
        self._note("close")


def run(log: Log, tasks: list[Any], n_workers: int = 1) -> None:
    with StopSignal() as stop, Workers(n_workers, stop) as workers, Progress("tasks", len(tasks)) as progress:
        run_logged(workers, work, None, tasks, log=log, progress=progress)


def test_each_task_is_begun_reported_and_ended_and_the_log_closed() -> None:
    log = Log()
    run(log, [1, "fail", 2])
    assert log.calls == [
        *("begin 1", "report 1", "done 1"),
        *("begin fail", "report fail", "failed fail"),
        *("begin 2", "report 2", "done 2"),
        "close",
    ]


@pytest.mark.parametrize("call", ["begin 1", "report 1", "done 1", "close"])
def test_a_lost_store_begins_nothing_more_and_is_raised_at_the_end(call: str) -> None:
    log = Log(call)
    with pytest.raises(StoreError):
        run(log, [1, 2])
    assert log.calls[-1] == "close"
    assert ("begin 2" in log.calls) == (call == "close")


def test_a_lost_store_stops_the_tasks_of_other_workers() -> None:
    log = Log("done 1")
    with pytest.raises(StoreError):
        run(log, ["wait", 1, 2], n_workers=2)
    assert "interrupted wait" in log.calls
    assert "begin 2" not in log.calls


def test_an_error_of_the_log_itself_closes_it() -> None:
    class Broken(Log):
        def end(self, outcome: Outcome[Any, Any]) -> str | None:
            raise KeyError("a bug")

    log = Broken()
    with pytest.raises(KeyError):
        run(log, [1])
    assert log.calls[-1] == "close"
