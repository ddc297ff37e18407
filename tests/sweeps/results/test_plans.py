"""Plans of a sweep and the images behind its scores, read from runs that no training made."""

import io
import math

import numpy as np
import pytest

from fmnist_transfer.data.examples import Half
from fmnist_transfer.identity import identity
from fmnist_transfer.network.cnn2 import CNN2Spec
from fmnist_transfer.store.roles import IMAGE_SCORES_FILE, settings_params
from fmnist_transfer.store.runs import Store
from fmnist_transfer.training.recipe import Recipe
from fmnist_transfer.training.score import IMAGE_SCORES
from sweeps.analysis.statistics import image_variance
from sweeps.grid import REPORTED, Cell, Grid, grid_tags, grids_of, verdict_tags
from sweeps.report.findings import classes_csv
from sweeps.report.write import caveats
from sweeps.results.images import variances_csv, variances_from_csv, with_image_scores
from sweeps.results.ledger import Ledger, open_ledger
from sweeps.results.read import LoggedSweep, read_sweep
from sweeps.rows import Score

SMALL, LARGE = (Grid((60, 100), REPORTED, n, (100,), 1) for n in (6, 7))
WORK = identity(device="cpu", **settings_params(CNN2Spec(), Recipe()), split="01234/56789")
RNG = np.random.default_rng(0)
N_IMAGES = 6  # of validation and of test


@pytest.fixture
def ledger(store: Store, half: Half) -> Ledger:
    return open_ledger(store, WORK, half, "a sweep", {})


def scores_of_images() -> dict[str, np.ndarray]:
    names = sorted(IMAGE_SCORES)
    losses = {name: RNG.uniform(0.1, 1, N_IMAGES).astype(np.float16) for name in names if name.endswith("loss")}
    classes = {name: RNG.integers(0, 5, N_IMAGES).astype(np.uint8) for name in names}
    labels = {name: np.arange(N_IMAGES, dtype=np.uint8) % 5 for name in names if name.endswith("label")}  # each class
    return classes | labels | losses


def add_grid(store: Store, run_id: str, grid: Grid) -> None:
    store.log(run_id, tags=grid_tags(store.client.get_run(run_id).data.tags, grid))


def finish(ledger: Ledger, cell: Cell, files: dict[str, bytes] | None = None) -> None:
    ledger.begin(cell)
    seconds = cell.work("epochs")
    metrics = [(score.key, float(RNG.uniform(0.4, 0.6)), 0) for score in Score] + [("cost/seconds", seconds, 0)]
    ledger.open_runs.end(cell, "FINISHED", metrics=metrics, files=files)


def fail(ledger: Ledger, cell: Cell) -> None:
    ledger.begin(cell)
    ledger.fail(cell, "Diverged: training loss is nan")


def test_before_the_plan_is_complete_there_is_a_forecast_and_no_verdict(ledger: Ledger, store: Store) -> None:
    add_grid(store, ledger.run_id, SMALL)
    assert math.isnan(read_sweep(store, ledger.run_id).seconds_left)
    *cells, last = SMALL.cells()
    for cell in cells:
        if cell != Cell(60, "random", 0):
            finish(ledger, cell)
    logged = read_sweep(store, ledger.run_id)
    assert (logged.judged_grid, logged.is_complete, logged.is_extended, logged.n_sources) == (SMALL, False, False, 1)
    assert {row.cell for row in logged.open_rows} == {Cell(60, "random", 0), last}
    assert logged.seconds_left == pytest.approx(174)  # a cell takes a second per percent, and 7 for its evaluation
    assert any("2 min 54 s" in text for text in caveats(logged))


def judge(store: Store, run_id: str, asked: Grid | None = None) -> LoggedSweep:
    """Read the sweep as a report does, which notes its verdict."""
    logged = read_sweep(store, run_id, asked)
    if logged.is_complete and not logged.pair.no_verdict:
        store.log(run_id, tags=verdict_tags(logged.tags, logged.judged_grid))
    return logged


def test_the_planned_number_stays_judged_until_an_extension_is_complete(ledger: Ledger, store: Store) -> None:
    run_id = ledger.run_id
    add_grid(store, run_id, SMALL)
    for cell in SMALL.cells():
        finish(ledger, cell)
    first = judge(store, run_id)
    assert (first.judged_grid, first.is_complete, first.is_extended) == (SMALL, True, False)
    add_grid(store, run_id, LARGE)
    *more, last = sorted(set(LARGE.cells()) - set(SMALL.cells()), key=lambda cell: cell.position)
    for cell in more:
        finish(ledger, cell)
    assert read_sweep(store, run_id).judged_grid == SMALL
    assert read_sweep(store, run_id).pair.n == 6
    assert not read_sweep(store, run_id, LARGE).is_complete
    fail(ledger, last)
    extended = judge(store, run_id)
    assert (extended.judged_grid, extended.is_complete, extended.is_extended) == (LARGE, True, True)
    assert extended.pair.n == 6  # the seventh has diverged
    asked = judge(store, run_id, SMALL)
    assert (asked.judged_grid, asked.is_complete, asked.is_extended) == (SMALL, True, False)
    assert read_sweep(store, run_id).tags["verdicts_at"] == "6 7"


def test_the_earliest_plans_go_when_there_is_no_room_for_more(ledger: Ledger, store: Store) -> None:
    for n in range(1, 151):
        add_grid(store, ledger.run_id, Grid((60, 100), REPORTED, n, (100,), 1))
    kept = [grid.n_replicates for grid in grids_of(read_sweep(store, ledger.run_id).tags)]
    assert kept == [*range(151 - len(kept), 151)]
    assert 50 < len(kept) < 150


def test_a_plan_of_controls_is_not_judged(ledger: Ledger, store: Store) -> None:
    run_id = ledger.run_id
    add_grid(store, run_id, SMALL)
    for cell in SMALL.cells():
        finish(ledger, cell)
    controls = Grid((60, 100), ("frozen",), 12, (100,), 1)
    add_grid(store, run_id, controls)
    for cell in controls.cells():
        finish(ledger, cell)
    assert read_sweep(store, run_id, controls).judged_grid == read_sweep(store, run_id).judged_grid == SMALL
    assert grids_of(read_sweep(store, run_id).tags) == [SMALL, controls]
    add_grid(store, run_id, SMALL)
    assert grids_of(read_sweep(store, run_id).tags) == [controls, SMALL]  # what was asked for last comes last


def test_a_quick_look_gives_no_verdict_and_is_no_first_one(ledger: Ledger, store: Store) -> None:
    look = Grid((100,), REPORTED, 1, (100,), 1)
    for grid in (look, SMALL):
        add_grid(store, ledger.run_id, grid)
        for cell in grid.cells():
            if not ledger.rows([cell])[0].run_id:
                finish(ledger, cell)
        assert judge(store, ledger.run_id).is_extended is False


def test_image_variances_are_those_of_the_mean_over_compared_replicates(ledger: Ledger, store: Store) -> None:
    grid = Grid((20, 100), REPORTED, 2, (20, 100), 1)
    add_grid(store, ledger.run_id, grid)
    files = {cell: scores_of_images() for cell in grid.cells()}
    for cell, arrays in files.items():
        finish(ledger, cell, {IMAGE_SCORES_FILE: packed(arrays)})
    logged = with_image_scores(store, read_sweep(store, ledger.run_id))
    variances = logged.image_variances["pretrained"]

    def mean(init: str, percent: int, of: str) -> np.ndarray:
        return np.mean([files[Cell(percent, init, r)][of].astype(float) for r in (0, 1)], axis=0)  # type: ignore[arg-type]

    for i, percent in enumerate((20, 100)):
        random, own = (
            np.concatenate([mean(init, percent, name) for name in ("val_final_loss", "test_final_loss")])
            for init in ("random", "pretrained")
        )
        expected = image_variance(random, own, is_log=True)
        assert variances[Score.HELDOUT_LOSS][i] == pytest.approx(expected, rel=1e-5)
        cells = [files[Cell(percent, "random", r)] for r in (0, 1)]
        labels = np.concatenate([cell[f"{part}_label"] for cell in cells for part in ("val", "test")])
        classes = np.concatenate([cell[f"{part}_class"] for cell in cells for part in ("val", "test")])
        shares = logged.confusions[percent, "random"]
        assert shares[1, 2] == pytest.approx((classes[labels == 1] == 2).mean())
        assert shares.sum(axis=1) == pytest.approx(1.0)
    read = variances_from_csv(variances_csv(logged))
    assert read.keys() == variances.keys()
    assert all((read[key] == variances[key]).all() for key in read)
    assert len(classes_csv(logged).splitlines()) == 1 + 2 * 2 * shares.size


def packed(arrays: dict[str, np.ndarray]) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
    return file.getvalue()
