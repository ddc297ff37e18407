"""Predictions on constructed sweeps."""

import dataclasses

import pytest
from constructed import rows, sweep

from fmnist_transfer.recipe import REFERENCE_RECIPE, Recipe
from sweeps.predictions import PREDICTIONS, predict

CROSSING = (0.1, 0.05, -0.05, -0.05, -0.05)
HELPS_EARLY = (0.1, 0.1, 0.0, 0.0, 0.0)
PLAIN = sweep(rows(8, {}))


def test_alone_a_sweep_says_what_is_missing() -> None:
    found = predict(PLAIN, [])
    assert set(found) == set(PREDICTIONS)
    for name, needed in {
        "P1": "cnn2-reference",
        "P3": "--budget steps",
        "P5": "others",
        "P7": "--recipe tuned",
    }.items():
        assert (found[name].verdict, needed in found[name].reason) == ("cannot be told", True)


@pytest.mark.parametrize(
    ("gains", "verdict"),
    [
        ({"final/train_loss": 0.1, "final/val_loss": CROSSING}, "holds"),
        ({"final/train_loss": -0.1, "final/val_loss": CROSSING}, "does not hold"),
        ({"final/train_loss": 0.1, "final/val_loss": -0.1}, "cannot be told"),
    ],
)
def test_p1_the_reports_pattern(gains: dict[str, float], verdict: str) -> None:
    reference = sweep(rows(8, gains), recipe=REFERENCE_RECIPE)
    assert predict(PLAIN, [reference])["P1"].verdict == verdict


@pytest.mark.parametrize(
    ("best", "scaled", "verdict"),
    [
        ((0.1, 0.05, 0.02, 0.05, -0.05), CROSSING, "holds"),
        (CROSSING, (0.1, 0.1, 0.1, 0.1, 0.1), "holds"),
        ((0.1, -0.05, -0.05, -0.05, -0.05), (0.1, -0.05, -0.05, -0.05, -0.05), "does not hold"),
        (CROSSING, CROSSING, "cannot be told"),
    ],
)
def test_p2_the_crossover_moves(best: tuple[float, ...], scaled: tuple[float, ...], verdict: str) -> None:
    gains = {"final/val_loss": CROSSING, "best/val_loss": best, "final/val_scaled_loss": scaled}
    found = predict(sweep(rows(8, gains)), [])["P2"]
    assert found.verdict == verdict, found.observed


def test_p2_without_a_crossover_nothing_moves() -> None:
    assert "none to move" in predict(sweep(rows(8, {"final/val_loss": 0.1})), [])["P2"].reason


@pytest.mark.parametrize(("by_steps", "verdict"), [(0.01, "holds"), (0.08, "does not hold")])
def test_p3_equal_steps(by_steps: float, verdict: str) -> None:
    epochs = sweep(rows(8, {"final/val_loss": 0.1}))
    steps = sweep(rows(8, {"final/val_loss": by_steps}), budget="steps")
    assert predict(epochs, [steps])["P3"].verdict == verdict
    assert predict(steps, [epochs])["P3"].verdict == verdict  # whichever comes first
    other = dataclasses.replace(steps, params=dict(steps.params) | {"weights_digest": "another"})
    assert "of the same model" in predict(epochs, [other])["P3"].reason


def test_p4_a_deficit_that_shrink_perturb_removes_and_selffer_has() -> None:
    # Against random: pretrained -0.1, selffer -0.1, shrink-perturb 0.
    table = rows(8, {"final/val_loss": -0.1}, inits=("pretrained", "random", "selffer", "shrink-perturb"))
    removed = [
        dataclasses.replace(row, scores=dict(row.scores) | {"final/val_loss": row.scores["final/val_loss"] - 0.1})
        if row.cell.init == "shrink-perturb"
        else row
        for row in table
    ]
    assert predict(sweep(removed), [])["P4"].verdict == "holds"
    assert predict(sweep(table), [])["P4"].verdict == "does not hold"
    assert "no deficit" in predict(sweep(rows(8, {"final/val_loss": 0.1})), [])["P4"].reason


def test_p5_splits_are_ranked_and_not_pooled() -> None:
    def of(split: str, gain: float) -> object:
        return sweep(rows(2, {"final/val_loss": gain}), split=split)

    semantic = [of("01234/56789", 0.01), of("56789/01234", 0.02)]
    others = [
        of(f"{digits}/", 0.05 + 0.01 * i) for i, digits in enumerate(("02468", "13579", "01357", "02479", "12589"))
    ]
    assert predict(semantic[0], [semantic[1], *others])["P5"].verdict == "holds"  # p = 1 / 21
    few = predict(semantic[0], [semantic[1], *others[:2]])["P5"]
    assert (few.verdict, "p = 0.167" in few.reason) == ("cannot be told", True)


def test_p6_multiplier() -> None:
    falling = predict(sweep(rows(8, {"final/val_loss": (0.2, 0.1, 0.0, 0.0, 0.0)})), [])["P6"]
    assert falling.verdict == "holds", falling
    assert "2.00 at 5 %" in falling.observed  # random reaches at 10 % what pretrained has at 5
    rising = predict(sweep(rows(8, {"final/val_loss": (0.0, 0.0, 0.1, 0.1, 0.0)})), [])["P6"]
    assert (rising.verdict, "rises" in rising.reason) == ("does not hold", True)


@pytest.mark.parametrize(
    ("model", "tuned", "verdict"),
    [
        (0.0, HELPS_EARLY, "holds"),
        (0.1, HELPS_EARLY, "does not hold"),  # helps with the registered recipe, too
        (0.0, 0.1, "does not hold"),  # helps above 25 %
        (0.0, 0.0, "does not hold"),  # helps nowhere
    ],
)
def test_p7_recipes(model: float, tuned: float, verdict: str) -> None:
    registered = sweep(rows(8, {"final/val_loss": model}, noise=0.003))
    own = sweep(rows(8, {"final/val_loss": tuned}, noise=0.003), recipe_mode="tuned")
    found = predict(registered, [own])["P7"]
    assert found.verdict == verdict, found


def test_a_recipe_is_the_references_if_every_field_is() -> None:
    nearly = sweep(rows(8, {"final/train_loss": 0.1}), recipe=Recipe(**REFERENCE_RECIPE.to_dict() | {"epochs": 99}))
    assert "needs a sweep" in predict(nearly, [])["P1"].reason
