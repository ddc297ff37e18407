"""Coverage of the intervals, and how often verdicts are wrong, on simulated sweeps.

    python -m pytest -m slow -s tests/sweeps/analysis/test_simulation.py      # prints the tables of docs/results.md

Measured spread and correlation are those of the six replicates in docs/results: a simulated replicate is a random
combination of their deviations from the mean, of both inits, all scores and fractions jointly.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from sweeps.analysis.claims import judge
from sweeps.analysis.comparison import ACCURACY_MARGIN, LOSS_MARGIN, Comparison
from sweeps.analysis.statistics import FLOOR, intervals
from sweeps.rows import Score

pytestmark = pytest.mark.slow

RESULTS = Path(__file__).parents[3] / "docs" / "results"
PERCENTS = np.array([5.0, 10.0, 25.0, 50.0, 100.0])
REPLICATES = (4, 6, 8, 12)
N_COVERAGE, N_VERDICTS = 10_000, 500
SLOPE = 0.26  # log loss of random falls by this much per unit of log data, as measured
SCORES = (
    *(Score.TRAIN_LOSS, Score.VAL_LOSS, Score.TEST_LOSS, Score.HELDOUT_LOSS, Score.TEST_BEST_LOSS),
    *(Score.TEST_SCALED_LOSS, Score.VAL_ACCURACY, Score.TEST_ACCURACY, Score.HELDOUT_ACCURACY),
)
Rng = np.random.Generator
Array = np.ndarray
Verdicts = dict[str, Counter[str]]


@cache
def measured(sweep: str) -> Array:
    """Scores of a sweep in docs/results, losses as logs, [6 replicates, init (random, pretrained), score, fraction].

    The test loss at the best epoch was not logged then: its distance from the final one is that of validation.
    """
    table = pd.read_csv(RESULTS / f"{sweep}.csv").query("replicate < 6 and percent in @PERCENTS")
    columns = {score: table[score.key] for score in SCORES if score.key in table}
    columns[Score.HELDOUT_LOSS] = (columns[Score.VAL_LOSS] + columns[Score.TEST_LOSS]) / 2
    columns[Score.HELDOUT_ACCURACY] = (columns[Score.VAL_ACCURACY] + columns[Score.TEST_ACCURACY]) / 2
    columns[Score.TEST_BEST_LOSS] = columns[Score.TEST_LOSS] * table["best/val_loss"] / columns[Score.VAL_LOSS]
    values = pd.DataFrame({score.name: np.log(v) if score.is_loss else v for score, v in columns.items()})
    values = values.assign(percent=table.percent, init=table.init, replicate=table.replicate)
    values = values.sort_values(["replicate", "init", "percent"])[[score.name for score in SCORES]]
    return values.to_numpy().reshape(6, 2, len(PERCENTS), len(SCORES))[:, ::-1].transpose(0, 1, 3, 2)


def deviations(sweep: str, rng: Rng, n_sweeps: int, n: int) -> Array:
    """Deviations from the truth of simulated replicates, [n_sweeps, n, init, score, fraction]."""
    of_replicates = measured(sweep) - measured(sweep).mean(axis=0)
    return np.tensordot(rng.normal(size=(n_sweeps, n, 6)), of_replicates, axes=1) / np.sqrt(5)


def normal(rng: Rng, n: int) -> Array:
    return rng.normal(size=(N_COVERAGE, n, 5))


def t3(rng: Rng, n: int) -> Array:
    return rng.standard_t(3, size=(N_COVERAGE, n, 5))


def of_sweep(sweep: str, score: Score) -> Callable[[Rng, int], Array]:
    def draw(rng: Rng, n: int) -> Array:
        both = deviations(sweep, rng, N_COVERAGE, n)[..., SCORES.index(score), :]
        return both[:, :, 0] - both[:, :, 1]

    return draw


DRAWS = {"normal": normal, "t3": t3} | {
    f"{sweep}, {score.label}": of_sweep(sweep, score)
    for sweep in ("transfer", "tuned")
    for score in (Score.TRAIN_LOSS, Score.HELDOUT_LOSS, Score.HELDOUT_ACCURACY)
}


@pytest.mark.parametrize("fractions", [(0, 1, 2, 3, 4), (0, 2, 4)], ids=["5 fractions", "3 fractions"])
@pytest.mark.parametrize("name", DRAWS)
def test_intervals_cover_the_truth(name: str, fractions: tuple[int, ...]) -> None:
    """All fractions at once, in 94 to 97.5 % of the sweeps from the floor on."""
    rng, columns = np.random.default_rng(0), list(fractions)
    covered = []
    for n in REPLICATES:
        found = intervals(DRAWS[name](rng, n)[..., columns], PERCENTS[columns])
        covered.append(((found.low <= 0) & (found.high >= 0)).all(axis=-1).mean())
    print(f"\n| {name} | {len(columns)} | " + " | ".join(f"{100 * share:.1f}" for share in covered) + " |")
    assert REPLICATES[0] == FLOOR
    assert 0.94 - 0.005 <= min(covered) <= max(covered) <= 0.975


def losses(level: float = 0.0) -> dict[Score, Array]:
    return {score: np.full(5, level) for score in SCORES if score.is_loss}


def with_deficit(of_it_remains: float) -> dict[Score, Array]:
    d = losses(-0.3)
    return d | {score: of_it_remains * d[score] for score in (Score.TEST_BEST_LOSS, Score.TEST_SCALED_LOSS)}


def accuracies(level: float) -> dict[Score, Array]:
    return {score: np.full(5, level) for score in SCORES if not score.is_loss}


# Truth: random - pretrained (log ratios, accuracies as shares), and the verdicts that are false then.
TRUTHS: dict[str, tuple[Mapping[Score, Array], dict[str, tuple[str, ...]]]] = {
    "identical": (
        {},
        {
            "train_loss": ("holds",),
            "val_loss": ("holds",),
            "overfitting": ("holds", "does not hold"),
            "need": ("does not hold",),
        },
    ),
    "equal at 100 % alone": (
        {score: np.array([0.3, 0.3, 0.3, 0.3, 0]) for score in losses()},
        {"train_loss": ("holds",), "val_loss": ("holds",)},
    ),
    "losses 10 % higher": (losses(LOSS_MARGIN), {"train_loss": ("does not hold",), "val_loss": ("holds",)}),
    "losses 10 % lower": (
        losses(-LOSS_MARGIN),
        {"train_loss": ("holds",), "val_loss": ("does not hold",), "overfitting": ("does not arise",)},
    ),
    "half of a deficit is gone": (with_deficit(0.5), {"overfitting": ("holds", "does not hold", "does not arise")}),
    "worth 1.5 times the data": (losses(SLOPE * np.log(1.5)), {"need": ("does not hold", "holds")}),
    "accuracy 0.3 points lower": (accuracies(-ACCURACY_MARGIN), {"need": ("holds", "does not hold")}),
}


def simulate(sweep: str, truth: Mapping[Score, Array], n: int, n_sweeps: int = N_VERDICTS, seed: int = 0) -> Verdicts:
    """Judge simulated sweeps; count the verdicts of each claim."""
    values = deviations(sweep, np.random.default_rng(seed), n_sweeps, n)
    for i, score in enumerate(SCORES):
        values[:, :, :, i] += -SLOPE * np.log(PERCENTS / 5) - 2 if score.is_loss else 0.98
        values[:, :, 0, i] += truth.get(score, 0.0)
        if score.is_loss:
            values[:, :, :, i] = np.exp(values[:, :, :, i])
    counts: Verdicts = {}
    for of_sweep in values:
        arrays = {
            (init, s): of_sweep[:, j, i]
            for j, init in enumerate(("random", "pretrained"))
            for i, s in enumerate(SCORES)
        }
        pair = Comparison("pretrained", (), tuple(map(int, PERCENTS)), tuple(range(n)), arrays, {})
        for claim, verdict in judge(pair).items():
            counts.setdefault(claim, Counter())[verdict.verdict] += 1
    return counts


@pytest.mark.parametrize("name", TRUTHS)
@pytest.mark.parametrize("sweep", ["transfer", "tuned"])
def test_false_verdicts_are_few(sweep: str, name: str) -> None:
    """Each false verdict in at most 5 % of the sweeps, but for three standard errors of the simulation."""
    truth, false = TRUTHS[name]
    rates: dict[tuple[str, str], list[float]] = {}
    for n in (FLOOR, 8):
        counts = simulate(sweep, truth, n)
        for key in ((claim, verdict) for claim, verdicts in false.items() for verdict in verdicts):
            rates.setdefault(key, []).append(counts[key[0]][key[1]] / N_VERDICTS)
    for (claim, verdict), of_n in rates.items():
        print(f"\n| {sweep} | {name} | {claim}: {verdict} | " + " | ".join(f"{100 * rate:.1f}" for rate in of_n) + " |")
    assert max(rate for of_n in rates.values() for rate in of_n) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / N_VERDICTS)


@pytest.mark.parametrize("sweep", ["transfer", "tuned"])
def test_measured_effects_get_definite_verdicts(sweep: str) -> None:
    d = measured(sweep).mean(axis=0)
    truth = {score: d[0, i] - d[1, i] for i, score in enumerate(SCORES)}
    for n in (6, 8, 12):
        counts = simulate(sweep, truth, n, n_sweeps=300)
        told = {claim: f"{100 * (1 - count['cannot be told'] / 300):.0f}" for claim, count in counts.items()}
        print(f"\n| {sweep} | {n} | " + " | ".join(told.values()) + " |", dict(counts))
