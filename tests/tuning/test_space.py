"""Every shape and both ends of every range build, are affordable, and take a step."""

import re
from typing import Any

import optuna
import pytest
import torch

from fmnist_transfer.data.examples import Half
from fmnist_transfer.errors import UsageError
from fmnist_transfer.network.cnn2 import HAND_MADE_SPEC, fresh_network
from fmnist_transfer.network.cost import training_cost
from fmnist_transfer.seeding import Streams
from fmnist_transfer.training.fit import fit
from fmnist_transfer.training.recipe import HAND_MADE_RECIPE
from tuning.space import LEARNING_RATE, WEIGHT_DECAY, affordable, on_edge, starts, suggest


def corners(max_cost: float | None) -> list[dict[str, Any]]:
    """Every network of the space with one end of every number, and the first with both."""
    found = []
    for network in (0, *range(len(affordable(max_cost)))):
        end = len(found) % 2
        numbers = {"network": network, "fc_dropout": 0.4 * end, "shift": end, "batch_size": (64, 128)[end]}
        found.append(numbers | {"learning_rate": LEARNING_RATE[end], "weight_decay": WEIGHT_DECAY[end]})
    return found


@pytest.mark.parametrize("params", corners(2.0))
def test_every_corner_builds_and_takes_a_step(params: dict[str, Any], half: Half) -> None:
    spec, recipe = suggest(optuna.trial.FixedTrial(params), epochs=1, max_cost=2.0)
    assert training_cost(spec) <= 2.0
    few = half.train.take(torch.arange(20))
    history = fit(fresh_network(spec, Streams(0)), few, half.val, recipe, Streams(0))
    assert history.final.step == 1


@pytest.mark.parametrize("max_cost", [0.5, 1.0, 4.0, None])
def test_networks_ascend_in_cost_up_to_the_limit_in_channels_that_are_multiples_of_16(max_cost: float | None) -> None:
    networks = affordable(max_cost)
    costs = [training_cost(spec) for spec in networks]
    assert costs == sorted(costs)
    assert costs[-1] <= (max_cost or costs[-1])
    assert all(channels % 16 == 0 for spec in networks for channels in spec.channels)
    assert {spec.convs_per_block for spec in networks} == ({1} if max_cost == 0.5 else {1, 2})


def test_without_a_limit_the_space_has_two_and_three_blocks_both_kernels_and_up_to_64_channels_in_the_first() -> None:
    networks = affordable(None)
    assert {(len(spec.channels), spec.kernel_size) for spec in networks} == {(2, 3), (2, 5), (3, 3), (3, 5)}
    assert {spec.channels[0] for spec in networks} == {16, 32, 48, 64}
    assert len(set(networks)) == len(networks) > 40


def test_a_limit_below_every_network_is_refused() -> None:
    with pytest.raises(UsageError, match=r"--max-cost 0\.1\b.*\bnone\b"):
        affordable(0.1)


@pytest.mark.parametrize(("limit", "channels"), [(1.0, (16, 32)), (2.0, (16, 48)), (4.0, (32, 96)), (None, (32, 96))])
def test_the_hand_made_configuration_is_as_wide_as_the_limit_allows(
    limit: float | None, channels: tuple[int, int]
) -> None:
    spec, recipe = suggest(optuna.trial.FixedTrial(starts(limit)[0]), epochs=6, max_cost=limit)
    assert spec.channels == channels
    assert recipe == HAND_MADE_RECIPE
    assert spec == HAND_MADE_SPEC or limit != 1.0


@pytest.mark.parametrize("limit", [0.5, 1.0, None])
def test_the_first_trials_differ_and_lie_in_the_space(limit: float | None) -> None:
    first = [suggest(optuna.trial.FixedTrial(params), epochs=6, max_cost=limit) for params in starts(limit)]
    assert len(set(first)) == len(first) > 1


def test_a_best_point_on_the_edge_is_told() -> None:
    study = optuna.create_study()
    study.enqueue_trial(corners(1.0)[1] | {"fc_dropout": 0.0})
    study.optimize(lambda trial: float(len(suggest(trial, epochs=1, max_cost=1.0))), n_trials=1)
    edges = on_edge(study.best_trial)
    assert any(re.search(r"learning_rate\b.*\b0\.01\b.*\b0\.001\b.*\b0\.01\b", edge) for edge in edges)
    assert not any(edge.startswith(("network", "fc_dropout = 0 ")) for edge in edges)
