"""The demo: a store from the published tables that says what the published sweep says."""

from pathlib import Path

import pytest

from fmnist_transfer.store.opening import open_store
from fmnist_transfer.store.roles import TRANSFER, Role
from sweeps import demo
from sweeps.analysis.claims import CLAIMS
from sweeps.results.read import find_sweep, read_sweep
from sweeps.rows import from_csv


@pytest.mark.slow
def test_the_demo_shows_the_published_sweep_and_is_made_once(store_path: Path) -> None:
    for _ in range(2):
        assert demo.command(["--tracking-uri", str(store_path)]) == 0
    store = open_store(str(store_path))
    (parent,) = store.find(TRANSFER, role=Role.SWEEP)
    published = from_csv((demo.TABLES / demo.CELLS).read_text())
    sweep = read_sweep(store, find_sweep(store, "latest"))
    ordered = sorted(published, key=lambda row: row.cell.position)
    assert [row.scores for row in sweep.rows] == [row.scores for row in ordered]
    assert sweep.is_complete
    assert {name: parent.data.tags[f"verdict.{name}"] for name in CLAIMS} == dict.fromkeys(CLAIMS, "holds")
    # The published answer: random's loss is 26.7 % higher at 5 %, 11.3 % lower at 100 %.
    assert parent.data.metrics["answer/loss_log_ratio_at_5"] == pytest.approx(0.2367, abs=1e-4)
    assert parent.data.metrics["answer/loss_log_ratio_high_at_100"] == pytest.approx(-0.0239, abs=1e-4)


def test_the_demo_needs_the_repository(store_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "TABLES", tmp_path)
    assert demo.command(["--tracking-uri", str(store_path)]) == 3
