"""A classifier fitted to its optimum, written back into its network."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.special import log_softmax
from synthetic import SMALL_SPEC
from torch import nn

from fmnist_transfer.data.examples import Examples, Half, fraction
from fmnist_transfer.errors import UsageError
from fmnist_transfer.network.cnn2 import fresh_network
from fmnist_transfer.network.weights import copy_state, weights_digest
from fmnist_transfer.seeding import Streams
from fmnist_transfer.training.evaluation import evaluate, features
from sweeps.training import probe
from sweeps.training.probe import held_out

fit_probe = partial(probe.fit_probe, precision="float32")


def test_only_the_classifier_and_batch_norms_statistics_move(half: Half) -> None:
    digests = set()
    for _ in range(2):
        network = fresh_network(SMALL_SPEC, Streams(0))
        start = copy_state(network)
        history = fit_probe(network, half.train, half.val)
        digests.add(weights_digest(network.state_dict()))
    assert len(digests) == 1
    moved = {name for name, tensor in network.state_dict().items() if not torch.equal(tensor, start[name])}
    assert {name for name in moved if "running" not in name and "tracked" not in name} == {"fc3.weight", "fc3.bias"}
    assert network.fc3.weight.dtype == torch.float32
    (epoch,) = history.epochs
    assert (epoch.epoch, history.best_epoch) == (1, 1)
    scores = evaluate(network, half.val)
    assert (epoch.val_loss, epoch.val_accuracy) == (scores.loss, scores.accuracy)
    assert epoch.train_loss == pytest.approx(evaluate(network, half.train).loss, rel=1e-5)
    assert weights_digest(history.best_state) == weights_digest(network.state_dict())


@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("n_classes", [2, 3])
def test_it_is_the_optimum_by_another_optimiser(
    n_classes: int, has_bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "PENALTIES", (0.1,))
    monkeypatch.setattr(probe, "FINAL", 1e-8)
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % n_classes
    images = torch.randn(60, 1, 2, 2, generator=generator) + labels[:, None, None, None]
    images *= torch.tensor([1.0, 5.0, 0.2, 0.0]).reshape(2, 2)
    examples = Examples(images, labels)
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, n_classes, bias=has_bias))
    fit_probe(network, examples, examples, classifier="1")

    inputs = features(network, examples, "1").images.double().numpy()
    spread = inputs.std(0)
    scaled = (inputs - inputs.mean(0) * has_bias) / np.where(spread == 0, 1, spread)

    def logits(flat: np.ndarray) -> np.ndarray:
        return scaled @ flat[:-n_classes].reshape(n_classes, 4).T + flat[-n_classes:] * has_bias

    def loss(flat: np.ndarray) -> float:
        weights = flat[:-n_classes].reshape(n_classes, 4)
        # with two classes scikit-learn penalises the difference of their weights
        squares = ((weights[1] - weights[0]) ** 2).sum() if n_classes == 2 else (weights**2).sum()
        return float(-log_softmax(logits(flat), axis=1)[np.arange(60), labels.numpy()].mean() + 0.1 * squares / 2)

    best = minimize(loss, np.zeros(5 * n_classes), tol=1e-8).x
    with torch.inference_mode():
        fitted = network[1](torch.from_numpy(inputs).float()).numpy()
    assert log_softmax(fitted, axis=1) == pytest.approx(log_softmax(logits(best), axis=1), abs=1e-3)


def test_the_penalty_is_chosen_on_a_fifth_of_each_class_and_by_no_other_image(half: Half) -> None:
    labels = np.array([0] * 12 + [1] * 5 + [2] * 2)
    assert np.flatnonzero(held_out(labels)).tolist() == [0, 1, 12, 17]
    assert not held_out(np.array([0, 0, 0, 1])).any()
    network, other = fresh_network(SMALL_SPEC, Streams(0)), fresh_network(SMALL_SPEC, Streams(0))
    fit_probe(network, half.train, half.val)
    fit_probe(other, half.train, half.test)
    assert weights_digest(network.state_dict()) == weights_digest(other.state_dict())


@pytest.mark.parametrize("percent", [2, 4])
def test_one_or_two_images_of_a_class_are_enough(percent: int, half: Half) -> None:
    few = fraction(half.train, percent, Streams(0))
    assert torch.bincount(few.labels).tolist() == [percent // 2] * 5
    assert fit_probe(fresh_network(SMALL_SPEC, Streams(0)), few, half.val).final.train_loss < math.log(5)


def test_what_is_no_linear_classifier_is_refused(half: Half) -> None:
    network = fresh_network(SMALL_SPEC, Streams(0))
    with pytest.raises(UsageError, match="'fc2' is no classifier"):
        fit_probe(network, half.train, half.val, classifier="fc2")
    with pytest.raises(UsageError, match="'blocks' is a Sequential"):
        fit_probe(network, half.train, half.val, classifier="blocks")
