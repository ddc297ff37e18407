"""The inits of CNN2: only where the layers but the classifier come from differs between them."""

import dataclasses
from functools import partial

import pytest
import torch
from synthetic import SMALL_SPEC as SPEC

from fmnist_transfer.data.examples import Half
from fmnist_transfer.errors import UsageError
from fmnist_transfer.network.cnn2 import CNN2Spec, fresh_network
from fmnist_transfer.network.weights import copy_state, weights_digest
from fmnist_transfer.seeding import Streams
from fmnist_transfer.training.recipe import Recipe
from fmnist_transfer.training.score import Epoch
from sweeps.grid import INITS, Init
from sweeps.training.inits import fit_arm, probing_epochs, starting_network

DRAW = partial(fresh_network, SPEC)
RECIPE = Recipe(epochs=1, batch_size=16, flip=True)


def test_pretrained_copies_everything_but_the_classifier(registered: dict[str, torch.Tensor]) -> None:
    state = starting_network("pretrained", DRAW, registered, Streams(0)).state_dict()
    equal = {name for name in state if torch.equal(state[name], registered[name])}
    assert set(state) - equal == {"fc3.weight", "fc3.bias"}


def test_random_shares_nothing_but_the_classifier_with_pretrained(registered: dict[str, torch.Tensor]) -> None:
    pretrained, random = (
        starting_network(init, DRAW, registered, Streams(0)).state_dict() for init in ("pretrained", "random")
    )
    equal = {name for name in random if torch.equal(random[name], pretrained[name])}
    assert equal == {"fc3.weight", "fc3.bias"}


def test_a_ten_class_classifier_is_no_obstacle() -> None:
    ten = dict(fresh_network(CNN2Spec((4, 8), fc1=16, fc2=8, n_classes=10), Streams(1)).state_dict())
    network = starting_network("pretrained", DRAW, ten, Streams(0))
    assert network.fc3.weight.shape == (5, 8)
    assert torch.equal(network.fc1.weight, ten["fc1.weight"])


def test_frozen_and_lp_ft_start_as_pretrained(registered: dict[str, torch.Tensor]) -> None:
    digests = {
        init: weights_digest(starting_network(init, DRAW, registered, Streams(0)).state_dict())
        for init in ("pretrained", "frozen", "lp-ft", "selffer")
    }
    assert len(set(digests.values())) == 1  # selffer: of what `train_before` gave


def test_shrink_perturb_is_the_sum_of_its_parts(registered: dict[str, torch.Tensor]) -> None:
    network = starting_network("shrink-perturb", DRAW, registered, Streams(0))
    fresh = fresh_network(SPEC, Streams(0)).state_dict()
    for name, parameter in network.named_parameters():
        classifier = name.startswith("fc3.")
        expected = fresh[name] if classifier else 0.4 * registered[name] + 0.1 * fresh[name]
        assert torch.equal(parameter, expected), name
    assert all(torch.equal(buffer, registered[name]) for name, buffer in network.named_buffers())


def test_matched_shares_mean_and_deviation_and_nothing_else(registered: dict[str, torch.Tensor]) -> None:
    network = starting_network("matched", DRAW, registered, Streams(0))
    again = starting_network("matched", DRAW, registered, Streams(0))
    assert weights_digest(network.state_dict()) == weights_digest(again.state_dict())
    for name, parameter in network.named_parameters():
        if not name.startswith("fc3."):
            one, other = parameter.detach(), registered[name]
            assert float(one.mean()) == pytest.approx(float(other.mean()), abs=1e-5)
            assert float(one.std(correction=0)) == pytest.approx(float(other.std(correction=0)), abs=1e-5)
            if other.std() > 0.01:
                assert abs(float(torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1])) < 0.9
    assert all(torch.equal(buffer, registered[name]) for name, buffer in network.named_buffers())


@pytest.mark.parametrize("init", INITS)
def test_every_init_draws_the_same_classifier(init: Init, registered: dict[str, torch.Tensor]) -> None:
    network = starting_network(init, DRAW, registered, Streams(5))
    fresh = fresh_network(SPEC, Streams(5))
    assert torch.equal(network.fc3.weight, fresh.fc3.weight)
    assert torch.equal(network.fc3.bias, fresh.fc3.bias)


def test_what_moves(half: Half, registered: dict[str, torch.Tensor]) -> None:
    recipe = dataclasses.replace(RECIPE, epochs=5)
    for init in INITS:
        network = starting_network(init, DRAW, registered, Streams(0))
        start = copy_state(network)
        history = fit_arm(network, half.train, half.val, recipe, Streams(0), init=init)
        assert [epoch.epoch for epoch in history.epochs] == [1, 2, 3, 4, 5]
        assert [epoch.step for epoch in history.epochs] == [15, 30, 45, 60, 75]
        moved = {name for name, p in network.named_parameters() if not torch.equal(p, start[name])}
        everything = {name for name, _ in network.named_parameters()}
        assert moved == ({"fc3.weight", "fc3.bias"} if init == "frozen" else everything), init


def test_lp_ft_trains_the_classifier_alone_for_a_fifth(half: Half, registered: dict[str, torch.Tensor]) -> None:
    network = starting_network("lp-ft", DRAW, registered, Streams(0))
    start, moved = copy_state(network), []

    def look(epoch: Epoch) -> None:
        moved.append({name for name, p in network.named_parameters() if not torch.equal(p, start[name])})

    recipe = dataclasses.replace(RECIPE, epochs=10)
    fit_arm(network, half.train, half.val, recipe, Streams(0), init="lp-ft", on_epoch=look)
    assert moved[:2] == [{"fc3.weight", "fc3.bias"}] * 2
    assert all(len(names) == len(list(network.parameters())) for names in moved[2:])
    with pytest.raises(UsageError, match="lp-ft"):
        probing_epochs(1)
