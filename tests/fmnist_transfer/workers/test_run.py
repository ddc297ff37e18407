"""Tasks in this process and on worker processes."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

from fmnist_transfer.errors import Interrupted, UsageError
from fmnist_transfer.workers.run import Workers
from fmnist_transfer.workers.stop import StopSignal
from fmnist_transfer.workers.task import Outcome, Pool, Worker


def work(shared, task, report, should_stop):
    """Test tasks: a number is squared; `die`, `fail` and `wait` do as they say."""
    import torch

    if task == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if isinstance(task, Path) and not task.exists():
        task.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if isinstance(task, Path):
        return os.getpid()
    if task == "die if stopped":
        report("waiting")
        while not should_stop():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)
    if task == "fail":
        raise RuntimeError("planted")
    if task == "wait":
        report("waiting")
        while not should_stop():
            time.sleep(0.01)
        raise Interrupted("stopped")
    report(torch.get_num_threads())
    return shared * task * task


def run(n_workers: int, shared: int, tasks: Iterable[object], **callbacks: Any) -> list[Any]:
    """Outcomes of `work`."""
    with StopSignal() as stop, Workers(n_workers, stop) as workers:
        return list(workers.run(work, shared, tasks, **callbacks))


@pytest.mark.parametrize("n_workers", [1, 2])
def test_results_reports_and_failures(n_workers: int) -> None:
    reports: list[tuple[object, object]] = []
    outcomes = run(n_workers, 10, [1, "fail", 2, 3], on_report=lambda task, news: reports.append((task, news)))
    assert {o.task: o.result for o in outcomes if o.status == "done"} == {1: 10, 2: 40, 3: 90}
    assert sorted(reports) == [(1, 1), (2, 1), (3, 1)]  # one torch thread for each
    (failed,) = [o for o in outcomes if o.status == "failed"]
    assert failed.reason == "RuntimeError: planted"
    assert "planted" in failed.details


def test_a_worker_lives_from_one_job_to_the_next(tmp_path: Path) -> None:
    tasks = [tmp_path / name for name in "abcdef"]
    for task in tasks:
        task.touch()
    with StopSignal() as stop, Workers(2, stop) as workers:
        first = {outcome.result for outcome in workers.run(work, 1, tasks)}
        second = {outcome.result for outcome in workers.run(work, 2, tasks)}
        assert [o.result for o in workers.run(work, 3, [5])] == [75]
    assert second <= first
    assert len(first) <= 2
    assert os.getpid() not in first


def test_a_dead_worker_takes_only_its_own_task_which_is_retried_once() -> None:
    lost: list[tuple[object, str]] = []
    outcomes = run(2, 1, [1, "die", 2, 3, 4], on_lost=lambda task, reason: lost.append((task, reason)))
    (died,) = [o for o in outcomes if o.task == "die"]
    ((task, reason),) = lost
    assert (task, died.status, died.reason) == ("die", "failed", f"{reason}, twice")
    assert "signal 9" in reason
    assert {o.task: o.result for o in outcomes if o.task != "die"} == {1: 1, 2: 4, 3: 9, 4: 16}
    assert len(outcomes) == 5


def test_a_task_that_was_lost_once_is_done(tmp_path: Path) -> None:
    outcomes = run(2, 1, [tmp_path / "was here", 2])
    assert [outcome.status for outcome in outcomes] == ["done", "done"]


@pytest.mark.parametrize("n_workers", [1, 2])
def test_one_task_is_cancelled_and_the_others_go_on(n_workers: int) -> None:
    with StopSignal() as stop, Workers(n_workers, stop) as workers:
        tasks = ["wait", 1, 2, "wait", 3]
        outcomes = list(
            workers.run(work, 1, tasks, on_report=lambda task, news: news == "waiting" and workers.cancel(task))
        )
        assert not stop.is_set()
    assert sorted((str(o.task), o.status) for o in outcomes) == [
        *(("1", "done"), ("2", "done"), ("3", "done")),
        *[("wait", "interrupted")] * 2,
    ]


class Stillborn(Worker):
    """Stands for a worker: it dies as often as `deaths` says before it has begun a task."""

    def __init__(self, deaths: Counter[object]):
        self.deaths = deaths

    def message(self) -> tuple[str, object]:
        if self.deaths[self.task]:
            self.deaths[self.task] -= 1
            return "died", "signal 9"
        if not self.is_at_work:
            return "begun", None
        return "outcome", Outcome(self.task, "done")


class OneWorker(Pool):
    """Stands for a pool; replaces its worker when that has died."""

    def __init__(self, deaths: Mapping[object, int]):
        self.workers: list[Stillborn] = []
        self.deaths = Counter(deaths)

    def idle(self) -> list[Stillborn]:
        self.workers = self.workers or [Stillborn(self.deaths)]
        return [worker for worker in self.workers if worker.task is None]

    def wait(self, busy: list[Stillborn]) -> list[Stillborn]:
        return busy[:]


@pytest.mark.parametrize("deaths", [{0: 1, 1: 1, 2: 1, 3: 1, 4: 1}, {0: 2, 5: 1, 9: 2}])
def test_deaths_before_a_task_began_are_no_failures_of_the_task(deaths: dict[object, int]) -> None:
    with StopSignal() as stop:
        workers = Workers(1, stop)
        workers._pool = OneWorker(deaths)
        assert [outcome.status for outcome in workers.run(work, 1, range(10))] == ["done"] * 10


def test_a_task_that_no_worker_can_begin_fails_alone() -> None:
    with StopSignal() as stop:
        workers = Workers(1, stop)
        workers._pool = OneWorker({5: 9})
        outcomes = list(workers.run(work, 1, range(10)))
    assert [outcome.task for outcome in outcomes if outcome.status == "failed"] == [5]
    assert len(outcomes) == 10


def test_three_workers_in_a_row_that_die_at_their_start_end_a_run() -> None:
    with StopSignal() as stop:
        workers = Workers(1, stop)
        workers._pool = OneWorker({0: 3})  # type: ignore[assignment]
        with pytest.raises(UsageError, match="--workers 1"):
            list(workers.run(work, 1, range(10)))


def test_a_cancelled_task_whose_worker_dies_is_not_retried() -> None:
    lost: list[object] = []
    with StopSignal() as stop, Workers(2, stop) as workers:
        outcomes = list(
            workers.run(
                *(work, 1, ["die if stopped", 1]),
                on_report=lambda task, news: news == "waiting" and workers.cancel(task),
                on_lost=lambda task, reason: lost.append(task),
            )
        )
    assert sorted((o.task, o.status) for o in outcomes if o.task != 1) == [("die if stopped", "interrupted")]
    assert lost == []


@pytest.mark.parametrize("n_workers", [1, 2])
def test_a_signal_interrupts_running_tasks_and_starts_no_more(n_workers: int) -> None:
    def interrupt(task: object, news: object) -> None:
        if news == "waiting" and not stop.is_set():
            os.kill(os.getpid(), signal.SIGTERM)

    with StopSignal() as stop, Workers(n_workers, stop) as workers:
        tasks = ["wait", "wait", "wait", "wait"]
        outcomes = list(workers.run(work, 1, tasks, on_report=interrupt))
        assert [o.status for o in outcomes] == ["interrupted"] * n_workers
        with pytest.raises(Interrupted, match="2 of 4") as caught:
            stop.raise_if_set("2 of 4")
    assert caught.value.exit_status == 143


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no processor affinity")
def test_cores_that_the_process_may_not_use_do_not_count() -> None:
    code = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
    code += "from fmnist_transfer.workers.run import available_cores; print(available_cores())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1"
