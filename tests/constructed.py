"""Sweeps with known differences, as they would be read from a store."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fmnist_transfer.network.cnn2 import CNN2Spec
from fmnist_transfer.store.roles import settings_params
from fmnist_transfer.training.recipe import Recipe
from sweeps.analysis.comparison import Comparison, compare
from sweeps.grid import REPORTED, Cell, Grid, Init
from sweeps.results.read import LoggedSweep
from sweeps.rows import Row

PERCENTS = (5, 10, 25, 50, 100)
BASE = {
    "final/train_loss": 0.8,
    "final/val_loss": 0.8,
    "final/val_accuracy": 0.9,
    "final/val_scaled_loss": 0.8,
    "best/val_accuracy": 0.9,
    "final/val_temperature": 1.1,
    "best/val_loss": 0.8,
    "test/loss": 0.8,
    "test/best_loss": 0.8,
    "test/scaled_loss": 0.8,
    "test/accuracy": 0.9,
    "heldout/loss": 0.8,
    "heldout/accuracy": 0.9,
}
SPEC, RECIPE = CNN2Spec(), Recipe()
Gains = Mapping[str, float | Sequence[float]]  # score -> random - pretrained, one number or one a fraction


def rows(
    n_replicates: int, gains: Gains, *, inits: Sequence[Init] = ("pretrained", "random"), noise: float = 0.001
) -> list[Row]:
    """Random loses `gains` against every other init; losses fall by 0.1 a doubling of the data."""
    rng = np.random.default_rng(0)
    found = []
    for replicate in range(n_replicates):
        for i, percent in enumerate(PERCENTS):
            for init in inits:
                scores = {}
                for score, base in BASE.items():
                    gain = gains.get(score, 0.0)
                    value = base - 0.1 * np.log2(percent / 5) * score.endswith("loss")
                    if init == "random":
                        value += (gain if isinstance(gain, float) else gain[i]) + rng.normal(0, noise)
                    scores[score] = float(value)
                found.append(Row(Cell(percent, init, replicate), 250 * percent, "id", "finished", scores))
    return found


def compared(
    of_rows: Sequence[Row], judged: Sequence[int] = (), n_replicates: int | None = None, **others: Any
) -> Comparison:
    """Compare pretrained with random at all finished fractions and replicates, or at those of a plan."""
    cells = [row.cell for row in of_rows if row.cell.init in REPORTED and row.status == "finished"]
    n = 1 + max((cell.replicate for cell in cells), default=-1) if n_replicates is None else n_replicates
    pair = compare(of_rows, "pretrained", judged or sorted({cell.percent for cell in cells}), n)
    return dataclasses.replace(pair, **others)


def sweep(
    of_rows: Sequence[Row],
    *,
    spec: CNN2Spec = SPEC,
    recipe: Recipe = RECIPE,
    run_id: str = "0123456789abcdef",
    **params: str,
) -> LoggedSweep:
    """A sweep of these rows."""
    all_params = {"split": "01234/56789", "budget": "epochs", "weights_digest": "d", "seed": "0"}
    all_params |= {key: str(value) for key, value in settings_params(spec, recipe).items()} | params
    percents, n = (
        tuple(sorted({row.cell.percent for row in of_rows})),
        1 + max((r.cell.replicate for r in of_rows), default=-1),
    )
    grid = Grid(percents, tuple(dict.fromkeys(row.cell.init for row in of_rows)), n, percents, n)
    name, has_open = "cnn2/1 on classes 56789", any(row.status == "open" for row in of_rows)
    tables: Any = tuple(of_rows), recipe, {}, (), {}
    return LoggedSweep(run_id, name, all_params, {}, *tables, grid, is_complete=not has_open, is_extended=False)
