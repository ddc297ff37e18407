"""The ledger without training: claims, attempts, ghosts, and what is to run."""

from collections.abc import Callable

import pytest

from fmnist_transfer.data.examples import Half
from fmnist_transfer.identity import identity
from fmnist_transfer.store.roles import TRANSFER
from fmnist_transfer.store.runs import Store
from sweeps.grid import Cell, RecipeChange
from sweeps.results.ledger import Ledger

WORK = identity(device="cpu", weights_digest="d", seed=0)
CELL, N = Cell(20, "random", 0), 50


@pytest.fixture
def ledger(store: Store, half: Half) -> Ledger:
    ledger = Ledger(store, WORK, half)
    ledger.create("a sweep", {"model_uri": "models:/cnn2/best"})
    ledger.open({})
    return ledger


@pytest.fixture
def look(store: Store, half: Half) -> Callable[[], Ledger]:
    """Reads the store anew, as another command does."""
    return lambda: Ledger(store, WORK, half)


def test_looking_makes_nothing(store: Store, half: Half) -> None:
    assert Ledger(store, WORK, half).run_id == ""
    assert store.client.search_experiments(filter_string=f"name = '{TRANSFER}'") == []


def test_a_claim_is_in_the_store_before_anything_else(ledger: Ledger, store: Store, look: Callable[[], Ledger]) -> None:
    run_id = ledger.claim(CELL, N)
    other = look()
    assert other.run_id == ledger.run_id
    assert other.row(CELL, N).run_id == run_id
    assert other.to_run({CELL: N}) == [CELL]


def test_the_loser_of_a_race_deletes_its_own_run(ledger: Ledger, store: Store, look: Callable[[], Ledger]) -> None:
    rival = look()  # both believe that nothing is claimed
    winner = ledger.claim(CELL, N)
    assert rival.claim(CELL, N) is None
    assert [run.info.run_id for run in store.find(TRANSFER, role="cell")] == [winner]


def test_a_zombie_that_finishes_late_is_not_counted(ledger: Ledger, store: Store, look: Callable[[], Ledger]) -> None:
    zombie = ledger.claim(CELL, N)
    successor = look()
    successor.open({})
    second = successor.claim(CELL, N)
    store.end(zombie, "FINISHED")
    row = look().row(CELL, N)
    assert (row.run_id, row.status) == (second, "open")


def test_what_died_is_closed_and_ghosts_go(ledger: Ledger, store: Store, look: Callable[[], Ledger]) -> None:
    died = ledger.claim(CELL, N)
    ghost = store.start(TRANSFER, "ghost", tags={"role": "cell", "parent": ledger.run_id})
    successor = look()
    successor.open({})
    assert [store.client.get_run(run_id).info.status for run_id in (died, ghost)] == ["KILLED"] * 2
    assert successor.delete_ghosts() == 1
    assert [run.info.run_id for run in store.find(TRANSFER, role="cell")] == [died]


@pytest.mark.parametrize(
    ("reason", "retry_failed", "to_run"),
    [("MemoryError: too little", False, [CELL]), ("Diverged: nan", False, []), ("Diverged: nan", True, [CELL])],
)
def test_which_failures_are_tried_again(
    ledger: Ledger, look: Callable[[], Ledger], reason: str, retry_failed: bool, to_run: list[Cell]
) -> None:
    ledger.fail(ledger.claim(CELL, N), reason, "Traceback ...")
    assert look().to_run({CELL: N}, retry_failed=retry_failed) == to_run


def test_a_cell_is_known_by_its_images_and_not_by_their_percent(ledger: Ledger, store: Store, half: Half) -> None:
    key = ledger.cell_key(CELL, N)
    assert key == ledger.cell_key(Cell(21, "random", 0), N)
    others = {
        ledger.cell_key(CELL, N + 1),
        ledger.cell_key(Cell(20, "pretrained", 0), N),
        ledger.cell_key(Cell(20, "random", 1), N),
        ledger.cell_key(Cell(20, "random", 0, RecipeChange(1e-3, 1.0, 0.0)), N),
        Ledger(store, identity(device="cpu", weights_digest="d", seed=1), half).cell_key(CELL, N),
    }
    assert len(others - {key}) == 5
