"""Networks trained together get the numbers that each gets alone."""

import dataclasses
import re

import pytest
import torch

from fmnist_transfer.data.examples import Examples, Half, fraction, nested_order
from fmnist_transfer.errors import Interrupted
from fmnist_transfer.network.cnn2 import CNN2, CNN2Spec, fresh_network
from fmnist_transfer.network.weights import copy_state
from fmnist_transfer.seeding import Streams
from fmnist_transfer.training.fit import Diverged, fit, train_on_half
from fmnist_transfer.training.recipe import Recipe
from fmnist_transfer.training.score import History, score
from fmnist_transfer.training.stacked import Group, Stack, StackedDropout, fit_stacked

DROPPING = CNN2Spec(channels=(3, 4), fc1=8, fc2=6, fc_dropout=0.3)
DEEP = CNN2Spec(channels=(2, 3), convs_per_block=2, kernel_size=5, fc1=8, fc2=6, fc_dropout=0.0)
PLAIN = CNN2Spec(channels=(3, 4), normalisation="none", fc1=8, fc2=6, fc_dropout=0.2)
ADAMW = Recipe(batch_size=16, epochs=2, learning_rate=3e-3, flip=True, shift=2)
ADAM = Recipe(optimizer="adam", batch_size=32, epochs=2, learning_rate=0.01, schedule="constant")
CONVOLUTION_BIASES = ("blocks.0.0.bias", "blocks.1.0.bias", "blocks.0.3.bias", "blocks.1.3.bias")


def is_determined(name: str, spec: CNN2Spec) -> bool:
    """Batch norm takes a convolution's bias out again: its gradient is rounding, which Adam blows up to full steps."""
    return spec.normalisation == "none" or not (name in CONVOLUTION_BIASES or name.endswith("running_mean"))


def pretrained(spec: CNN2Spec, seed: int) -> CNN2:
    """Stands for an init that starts elsewhere than at the streams' own draws."""
    return fresh_network(spec, Streams(1_000 + seed))


def make_groups(spec: CNN2Spec, half: Half, n: int = 100) -> list[Group]:
    """Two replicates of two inits."""
    groups = []
    for replicate in range(2):
        streams = Streams(7, replicate, "target")
        order = nested_order(half.train.labels, streams.generator("subset"))[:n]
        networks = (pretrained(spec, replicate), fresh_network(spec, streams))
        groups.append(Group(networks, half.train.take(order), streams))
    return groups


@pytest.mark.parametrize(
    ("spec", "recipe"),
    [
        (DROPPING, ADAMW),
        (DEEP, ADAMW),
        (PLAIN, ADAM),
        (DROPPING, ADAM),
    ],
)
def test_each_network_is_trained_as_if_alone(spec: CNN2Spec, recipe: Recipe, half: Half) -> None:
    groups = make_groups(spec, half)
    together = fit_stacked(groups, half.val, recipe)
    alone = []
    for group in groups:
        for network in group.networks:
            alone.append((fit(network, group.train, half.val, recipe, group.streams), network.state_dict()))
    assert len(together) == len(alone) == 4
    for (history, state), (expected, expected_state) in zip(together, alone, strict=True):
        assert isinstance(history, History)
        assert history.best_epoch == expected.best_epoch
        for epoch, one in zip(history.epochs, expected.epochs, strict=True):
            assert (epoch.epoch, epoch.step, epoch.learning_rate) == (one.epoch, one.step, one.learning_rate)
            assert epoch.train_loss == pytest.approx(one.train_loss, rel=1e-3)
            assert epoch.val_loss == pytest.approx(one.val_loss, rel=1e-3)
            assert abs(epoch.val_accuracy - one.val_accuracy) <= 1 / 50
        assert set(state) == set(expected_state)
        for name in filter(lambda name: is_determined(name, spec), expected_state):
            tensor = expected_state[name]
            torch.testing.assert_close(state[name], tensor, rtol=1e-2, atol=2e-4, msg=name)


@pytest.mark.parametrize("n_steps", [1, 2, 3])
def test_step_by_step_the_weights_are_those_of_the_single_network(n_steps: int, half: Half) -> None:
    (group, other) = make_groups(DROPPING, half)
    recipe = dataclasses.replace(ADAMW, epochs=1)
    together = fit_stacked([group, other], half.val, recipe, steps_per_epoch=n_steps)
    network = group.networks[1]
    before = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
    fit(network, group.train, half.val, recipe, group.streams, steps_per_epoch=n_steps)
    for name, parameter in network.named_parameters():
        if not is_determined(name, DROPPING):
            continue
        assert not torch.equal(parameter, before[name])
        torch.testing.assert_close(together[1][1][name], parameter.detach(), rtol=1e-4, atol=1e-5, msg=name)


def test_the_networks_of_a_group_share_their_masks_and_groups_do_not() -> None:
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    masks = StackedDropout(0.5, [(generator, 2) for generator in generators])(torch.ones(4, 10, 40))
    assert masks.unique().tolist() == [0.0, 2.0]
    assert torch.equal(masks[0], masks[1])
    assert torch.equal(masks[2], masks[3])
    assert not torch.equal(masks[0], masks[2])


def test_source_networks_of_different_replicates_train_together_as_each_alone(half: Half) -> None:
    """Groups of one network, each with its own order of the whole half; evaluated at twenty points only."""
    recipe, points = dataclasses.replace(ADAMW, epochs=40, batch_size=128, learning_rate=1e-3), []
    replicates = [Streams(3, replicate) for replicate in range(3)]
    groups = [Group((fresh_network(DROPPING, s),), fraction(half.train, 100, s), s) for s in replicates]
    together = fit_stacked(groups, half.val, recipe, on_epoch=points.append)
    assert points == list(range(2, 41, 2))
    for streams, (history, state) in zip(replicates, together, strict=True):
        expected = train_on_half(DROPPING, half, recipe, streams, "cpu")
        assert isinstance(history, History)
        assert [epoch.epoch for epoch in history.epochs] == points
        network = fresh_network(DROPPING, streams)
        initial = copy_state(network)
        network.load_state_dict(state)
        result = score(network, history, fraction(half.train, 100, streams), half, initial)
        assert result.val.loss == pytest.approx(expected.val.loss, rel=1e-3)
        assert result.test.accuracy == pytest.approx(expected.test.accuracy, abs=0.011)
        assert result.distances["all"] == pytest.approx(expected.distances["all"], rel=1e-2)


def test_a_network_that_diverges_leaves_the_others_alone(half: Half) -> None:
    groups = make_groups(DROPPING, half)
    with torch.no_grad():
        groups[0].networks[1].fc3.weight.fill_(float("nan"))
    together = fit_stacked(groups, half.val, ADAMW)
    assert isinstance(together[1][0], Diverged)
    assert re.search(r"nan.*epoch 1\b.*step 1\b", str(together[1][0]))
    (expected, *_) = fit(groups[0].networks[0], groups[0].train, half.val, ADAMW, groups[0].streams).epochs
    for i in (0, 2, 3):
        history = together[i][0]
        assert isinstance(history, History)
        assert len(history.epochs) == ADAMW.epochs
    assert together[0][0].epochs[0].val_loss == pytest.approx(expected.val_loss, rel=1e-3)


def test_it_stops_when_asked(half: Half) -> None:
    with pytest.raises(Interrupted):
        fit_stacked(make_groups(DROPPING, half), half.val, ADAMW, should_stop=lambda: True)


def test_fewer_images_than_a_batch_are_one_batch(half: Half) -> None:
    recipe = dataclasses.replace(ADAMW, batch_size=256)
    history, _ = fit_stacked(make_groups(DROPPING, half, n=10), half.val, recipe)[0]
    assert isinstance(history, History)
    assert [epoch.step for epoch in history.epochs] == [1, 2]


@pytest.mark.parametrize("stacked", [False, True])
def test_bfloat16_scores_agree_within_the_noise_of_replicates(stacked: bool, half: Half) -> None:
    spec, recipe = dataclasses.replace(DROPPING, fc_dropout=0.0), Recipe(batch_size=25, epochs=6)

    def losses(precision: str) -> torch.Tensor:
        groups = [Group((fresh_network(spec, Streams(seed)),), half.train, Streams(seed)) for seed in range(4)]
        if stacked:
            return torch.tensor(
                [h.final.val_loss for h, _ in fit_stacked(groups, half.val, recipe, precision=precision)]
            )
        fitted = [fit(g.networks[0], g.train, half.val, recipe, g.streams, precision=precision) for g in groups]
        return torch.tensor([history.final.val_loss for history in fitted])

    exact, rounded = losses("float32"), losses("bf16")
    assert not torch.equal(exact, rounded)  # the option does something
    assert abs(exact.mean() - rounded.mean()) < exact.std()


def test_a_step_reads_its_number_from_the_device(half: Half) -> None:
    """What a CUDA graph needs: the same call, again and again, is one step after the other."""
    stack = Stack(make_groups(DROPPING, half), dataclasses.replace(ADAMW, epochs=1), 6, "float32")
    losses = stack.run_epoch(1, lambda: False)
    assert int(stack.step_number) == 6
    assert losses.shape == (6, 4)
    assert bool((losses > 0).all())
    assert float(stack.optimizer.param_groups[0]["lr"]) == pytest.approx(ADAMW.learning_rate_at(5, 6))


def test_examples_are_cut_at_the_front(half: Half) -> None:
    first: Examples = half.val.first(3)
    assert torch.equal(first.labels, half.val.labels[:3])
