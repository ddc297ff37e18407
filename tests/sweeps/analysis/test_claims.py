"""Verdicts on constructed tables: every cell of the protocol's table of verdicts."""

import dataclasses
import re

import pytest
from constructed import rows

from sweeps.analysis.claims import CLAIMS, Verdict
from sweeps.analysis.claims import judge as judge_pair
from sweeps.analysis.comparison import compare
from sweeps.grid import Cell
from sweeps.rows import Row


def judge(table: list[Row]) -> dict[str, Verdict]:
    return judge_pair(compare(table))


CROSSING = (0.1, 0.05, -0.05, -0.05, -0.05)  # random - pretrained: pretraining helps below 25 % and costs above
GONE = (0.1, 0.05, 0.0, 0.0, 0.0)


def test_three_replicates_tell_nothing_but_what_is_seen() -> None:
    claims = judge(rows(3, {"final/train_loss": 0.1}))
    assert set(claims) == set(CLAIMS)
    assert {claim.verdict for claim in claims.values()} == {"cannot be told"}
    claim = claims["train_loss"]
    assert re.search(r"\b3\b.*\b6\b", claim.reason)
    assert claim.effect == pytest.approx(0.1, abs=0.005)
    assert claim.interval
    assert claim.interval[0] < claim.effect < claim.interval[1]
    assert re.search(r"\b5 %.*\b100 %", claim.observed)


def test_one_replicate_has_no_interval() -> None:
    claims = judge(rows(1, {"final/train_loss": 0.1}))
    assert {claim.interval for claim in claims.values()} == {None}
    assert {claim.n_replicates for claim in claims.values()} == {1}


@pytest.mark.parametrize(
    ("gain", "noise", "verdict", "where"),
    [
        (0.1, 0.001, "holds", ""),
        (-0.1, 0.001, "does not hold", "5, 10, 25, 50 and 100 %"),
        ((0.1, 0.1, 0.1, 0.1, 0.0), 0.001, "does not hold", " 100 %"),  # equivalence at one
        ((0.1, 0.1, 0.1, 0.0, 0.003), 0.001, "does not hold", " 50 %"),  # small, but above 0 at 100 %
        (0.02, 0.05, "cannot be told", " 5"),
    ],
)
def test_training_loss(gain: float, noise: float, verdict: str, where: str) -> None:
    claim = judge(rows(6, {"final/train_loss": gain}, noise=noise))["train_loss"]
    assert (claim.verdict, where in claim.reason) == (verdict, True), claim.reason


@pytest.mark.parametrize(
    ("gain", "verdict", "where"),
    [
        (CROSSING, "holds", "25, 50 and 100 %"),
        (0.1, "does not hold", "25 %"),
        ((-0.1, -0.1, 0.0, 0.0, 0.0), "does not hold", "25 %"),
        (-0.1, "cannot be told", ""),
        ((0.1, -0.05, -0.05, 0.05, 0.05), "cannot be told", ""),  # a dip is no crossover
    ],
)
def test_validation_loss(gain: float, verdict: str, where: str) -> None:
    claim = judge(rows(8, {"final/val_loss": gain}))["val_loss"]
    assert (claim.verdict, where in claim.reason) == (verdict, True), claim.reason
    assert claim.percent == 100


@pytest.mark.parametrize(
    ("best", "scaled", "verdict"),
    [
        (GONE, CROSSING, "holds"),
        (CROSSING, GONE, "holds"),
        (CROSSING, CROSSING, "does not hold"),
    ],
)
def test_overfitting(best: tuple[float, ...], scaled: tuple[float, ...], verdict: str) -> None:
    gains = {"final/val_loss": CROSSING, "best/val_loss": best, "final/val_scaled_loss": scaled}
    claim = judge(rows(8, gains))["overfitting"]
    assert claim.verdict == verdict
    assert claim.effect == pytest.approx(-0.05, abs=0.005)


@pytest.mark.parametrize(
    "gains",
    [{"final/val_loss": 0.1}, dict.fromkeys(("final/val_loss", "best/val_loss", "final/val_scaled_loss"), -0.003)],
)
def test_without_a_deficit_there_is_nothing_to_explain(gains: dict[str, float]) -> None:
    """Nor if it is within the margin."""
    claim = judge(rows(8, gains))["overfitting"]
    assert (claim.verdict, "0.005" in claim.reason) == ("cannot be told", True)


def test_a_crossover_into_the_margin_says_nothing() -> None:
    claims = judge(rows(8, {"final/val_loss": (0.1, 0.05, -0.002, -0.002, -0.002)}, noise=0.0003))
    assert claims["val_loss"].verdict == "does not hold"  # from 25 % on there is no practical difference
    assert (claims["overfitting"].verdict, "0.005" in claims["overfitting"].reason) == ("cannot be told", True)


def test_cells_without_their_scores_are_no_error() -> None:
    table = [dataclasses.replace(row, scores={"final/val_loss": row.scores["final/val_loss"]}) for row in rows(8, {})]
    assert {(claim.verdict, claim.effect) for claim in judge(table).values()} == {("cannot be told", None)}


def test_cells_of_an_earlier_version_lack_temperature_scaling() -> None:
    table = [
        Row(row.cell, row.n_train, row.run_id, row.status, {k: v for k, v in row.scores.items() if "scaled" not in k})
        for row in rows(8, {})
    ]
    claim = judge(table)["overfitting"]
    assert (claim.verdict, "temperature" in claim.reason) == ("cannot be told", True)


@pytest.mark.parametrize(
    ("gains", "noise", "verdict", "number"),
    [
        ({}, 0.001, "holds", "1.5"),
        ({"final/val_accuracy": -0.01}, 0.001, "does not hold", "0.3"),
        ({"final/val_loss": 0.1}, 0.001, "does not hold", "25 and 50 %"),  # a doubling
        ({}, 0.02, "cannot be told", "0.3"),
    ],
)
def test_need(gains: dict[str, float], noise: float, verdict: str, number: str) -> None:
    claim = judge(rows(8, gains, noise=noise))["need"]
    assert (claim.verdict, number in claim.reason) == (verdict, True), claim.reason
    assert (claim.unit, claim.percent) == ("accuracy", 100)


def test_nothing_finished_is_no_error() -> None:
    for table in (
        [],
        [Row(Cell(5, "random", 0), 250, "", "open", {})],
        [row for row in rows(3, {}) if row.cell.init == "random"],
    ):
        claims = judge(table)
        assert {(claim.verdict, claim.effect, claim.n_replicates) for claim in claims.values()} == {
            ("cannot be told", None, 0)
        }
