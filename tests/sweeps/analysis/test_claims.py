"""Verdicts on constructed tables: every cell of the protocol's table of verdicts."""

import dataclasses
import re
from typing import Any

import numpy as np
import pytest
from constructed import compared, rows

from sweeps.analysis.claims import CLAIMS, NO_HELP, Verdict, crossover
from sweeps.analysis.claims import judge as judge_pair
from sweeps.grid import Cell
from sweeps.rows import Row, Score

Gain = float | tuple[float, ...]
CROSSING = (0.1, 0.05, -0.05, -0.05, -0.05)  # random - pretrained: pretraining helps below 25 % and costs above
LOSSES = ("final/val_loss", "test/loss", "heldout/loss")


def judge(table: list[Row], **plan: Any) -> dict[str, Verdict]:
    return judge_pair(compared(table, **plan))


def of_losses(gain: Gain, best: Gain | None = None, scaled: Gain | None = None) -> dict[str, Gain]:
    chosen = {"test/best_loss": gain if best is None else best, "test/scaled_loss": gain if scaled is None else scaled}
    return dict.fromkeys(LOSSES, gain) | chosen


@pytest.mark.parametrize(
    ("gain", "noise", "verdict", "where"),
    [
        (0.1, 0.001, "holds", ""),
        (0.001, 0.0002, "holds", ""),  # however little, if it is shown
        (-0.1, 0.001, "does not hold", "5, 10, 25, 50 and 100 %"),
        ((0.1, 0.1, 0.1, 0.1, -0.02), 0.001, "does not hold", " 100 %"),
        ((0.1, 0.1, 0.1, 0.0, 0.003), 0.0005, "does not hold", " 50 %"),  # equal at one
        (0.0, 0.1, "cannot be told", " 5"),
    ],
)
def test_training_loss(gain: Gain, noise: float, verdict: str, where: str) -> None:
    claim = judge(rows(6, {"final/train_loss": gain}, noise=noise))["train_loss"]
    assert (claim.verdict, where in claim.reason) == (verdict, True), claim.reason
    assert (claim.val_sign, claim.test_sign) == ("", "")


@pytest.mark.parametrize(
    ("gain", "verdict", "where"),
    [
        (CROSSING, "holds", "from 25 % on"),
        (-0.1, "holds", "already from the smallest"),
        ((0.1, -0.05, -0.05, 0.05, 0.05), "cannot be told", "100 %"),  # a dip
        (0.1, "does not hold", "25 %"),
        ((-0.1, -0.1, 0.002, 0.002, 0.002), "does not hold", "25 %"),  # below 25 % does not matter
    ],
)
def test_validation_loss(gain: Gain, verdict: str, where: str) -> None:
    claim = judge(rows(8, of_losses(gain)))["val_loss"]
    assert (claim.verdict, where in claim.reason) == (verdict, True), claim.reason
    assert claim.percent == 100
    assert claim.effect == pytest.approx(np.log1p((gain if isinstance(gain, float) else gain[-1]) / 0.368), abs=0.03)


def test_the_crossover_is_a_gap_where_the_claim_holds() -> None:
    assert crossover(compared(rows(8, of_losses(CROSSING)))) == (10, 25)
    assert crossover(compared(rows(8, of_losses(-0.1)))) == (None, 5)
    assert crossover(compared(rows(8, of_losses((-0.05, 0.1, -0.05, 0.1, -0.05))))) == (50, 100)


def test_the_opposite_sign_on_test_images_prevents_a_verdict() -> None:
    """For validation loss alone."""
    opposed = of_losses(-0.02) | {"test/loss": 0.05}
    claim = judge(rows(8, opposed))["val_loss"]
    assert (claim.verdict, claim.val_sign, claim.test_sign) == ("cannot be told", "-", "+")
    opposed = of_losses(0.02) | {"test/loss": -0.05}
    assert judge(rows(8, opposed))["val_loss"].verdict == "cannot be told"


@pytest.mark.parametrize(
    ("gains", "verdict"),
    [
        (of_losses(CROSSING, best=0.0), "holds"),
        (of_losses(CROSSING, scaled=0.0), "holds"),
        (of_losses(CROSSING), "does not hold"),
        (of_losses(0.1), "does not arise"),
        (of_losses(0.002), "does not arise"),
        (of_losses(CROSSING, best=-0.0259, scaled=-0.0259), "cannot be told"),  # half of it
    ],
)
def test_overfitting(gains: dict[str, Gain], verdict: str) -> None:
    noise = 0.003 if verdict == "cannot be told" else 0.001
    claim = judge(rows(8, gains, noise=noise))["overfitting"]
    assert claim.verdict == verdict, claim.reason


@pytest.mark.parametrize(
    ("gains", "noise", "verdict", "number"),
    [
        ({}, 0.001, "holds", "1.5"),
        ({"heldout/accuracy": -0.01}, 0.001, "does not hold", "0.3"),
        (of_losses(0.1), 0.001, "does not hold", "25 and 50 %"),  # a doubling
        ({}, 0.02, "cannot be told", "0.3"),
    ],
)
def test_need(gains: dict[str, Gain], noise: float, verdict: str, number: str) -> None:
    claim = judge(rows(8, gains, noise=noise))["need"]
    assert (claim.verdict, number in claim.reason) == (verdict, True), claim.reason
    assert (claim.unit, claim.percent) == ("accuracy", 100)


def test_a_recipe_chosen_on_validation_is_judged_on_test() -> None:
    gains = of_losses(0.1) | {"test/loss": -0.03, "test/accuracy": -0.01}
    tuned, plain = (judge(rows(8, gains), is_tuned=is_tuned) for is_tuned in (True, False))
    assert (tuned["val_loss"].verdict, tuned["need"].verdict) == ("holds", "does not hold")
    assert tuned["need"].effect == pytest.approx(-0.01, abs=0.001)
    assert plain["need"].effect == pytest.approx(0.0, abs=0.001)


def test_images_that_are_a_sample_prevent_verdicts() -> None:
    table = rows(8, of_losses(CROSSING))
    pair = compared(table, image_variances={Score.HELDOUT_LOSS: np.full(5, 4.0), Score.TEST_LOSS: np.full(5, 4.0)})
    claim = judge_pair(pair)["val_loss"]
    assert (claim.verdict, claim.more) == ("cannot be told", NO_HELP)


@pytest.mark.parametrize("n", [2, 3])
def test_below_the_floor_there_is_an_effect_and_no_verdict(n: int) -> None:
    claims = judge(rows(n, {"final/train_loss": 0.1}))
    assert {claim.verdict for claim in claims.values()} == {"cannot be told"}
    claim = claims["train_loss"]
    assert re.search(rf"\b{n}\b.*\b4\b", claim.reason)
    assert claim.interval
    assert claim.interval[0] < claim.effect < claim.interval[1]


def test_an_incomplete_plan_has_no_verdict() -> None:
    table = [row for row in rows(8, {"final/train_loss": 0.1}) if row.cell != Cell(100, "random", 7)]
    claim = judge(table, judged=(5, 100), n_replicates=9, is_complete=False)["train_loss"]
    assert (claim.verdict, claim.n_replicates) == ("cannot be told", 7)
    assert re.search(r"\b5\b", claim.reason)  # of 36 cells
    extended = judge(rows(8, {"final/train_loss": 0.1}), is_extended=True)["train_loss"]
    assert (extended.verdict, extended.is_extended) == ("holds", True)


def test_more_replicates_are_forecast() -> None:
    claim = judge(rows(6, {"final/train_loss": 0.05}, noise=0.1))["train_loss"]
    assert claim.verdict == "cannot be told"
    assert isinstance(claim.more, int)
    assert 1 <= claim.more <= 200


def test_a_missing_fraction_of_100_percent() -> None:
    claims = judge([row for row in rows(8, of_losses(-0.1)) if row.cell.percent < 100])
    assert {name: claim.verdict for name, claim in claims.items()} == {
        "train_loss": "does not hold",
        "val_loss": "cannot be told",
        "overfitting": "does not hold",  # at the largest fraction there is
        "need": "cannot be told",
    }


@pytest.mark.parametrize("n", [1, 2, 8])
def test_degenerate_cells_give_no_verdict(n: int) -> None:
    """No spread, losses of 0, no scores."""
    alike = rows(n, {"final/train_loss": 0.1, **of_losses(0.1)}, noise=0.0)
    zero = [dataclasses.replace(row, scores=dict.fromkeys(row.scores, 0.0)) for row in rows(n, {})]
    bare = [dataclasses.replace(row, scores={"final/val_loss": 1.0}) for row in rows(n, {})]
    for table in (alike, zero, bare):
        assert {claim.verdict for claim in judge(table).values()} == {"cannot be told"}


def test_nothing_finished_is_no_error() -> None:
    for table in (
        [],
        [Row(Cell(5, "random", 0), 250, "", "open", {})],
        [row for row in rows(3, {}) if row.cell.init == "random"],
    ):
        claims = judge(table)
        assert set(claims) == set(CLAIMS)
        assert {(claim.verdict, claim.effect, claim.n_replicates) for claim in claims.values()} == {
            ("cannot be told", None, 0)
        }
