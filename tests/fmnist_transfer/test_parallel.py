"""Tasks in this process and on worker processes."""

import os
import signal
import time

import pytest

from fmnist_transfer.errors import Interrupted, UsageError
from fmnist_transfer.parallel import StopSignal, parse_workers, run_tasks


def work(shared, task, report, should_stop):
    """Test tasks: a number is squared; `die`, `fail` and `wait` do as they say."""
    import torch

    if task == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if task == "fail":
        raise RuntimeError("as asked")
    if task == "wait":
        report("waiting")
        while not should_stop():
            time.sleep(0.01)
        raise Interrupted("stopped")
    report(torch.get_num_threads())
    return shared * task * task


@pytest.mark.parametrize("n_workers", [1, 2])
def test_results_reports_and_failures(n_workers: int) -> None:
    reports: list[tuple[object, object]] = []
    started: list[object] = []
    with StopSignal() as stop:
        outcomes = list(
            run_tasks(
                work,
                10,
                [1, "fail", 2, 3],
                n_workers=n_workers,
                stop=stop,
                on_report=lambda task, news: reports.append((task, news)),
                on_start=started.append,
            )
        )
    assert {o.task: o.result for o in outcomes if o.status == "done"} == {1: 10, 2: 40, 3: 90}
    assert sorted(reports) == [(1, 1), (2, 1), (3, 1)]  # one torch thread for each
    assert started == [1, "fail", 2, 3]
    (failed,) = [o for o in outcomes if o.status == "failed"]
    assert failed.reason == "RuntimeError: as asked"
    assert "as asked" in failed.details


def test_a_dead_worker_takes_only_its_own_task() -> None:
    with StopSignal() as stop:
        outcomes = {o.task: o for o in run_tasks(work, 1, [1, "die", 2, 3, 4], n_workers=2, stop=stop)}
    assert outcomes["die"].status == "failed"
    assert outcomes["die"].reason == "the worker process died (signal 9, perhaps for want of memory)"
    assert {task: o.result for task, o in outcomes.items() if task != "die"} == {1: 1, 2: 4, 3: 9, 4: 16}


@pytest.mark.parametrize("n_workers", [1, 2])
def test_a_signal_interrupts_running_tasks_and_starts_no_more(n_workers: int) -> None:
    def interrupt(task: object, news: object) -> None:
        if news == "waiting" and not stop.is_set():
            os.kill(os.getpid(), signal.SIGTERM)

    with StopSignal() as stop:
        tasks = ["wait", "wait", "wait", "wait"]
        outcomes = list(run_tasks(work, 1, tasks, n_workers=n_workers, stop=stop, on_report=interrupt))
        assert [o.status for o in outcomes] == ["interrupted"] * n_workers
        with pytest.raises(Interrupted, match="2 of 4") as caught:
            stop.raise_if_set("2 of 4")
    assert caught.value.exit_status == 143


@pytest.mark.parametrize("text", ["0", "-1", "two", "1.5"])
def test_bad_number_of_workers(text: str) -> None:
    with pytest.raises(UsageError, match=f"--workers {text}"):
        parse_workers(text)
    assert parse_workers("auto") >= 1
