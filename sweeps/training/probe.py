"""Fit a network's classifier alone to its optimum, on features that are computed once (Kornblith et al. 2019)."""

import time

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits
from torch import nn

from fmnist_transfer.data.examples import Examples
from fmnist_transfer.errors import UsageError
from fmnist_transfer.network.cnn2 import CLASSIFIER, find_classifier
from fmnist_transfer.network.weights import copy_state
from fmnist_transfer.training.device import use_precision
from fmnist_transfer.training.evaluation import evaluate, features, re_estimate_batch_norm
from fmnist_transfer.training.recipe import Precision
from fmnist_transfer.training.score import Epoch, History

PENALTIES = (1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5)  # L2, for the mean loss and standardised features
CHOOSING, FINAL, MOST_STEPS = 1e-4, 1e-5, 5_000  # largest gradient at the end, in nats; steps are never used up
Array = NDArray[np.float64]


def fit_probe(
    network: nn.Module, train: Examples, val: Examples, *, precision: Precision, classifier: str = CLASSIFIER
) -> History:
    """Fit the classifier in place, on the device of `train`; the history has one epoch, whose step counts iterations.

    Batch-norm statistics are re-estimated first; the trunk's weights stay. Features are not augmented. Nothing is
    random. Raises UsageError if `classifier` is not an `nn.Linear` that outputs the logits.
    """
    start = time.perf_counter()
    layer = find_classifier(network, classifier)
    if not isinstance(layer, nn.Linear):
        raise UsageError(f"frozen and lp-ft fit an nn.Linear, and {classifier!r} is a {type(layer).__name__}")
    use_precision(precision)
    re_estimate_batch_norm(network, train)
    inputs, has_bias = features(network, train, classifier), layer.bias is not None
    with threadpool_limits(1):
        values = inputs.images.double().cpu().numpy()
        weights, bias, n_steps = _optimum(values, inputs.labels.cpu().numpy(), has_bias=has_bias)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(weights))
        if has_bias:
            layer.bias.copy_(torch.from_numpy(bias))
        train_loss = float(F.cross_entropy(layer(inputs.images), inputs.labels))
    seconds, scores = time.perf_counter() - start, evaluate(network, val)
    epoch = Epoch(1, n_steps, train_loss, scores.loss, scores.accuracy, 0.0, time.perf_counter() - start, seconds)
    return History((epoch,), 1, copy_state(network))


def _optimum(inputs: Array, labels: NDArray[np.int64], *, has_bias: bool) -> tuple[Array, Array, int]:
    """Return weights [n_classes, n_features] and biases [n_classes] for inputs [n, n_features]; and iterations."""
    from sklearn import linear_model, metrics, preprocessing  # a second, which no other init needs

    scaler = preprocessing.StandardScaler(with_mean=has_bias)
    inputs = scaler.fit_transform(inputs)
    model = linear_model.LogisticRegression(fit_intercept=has_bias, max_iter=MOST_STEPS, warm_start=True)
    held, losses = held_out(labels), {}  # mean losses of held-out images, in nats; they choose the penalty
    for penalty in PENALTIES if held.any() else ():
        model.set_params(C=1 / (penalty * (~held).sum()), tol=CHOOSING)  # scikit-learn sums losses over images
        model.fit(inputs[~held], labels[~held])
        losses[penalty] = metrics.log_loss(labels[held], model.predict_proba(inputs[held]))
    penalty = min(losses, key=losses.__getitem__, default=1e-2)
    model.set_params(C=1 / (penalty * len(labels)), tol=FINAL).fit(inputs, labels)
    weights, bias = model.coef_ / scaler.scale_, np.broadcast_to(model.intercept_, len(model.coef_))
    if has_bias:
        bias = bias - weights @ scaler.mean_
    if len(weights) == 1:  # of two classes scikit-learn gives the difference
        weights, bias = np.concatenate([-weights, weights]) / 2, np.concatenate([-bias, bias]) / 2
    return weights, bias, int(model.n_iter_[0])


def held_out(labels: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Mark the first fifth of each class's images, at least one; none if a class has a single image."""
    held = np.zeros(len(labels), dtype=bool)
    classes = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    for own in classes if min(map(len, classes)) > 1 else ():
        held[own[: max(1, len(own) // 5)]] = True
    return held
