"""The ledger without training: which run of a cell counts, and what is to run."""

from collections.abc import Callable

import pytest

from fmnist_transfer.data.examples import Half
from fmnist_transfer.identity import identity
from fmnist_transfer.store.roles import TRANSFER, Role
from fmnist_transfer.store.runs import Store
from sweeps.grid import Cell, RecipeChange
from sweeps.results.ledger import Ledger, open_ledger

WORK = identity(device="cpu", weights_digest="d", seed=0)
CELL, N = Cell(20, "random", 0), 50  # N: its training images


@pytest.fixture
def ledger(store: Store, half: Half) -> Ledger:
    return open_ledger(store, WORK, half, "a sweep", {"model_uri": "models:/cnn2/best"})


@pytest.fixture
def reopen(store: Store, half: Half) -> Callable[[], Ledger]:
    """Reads the store anew, as another command does."""
    return lambda: Ledger(store, WORK, half)


def log_run(ledger: Ledger, store: Store, status: str, reason: str = "") -> str:
    """A run of the cell that ended so, whoever made it."""
    tags = {"role": Role.CELL, "parent": ledger.run_id, "cell_key": ledger.cell_key(CELL), "reason": reason}
    params = {"percent": CELL.percent, "init": CELL.init, "replicate": CELL.replicate, "n_train": N}
    run_id = store.start(TRANSFER, CELL.name, parent=ledger.run_id, params=params, tags=tags)
    if status != "RUNNING":
        store.end(run_id, status)  # type: ignore[arg-type]
    return run_id


def test_looking_makes_nothing(store: Store, half: Half) -> None:
    assert Ledger(store, WORK, half).run_id == ""
    assert store.client.search_experiments(filter_string=f"name = '{TRANSFER}'") == []


def test_a_cell_is_open_until_it_has_a_finished_run(ledger: Ledger, store: Store, reopen: Callable[[], Ledger]) -> None:
    ledger.begin(CELL)
    assert reopen().to_run([CELL]) == [CELL]
    ledger.open_runs.end(CELL, "KILLED", tags={"reason": "stopped"})
    assert reopen().to_run([CELL]) == [CELL]
    assert reopen().rows([CELL])[0].status == "open"
    finished = log_run(ledger, store, "FINISHED")
    row = reopen().rows([CELL])[0]
    assert (row.run_id, row.status) == (finished, "finished")
    assert reopen().to_run([CELL]) == []


def test_the_earliest_finished_run_counts(ledger: Ledger, store: Store, reopen: Callable[[], Ledger]) -> None:
    """Results are deterministic, so a cell that is trained twice is harmless."""
    log_run(ledger, store, "FAILED", "ValueError: no")
    first = log_run(ledger, store, "FINISHED")
    log_run(ledger, store, "FINISHED")
    log_run(ledger, store, "FAILED", "ValueError: no")
    assert reopen().rows([CELL])[0].run_id == first


def test_nothing_is_written_to_the_parent_per_cell(ledger: Ledger, store: Store) -> None:
    before = store.client.get_run(ledger.run_id).data
    for replicate in range(3):
        cell = Cell(20, "random", replicate)
        ledger.begin(cell)
        ledger.fail(cell, "ValueError: no")
    after = store.client.get_run(ledger.run_id).data
    assert (after.params, after.tags, after.metrics) == (before.params, before.tags, before.metrics)


def test_a_cell_is_known_by_its_images_and_not_by_their_percent(ledger: Ledger, store: Store, half: Half) -> None:
    key = ledger.cell_key(CELL)
    assert ledger.n_train(20) == ledger.n_train(21) == N
    assert key == ledger.cell_key(Cell(21, "random", 0))
    others = {
        ledger.cell_key(Cell(22, "random", 0)),
        ledger.cell_key(Cell(20, "pretrained", 0)),
        ledger.cell_key(Cell(20, "random", 1)),
        ledger.cell_key(Cell(20, "random", 0, RecipeChange(1e-3, 0.0))),
        Ledger(store, identity(device="cpu", weights_digest="d", seed=1), half).cell_key(CELL),
    }
    assert len(others - {key}) == 5
