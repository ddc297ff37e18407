"""Schedules as pure functions of step and number of steps."""

import pytest

from fmnist_transfer.network.cnn2 import CNN2Spec
from fmnist_transfer.training.recipe import REFERENCE_RECIPE, Recipe, still_known


def test_reference_is_the_reports() -> None:
    assert (REFERENCE_RECIPE.batch_size, REFERENCE_RECIPE.learning_rate, REFERENCE_RECIPE.epochs) == (256, 1e-4, 100)
    assert {REFERENCE_RECIPE.learning_rate_at(step, 400) for step in range(400)} == {1e-4}


def test_one_cycle_climbs_for_a_quarter_and_falls() -> None:
    recipe = Recipe(schedule="one-cycle", learning_rate=1.0)
    rates = [recipe.learning_rate_at(step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(0.1, abs=0.01)
    assert max(rates) == pytest.approx(1.0, abs=0.01)
    assert 24 <= rates.index(max(rates)) <= 25
    assert rates[-1] < 0.002


def test_warm_up_climbs_and_then_the_schedule_is_whole() -> None:
    constant = Recipe(schedule="constant", learning_rate=1.0, warm_up=0.2)
    assert [constant.learning_rate_at(step, 10) for step in range(4)] == pytest.approx([0.25, 0.75, 1.0, 1.0])
    late = Recipe(schedule="one-cycle", learning_rate=1.0, warm_up=0.5)
    rates = [late.learning_rate_at(step, 100) for step in range(100)]
    assert 49 <= rates.index(max(rates)) <= 50


def test_settings_of_earlier_versions_are_read_if_they_mean_the_same() -> None:
    old = CNN2Spec().to_dict() | {"pooling": "max", "conv_dropout": 0.0}
    assert CNN2Spec(**still_known(old)) == CNN2Spec()
    recipe = {name: value for name, value in REFERENCE_RECIPE.to_dict().items() if name != "warm_up"}
    assert Recipe(**still_known(recipe | {"erase": 0.0})) == REFERENCE_RECIPE
    with pytest.raises(TypeError, match="erase"):
        Recipe(**still_known(recipe | {"erase": 0.5}))


@pytest.mark.parametrize("schedule", ["constant", "one-cycle"])
def test_a_single_step_has_a_useful_rate(schedule: str) -> None:
    assert 0.5 <= Recipe(schedule=schedule, learning_rate=1.0).learning_rate_at(0, 1) <= 1.0


@pytest.mark.parametrize(("n", "steps"), [(1_250, 4), (256, 1), (100, 1), (511, 1), (512, 2)])
def test_steps_per_epoch_drop_the_remainder(n: int, steps: int) -> None:
    assert Recipe(batch_size=256).steps_per_epoch(n) == steps


def test_round_trip_and_unknown_field() -> None:
    assert Recipe(**REFERENCE_RECIPE.to_dict()) == REFERENCE_RECIPE
    with pytest.raises(TypeError, match="unexpected"):
        Recipe(**{"unexpected": 1})


@pytest.mark.parametrize("field", [{"learning_rate": 0.0}, {"epochs": 0}, {"batch_size": 1}, {"shift": 28}])
def test_impossible_recipe_is_refused(field: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(field))):
        Recipe(**field)
