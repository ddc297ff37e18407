"""Signals and outages: which one a command reports, and that tasks end in good order after either."""

import os
import signal

import pytest

from fmnist_transfer.errors import Interrupted, StoreError
from fmnist_transfer.workers.run import Workers
from fmnist_transfer.workers.stop import StopSignal


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 143)])
def test_a_signal_becomes_a_flag_and_an_exit_status(number: int, status: int) -> None:
    with StopSignal() as stop:
        stop.raise_if_set("not yet")
        os.kill(os.getpid(), number)
        assert stop.is_set()
        with pytest.raises(Interrupted, match="1 of 2") as caught:
            stop.raise_if_set("1 of 2")
    assert caught.value.exit_status == status


def lose_the_store(*, after: int | None) -> None:
    """In a command, perhaps after a signal."""
    with StopSignal():
        if after is not None:
            os.kill(os.getpid(), after)
        raise StoreError("gone")


def test_whoever_stops_a_command_that_waits_for_its_store_hears_of_the_stop() -> None:
    with pytest.raises(Interrupted, match="gone") as caught:
        lose_the_store(after=signal.SIGINT)
    assert caught.value.exit_status == 130
    with pytest.raises(StoreError):
        lose_the_store(after=None)


def test_an_outage_stops_the_tasks_and_is_kept() -> None:
    with StopSignal() as stop, Workers(1, stop) as workers:
        outcomes = []
        for outcome in workers.run(lambda *_: None, None, range(5)):
            with stop.held():
                outcomes.append(outcome.status)
                if len(outcomes) == 2:
                    raise StoreError("gone")
        assert outcomes == ["done", "done"]
        assert str(stop.outage) == "gone"
        stop.raise_if_set("no signal came")
