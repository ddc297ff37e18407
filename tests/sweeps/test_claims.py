"""Verdicts on constructed tables."""

import pytest

from sweeps.claims import judge
from sweeps.grid import Cell
from sweeps.table import Row

PERCENTS = (5, 25, 100)


def rows(n_replicates: int, **difference: float) -> list[Row]:
    """random - pretrained of each score, the same at every fraction, a little noise from replicate to replicate."""
    found = []
    for replicate in range(n_replicates):
        for percent in PERCENTS:
            for init in ("pretrained", "random"):
                noise = 0.001 * (replicate - n_replicates / 2) * (init == "random")
                scores = dict.fromkeys(
                    ("final/train_loss", "final/val_loss", "best/val_loss", "final/val_accuracy"), 0.5
                )
                for name, value in difference.items():
                    scores[name.replace("_", "/", 1)] += (value + noise) * (init == "random")
                found.append(Row(Cell(percent, init, replicate), 250, "id", "finished", scores))
    return found


def test_three_replicates_tell_nothing_but_what_is_seen() -> None:
    claims = judge(rows(3, final_train_loss=0.1))
    assert {claim["verdict"] for claim in claims.values()} == {"cannot be told"}
    assert "3 complete replicates, and 6 are the floor" in claims["train_loss"]["reason"]
    assert "+0.0995 [+0.0970, +0.1020] at 5 % and" in claims["train_loss"]["observed"]


@pytest.mark.parametrize(
    ("difference", "verdict"), [(0.1, "holds"), (-0.1, "does not hold"), (0.0005, "cannot be told")]
)
def test_training_loss(difference: float, verdict: str) -> None:
    assert judge(rows(6, final_train_loss=difference))["train_loss"]["verdict"] == verdict


def test_validation_loss_better_everywhere_refutes_the_second_claim() -> None:
    assert judge(rows(6, final_val_loss=0.1))["val_loss"]["verdict"] == "does not hold"


def test_incomplete_replicates_do_not_count() -> None:
    table = rows(6, final_train_loss=0.1)
    table[-1] = Row(table[-1].cell, 250, "id", "failed", {})
    claim = judge(table)["train_loss"]
    assert (claim["n_replicates"], claim["verdict"]) == (5, "cannot be told")


def test_nothing_finished_is_no_error() -> None:
    claims = judge([Row(Cell(5, "random", 0), 250, "", "open", {})])
    assert {claim["verdict"] for claim in claims.values()} == {"cannot be told"}
