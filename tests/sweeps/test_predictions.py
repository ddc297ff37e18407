"""Predictions on constructed sweeps."""

import dataclasses

import pytest
from constructed import rows, sweep

from fmnist_transfer.model import REFERENCE_SPEC
from fmnist_transfer.recipe import REFERENCE_RECIPE, Recipe
from sweeps.predictions import PREDICTIONS, predict
from sweeps.table import Row

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
    reference = sweep(rows(8, gains), spec=REFERENCE_SPEC, recipe=REFERENCE_RECIPE)
    assert predict(PLAIN, [reference])["P1"].verdict == verdict


@pytest.mark.parametrize(
    ("best", "scaled", "verdict"),
    [
        ((0.1, 0.05, 0.02, 0.05, -0.05), CROSSING, "holds"),
        (CROSSING, (0.1, 0.1, 0.1, 0.1, 0.1), "holds"),
        ((0.1, -0.05, -0.05, -0.05, -0.05), (0.1, -0.05, -0.05, -0.05, -0.05), "does not hold"),
        (CROSSING, CROSSING, "cannot be told"),
        ((-0.02,) * 5, (-0.02,) * 5, "does not hold"),  # random is better everywhere: it moved left
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
    assert "otherwise alike" in predict(epochs, [other])["P3"].reason
    assert predict(steps, [other, epochs])["P3"].verdict == verdict
    few = predict(sweep(rows(5, {"final/val_loss": 0.1})), [steps])["P3"]
    assert (few.verdict, few.n_replicates) == ("cannot be told", 5)


def test_p3_noise_cannot_be_told() -> None:
    epochs = sweep(rows(8, {"final/val_loss": 0.1}, noise=0.02))
    steps = sweep(rows(8, {"final/val_loss": 0.05}, noise=0.02), budget="steps")
    found = predict(epochs, [steps])["P3"]
    assert (found.verdict, found.interval[0] < 0 < found.interval[1]) == ("cannot be told", True)


FOUR = ("pretrained", "random", "selffer", "shrink-perturb")


def shifted(table: list[Row], init: str, by: float) -> list[Row]:
    """Every loss of the init moved."""
    return [
        dataclasses.replace(row, scores=dict(row.scores) | {"final/val_loss": row.scores["final/val_loss"] + by})
        if row.cell.init == init
        else row
        for row in table
    ]


@pytest.mark.parametrize(
    ("shrink_perturb", "selffer", "verdict"),
    [
        (-0.1, 0.0, "holds"),  # shrink-perturb as good as random, selffer as bad as pretrained
        (0.0, 0.0, "cannot be told"),  # nothing is removed, but augmentation might
        (-0.1, -0.15, "does not hold"),  # selffer is better than random
        (-0.05, 0.0, "cannot be told"),  # half of it
    ],
)
def test_p4_what_removes_the_deficit(shrink_perturb: float, selffer: float, verdict: str) -> None:
    table = rows(8, {"final/val_loss": -0.1}, inits=FOUR)
    table = shifted(shifted(table, "shrink-perturb", shrink_perturb), "selffer", selffer)
    found = predict(sweep(table), [])["P4"]
    assert found.verdict == verdict, found
    assert found.effect == pytest.approx(-0.1, abs=0.005)


def test_p4_without_a_deficit_or_the_controls() -> None:
    assert "no deficit" in predict(sweep(rows(8, {"final/val_loss": 0.1})), [])["P4"].reason
    assert "needs six replicates" in predict(sweep(rows(8, {"final/val_loss": -0.1})), [])["P4"].reason
    few = [
        row
        for row in rows(8, {"final/val_loss": -0.1}, inits=FOUR)
        if row.cell.replicate < 2 or row.cell.init in FOUR[:2]
    ]
    assert "needs six replicates" in predict(sweep(few), [])["P4"].reason


def test_p4_augmentation() -> None:
    plain = sweep(shifted(rows(8, {"final/val_loss": -0.1}, inits=FOUR), "selffer", 0.01))
    augmented = sweep(rows(8, {"final/val_loss": 0.0}), recipe=Recipe(flip=True), weights_digest="other")
    assert predict(plain, [augmented])["P4"].verdict == "holds"
    elsewhere = dataclasses.replace(augmented, params=dict(augmented.params) | {"split": "56789/01234"})
    assert "needs this sweep without augmentation" in predict(plain, [elsewhere])["P4"].reason
    neither = sweep(rows(8, {"final/val_loss": -0.1}), recipe=Recipe(flip=True), weights_digest="other")
    assert predict(plain, [neither])["P4"].verdict == "does not hold"


def test_p5_splits_are_ranked_and_not_pooled() -> None:
    def of(split: str, gain: float) -> object:
        return sweep(rows(2, {"final/val_loss": gain}), split=split, weights_digest=split)

    semantic = [of("01234/56789", 0.01), of("56789/01234", 0.02)]
    others = [
        of(f"{digits}/", 0.05 + 0.01 * i) for i, digits in enumerate(("02468", "13579", "01357", "02479", "12589"))
    ]
    assert predict(semantic[0], [semantic[1], *others])["P5"].verdict == "holds"  # p = 1 / 21
    tuned = sweep(rows(2, {"final/val_loss": 0.5}), recipe_mode="tuned")
    assert predict(semantic[0], [tuned, semantic[1], *others])["P5"].verdict == "holds"  # the tuned one is not mixed in
    assert predict(semantic[0], [semantic[1], *others])["P5"].n_replicates == 7  # splits
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
        (0.001, HELPS_EARLY, "holds"),  # too little to be help
    ],
)
def test_p7_recipes(model: float, tuned: float, verdict: str) -> None:
    registered = sweep(rows(8, {"final/val_loss": model}, noise=0.0007))
    own = sweep(rows(8, {"final/val_loss": tuned}, noise=0.0007), recipe_mode="tuned")
    found = predict(registered, [own])["P7"]
    assert found.verdict == verdict, found


def test_p7_absence_of_evidence_is_no_evidence_of_absence() -> None:
    registered = sweep(rows(8, {"final/val_loss": 0.03}, noise=0.06))
    own = sweep(rows(8, {"final/val_loss": HELPS_EARLY}, noise=0.0007), recipe_mode="tuned")
    assert predict(registered, [own])["P7"].verdict == "cannot be told"
    early_only = dataclasses.replace(own, rows=tuple(row for row in own.rows if row.cell.percent <= 10))
    assert "above 25 %" in predict(registered, [early_only])["P7"].reason


def test_p2_needs_all_of_the_data() -> None:
    half = [row for row in rows(8, {"final/val_loss": CROSSING}) if row.cell.percent <= 50]
    assert "no fraction of 100 %" in predict(sweep(half), [])["P2"].reason


def test_a_recipe_is_the_references_if_every_field_is() -> None:
    recipe = Recipe(**REFERENCE_RECIPE.to_dict() | {"epochs": 99})
    for nearly in (
        sweep(rows(8, {}), spec=REFERENCE_SPEC, recipe=recipe),
        sweep(rows(8, {}), recipe=REFERENCE_RECIPE),
        sweep(rows(8, {}), spec=REFERENCE_SPEC, recipe=REFERENCE_RECIPE, budget="steps"),
    ):
        assert "needs a sweep" in predict(nearly, [])["P1"].reason
