"""Verdicts on constructed tables: every cell of the protocol's table of verdicts."""

import dataclasses

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
    assert "3 complete replicates, and 6 are the floor" in claim.reason
    assert claim.effect == pytest.approx(0.1, abs=0.005)
    assert claim.interval
    assert claim.interval[0] < claim.effect < claim.interval[1]
    assert "at 5 % and" in claim.observed


def test_one_replicate_has_no_interval() -> None:
    claims = judge(rows(1, {"final/train_loss": 0.1}))
    assert {claim.interval for claim in claims.values()} == {None}
    assert {claim.n_replicates for claim in claims.values()} == {1}


@pytest.mark.parametrize(
    ("gain", "verdict", "reason"),
    [
        (0.1, "holds", "above 0 at every fraction"),
        (-0.1, "does not hold", "at 5, 10, 25, 50 and 100 %"),
        ((0.1, 0.1, 0.1, 0.1, 0.0), "does not hold", "at 100 %"),  # equivalence at one
        ((0.1, 0.1, 0.1, 0.0, 0.003), "does not hold", "at 50 %"),  # small, but above 0 at 100 %
    ],
)
def test_training_loss(gain: float, verdict: str, reason: str) -> None:
    claim = judge(rows(6, {"final/train_loss": gain}))["train_loss"]
    assert (claim.verdict, reason in claim.reason) == (verdict, True)


def test_noise_cannot_be_told() -> None:
    claim = judge(rows(6, {"final/train_loss": 0.02}, noise=0.05))["train_loss"]
    assert claim.verdict == "cannot be told"
    assert "band contains 0 at" in claim.reason


@pytest.mark.parametrize(
    ("gain", "verdict", "reason"),
    [
        (CROSSING, "holds", "random is lower at 25, 50 and 100 %"),
        (0.1, "does not hold", "from 25 % on pretrained is lower, or within"),
        ((-0.1, -0.1, 0.0, 0.0, 0.0), "does not hold", "from 25 % on"),
        (-0.1, "cannot be told", "random is lower at every fraction"),
    ],
)
def test_validation_loss(gain: float, verdict: str, reason: str) -> None:
    claim = judge(rows(8, {"final/val_loss": gain}))["val_loss"]
    assert (claim.verdict, reason in claim.reason) == (verdict, True), claim.reason
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


def test_a_deficit_within_the_margin_is_none_that_could_be_gone() -> None:
    claim = judge(rows(8, dict.fromkeys(("final/val_loss", "best/val_loss", "final/val_scaled_loss"), -0.003)))
    assert (claim["overfitting"].verdict, "no deficit" in claim["overfitting"].reason) == ("cannot be told", True)


def test_a_crossover_into_the_margin_says_nothing() -> None:
    claims = judge(rows(8, {"final/val_loss": (0.1, 0.05, -0.002, -0.002, -0.002)}, noise=0.0003))
    assert claims["val_loss"].verdict == "does not hold"  # from 25 % on there is no practical difference
    assert "no deficit beyond 0.005 nats" in claims["overfitting"].reason


def test_cells_without_their_scores_are_no_error() -> None:
    table = [dataclasses.replace(row, scores={"final/val_loss": row.scores["final/val_loss"]}) for row in rows(8, {})]
    assert {(claim.verdict, claim.effect) for claim in judge(table).values()} == {("cannot be told", None)}


def test_a_dip_is_no_crossover() -> None:
    claim = judge(rows(8, {"final/val_loss": (0.1, -0.05, -0.05, 0.05, 0.05)}))["val_loss"]
    assert (claim.verdict, "no crossover" in claim.reason) == ("cannot be told", True)


def test_without_a_deficit_there_is_nothing_to_explain() -> None:
    claim = judge(rows(8, {"final/val_loss": 0.1}))["overfitting"]
    assert (claim.verdict, "nothing to explain" in claim.reason) == ("cannot be told", True)


def test_cells_of_an_earlier_version_lack_temperature_scaling() -> None:
    table = [
        Row(row.cell, row.n_train, row.run_id, row.status, {k: v for k, v in row.scores.items() if "scaled" not in k})
        for row in rows(8, {})
    ]
    assert "earlier version" in judge(table)["overfitting"].reason


@pytest.mark.parametrize(
    ("gains", "verdict", "reason"),
    [
        ({}, "holds", "the multiplier is at most 1.5"),
        ({"final/val_accuracy": -0.01}, "does not hold", "accuracy differs by more than 0.3 points"),
        ({"final/val_loss": 0.1}, "does not hold", "the multiplier exceeds 1.5 at 25 and 50 %"),  # a doubling
    ],
)
def test_need(gains: dict[str, float], verdict: str, reason: str) -> None:
    claim = judge(rows(8, gains))["need"]
    assert (claim.verdict, reason in claim.reason) == (verdict, True), claim.reason
    assert (claim.unit, claim.percent) == ("accuracy", 100)


def test_noisy_accuracy_is_not_equivalence() -> None:
    table = rows(8, {}, noise=0.02)
    claim = judge(table)["need"]
    assert (claim.verdict, "not shown to be within 0.3 points" in claim.reason) == ("cannot be told", True)


def test_nothing_finished_is_no_error() -> None:
    for table in (
        [],
        [Row(Cell(5, "random", 0), 250, "", "open", {})],
        [row for row in rows(3, {}) if row.cell.init == "random"],
    ):
        claims = judge(table)
        assert {claim.verdict for claim in claims.values()} == {"cannot be told"}
        assert {claim.effect for claim in claims.values()} == {None}
        assert all("no complete replicate" in claim.reason for claim in claims.values())
