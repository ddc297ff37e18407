"""The training loop: steps, determinism, divergence, best epoch."""

import dataclasses
import math

import pytest
import torch

from fmnist_transfer.data.examples import Half
from fmnist_transfer.errors import Interrupted
from fmnist_transfer.network.cnn2 import CNN2, CNN2Spec, fresh_network
from fmnist_transfer.network.weights import weights_digest
from fmnist_transfer.seeding import Streams
from fmnist_transfer.training.evaluation import Scores, evaluate
from fmnist_transfer.training.fit import Diverged, Record, batches, fit, fit_and_score
from fmnist_transfer.training.recipe import Recipe
from fmnist_transfer.training.score import Epoch, evaluation_points

SPEC = CNN2Spec((4, 8), fc1=16, fc2=8)
RECIPE = Recipe(epochs=2, batch_size=32, flip=True, shift=2)


def train(half: Half, recipe: Recipe = RECIPE, streams: Streams = Streams(0), **options: object) -> CNN2:  # noqa: B008
    network = fresh_network(SPEC, streams)
    fit(network, half.train, half.val, recipe, streams, **options)
    return network


def test_equal_seeds_give_bit_identical_weights(half: Half) -> None:
    digests = [weights_digest(train(half, streams=Streams(seed)).state_dict()) for seed in (0, 0, 1)]
    assert digests[0] == digests[1] != digests[2]


def test_global_random_state_is_neither_used_nor_moved(half: Half) -> None:
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    one = weights_digest(train(half).state_dict())
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(2)
    assert weights_digest(train(half).state_dict()) == one


def test_callback_gets_each_epoch_with_steps_and_rate(half: Half) -> None:
    epochs: list[Epoch] = []
    network = train(half, on_epoch=epochs.append)
    assert [(e.epoch, e.step) for e in epochs] == [(1, 7), (2, 14)]  # 250 images, batches of 32, remainder dropped
    assert epochs[-1].learning_rate == RECIPE.learning_rate_at(13, 14)
    assert Scores(epochs[-1].val_loss, epochs[-1].val_accuracy) == evaluate(network, half.val)
    assert [e.train_loss for e in epochs] == pytest.approx([math.log(5)] * 2, rel=0.1)  # it has hardly begun to learn


def test_steps_budget_has_as_many_evaluations_but_more_steps(half: Half) -> None:
    epochs: list[Epoch] = []
    subset = half.train.take(torch.arange(40))
    network = fresh_network(SPEC, Streams(0))
    fit(network, subset, half.val, RECIPE, Streams(0), steps_per_epoch=7, on_epoch=epochs.append)
    assert [e.step for e in epochs] == [7, 14]


@pytest.mark.parametrize("steps_per_epoch", [None, 3])
def test_a_long_training_is_evaluated_at_twenty_equally_spaced_epochs(steps_per_epoch: int | None, half: Half) -> None:
    assert [evaluation_points(n) for n in (1, 3)] == [(1,), (1, 2, 3)]
    assert evaluation_points(20) == tuple(range(1, 21))
    assert evaluation_points(100) == tuple(range(5, 101, 5))
    assert (len(set(evaluation_points(21))), evaluation_points(21)[-1]) == (20, 21)
    epochs: list[Epoch] = []
    network, subset = fresh_network(SPEC, Streams(0)), half.train.take(torch.arange(32))
    recipe = dataclasses.replace(RECIPE, epochs=40)
    options = {"steps_per_epoch": steps_per_epoch, "on_epoch": epochs.append}
    history = fit(network, subset, half.val, recipe, Streams(0), **options)
    assert history.epochs == tuple(epochs)
    assert [epoch.epoch for epoch in epochs] == list(range(2, 41, 2))
    assert [epoch.step for epoch in epochs] == [(steps_per_epoch or 1) * epoch.epoch for epoch in epochs]
    best = min(epochs, key=lambda epoch: epoch.val_loss)
    assert history.best_epoch == best.epoch
    network.load_state_dict(history.best_state)
    assert evaluate(network, half.val).loss == best.val_loss


def test_seconds_of_epochs_without_evaluation_count_at_the_next() -> None:
    record = Record(Recipe(epochs=40), steps_per_epoch=2)
    for epoch in (1, 2):
        record.trained(epoch, torch.tensor([1.0, 2.0 * epoch]), 3.0)
    record.evaluated(Scores(0.5, 0.9), 1.0, dict)
    with pytest.raises(Diverged, match=r"nan at epoch 3, step 6\b"):
        record.trained(3, torch.tensor([1.0, math.nan]), 3.0)
    (epoch,) = record.epochs
    assert (epoch.epoch, epoch.step, epoch.train_loss, epoch.seconds, epoch.train_seconds) == (2, 4, 2.5, 7.0, 6.0)


@pytest.mark.parametrize("n", [3, 31, 32, 33])
def test_fewer_images_than_a_batch_are_one_batch(half: Half, n: int) -> None:
    epochs: list[Epoch] = []
    subset = half.train.take(torch.arange(n))
    fit(fresh_network(SPEC, Streams(0)), subset, half.val, RECIPE, Streams(0), on_epoch=epochs.append)
    assert [e.step for e in epochs] == [1, 2]


def test_batches_are_fresh_permutations_without_the_remainder() -> None:
    drawn = batches(10, 4, torch.Generator().manual_seed(0))
    first, second = torch.cat([next(drawn), next(drawn)]), torch.cat([next(drawn), next(drawn)])
    assert len(set(first.tolist())) == len(set(second.tolist())) == 8
    assert first.tolist() != second.tolist()


def test_every_flag_of_the_recipe_changes_the_result(half: Half) -> None:
    changes = {
        "optimizer": "adam",
        "learning_rate": 1e-3,
        "weight_decay": 0.5,
        "schedule": "constant",
        "batch_size": 50,
        "epochs": 3,
        "flip": False,
        "shift": 0,
        "warm_up": 0.5,
    }
    assert set(changes) == {field.name for field in dataclasses.fields(Recipe)}
    digests = {weights_digest(train(half).state_dict())}
    for field, value in changes.items():
        digests.add(weights_digest(train(half, Recipe(**RECIPE.to_dict() | {field: value})).state_dict()))
    assert len(digests) == 1 + len(changes)


def test_divergence_stops_and_says_where(half: Half) -> None:
    with pytest.raises(Diverged, match=r"(nan|inf).*epoch 1\b"):
        train(half, Recipe(epochs=2, batch_size=32, learning_rate=1e30))


def test_stop_is_asked_before_each_batch(half: Half) -> None:
    asked: list[int] = []

    def should_stop() -> bool:
        asked.append(1)
        return len(asked) == 5

    with pytest.raises(Interrupted):
        train(half, should_stop=should_stop)
    assert len(asked) == 5


def test_final_and_best_scores_belong_to_their_weights(half: Half) -> None:
    recipe = Recipe(epochs=4, batch_size=32, learning_rate=0.05, schedule="constant")
    network = fresh_network(SPEC, Streams(0))
    result = fit_and_score(network, half.train, half, recipe, Streams(0))
    losses = [epoch.val_loss for epoch in result.epochs]
    assert result.best_epoch == 1 + losses.index(min(losses))
    assert result.best.loss == pytest.approx(min(losses), rel=1e-5)
    assert result.val.loss == pytest.approx(losses[-1], rel=1e-5)
    assert evaluate(network, half.train) == result.train
    assert weights_digest(network.state_dict()) == weights_digest(result.final_state)
    numbers = result.to_dict()
    assert (numbers["test"]["loss"], numbers["test"]["accuracy"]) == (result.test.loss, result.test.accuracy)
    assert numbers["final"]["gap"] == pytest.approx(result.val.loss - result.train.loss)
    # After 28 steps on easy images it is not confident enough.
    assert result.calibration["val_scaled_loss"] < result.val.loss
    assert result.calibration["val_temperature"] < 1
