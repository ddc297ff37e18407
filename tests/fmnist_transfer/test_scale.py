"""The simulation against what can be worked out by hand."""

import pytest

from fmnist_transfer.scale import ScaleSettings, main, simulate


def test_few_workers_are_the_limit() -> None:
    done = simulate(10, 1, before=0.001, seconds=36.0, after=0.001)
    assert done.per_hour == pytest.approx(10 * 100, rel=0.1)
    assert done.worker_share > 0.9
    assert done.queue_share < 0.01


@pytest.mark.parametrize("n_drivers", [1, 4])
def test_many_workers_wait_for_the_drivers(n_drivers: int) -> None:
    done = simulate(2_000, n_drivers, before=0.1, seconds=10.0, after=0.1)
    assert done.per_hour == pytest.approx(n_drivers * 3_600 / 0.2, rel=0.1)
    assert done.queue_share > 0.95


def test_the_tables(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(ScaleSettings(workers=(10, 1_000), claim_ms=100, finish_ms=100)) == 0
    out = capsys.readouterr().out
    assert "the driver" in out
    assert "connections" in out
