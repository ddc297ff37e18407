"""Train a network's classifier alone to its optimum, by scikit-learn's multinomial logistic regression (L-BFGS).

The features, which are the classifier's inputs without augmentation, are computed once. Kornblith et al. 2019 judge
features in this way; stochastic gradient descent for a few epochs would judge the optimiser.
"""

import time

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fmnist_transfer.data.examples import Examples
from fmnist_transfer.errors import UsageError
from fmnist_transfer.network.cnn2 import CLASSIFIER, find_classifier
from fmnist_transfer.network.weights import copy_state
from fmnist_transfer.training.device import use_precision
from fmnist_transfer.training.evaluation import evaluate, features, re_estimate_batch_norm, scores_of
from fmnist_transfer.training.recipe import Precision
from fmnist_transfer.training.score import Epoch, History

PENALTIES = (1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5)  # L2, for the mean loss and standardised features
HELD_OUT = 5  # one in so many images of each class chooses the penalty
CHOOSING, FINAL, MOST_STEPS = 1e-4, 1e-5, 5_000  # largest gradient at the end, in nats; steps are never used up


def fit_probe(
    network: nn.Module,
    train: Examples,
    val: Examples,
    *,
    classifier: str = CLASSIFIER,
    precision: Precision = "float32",
) -> History:
    """Fit the classifier in place, on the device of `train`; the history has one epoch, whose step counts iterations.

    Batch-norm statistics are re-estimated first; the trunk's weights stay. The L2 penalty is chosen on a fifth of each
    class's training images, then the fit is repeated on all. Nothing is random, and BLAS gets one thread. At 25,000
    images of 64 features it takes 5 s (one core, AMD EPYC, busy), at 1,250 0.3 s. Raises UsageError if `classifier` is
    not an `nn.Linear` that outputs the logits, or if `train` lacks a class.
    """
    from sklearn.preprocessing import StandardScaler  # a second to import, which no other init needs
    from threadpoolctl import threadpool_limits

    start = time.perf_counter()
    layer = find_classifier(network, classifier)
    if not isinstance(layer, nn.Linear):
        raise UsageError(f"frozen and lp-ft fit an nn.Linear, and {classifier!r} is a {type(layer).__name__}")
    use_precision(precision)
    re_estimate_batch_norm(network, train)
    inputs = features(network, train, classifier)
    labels = inputs.labels.cpu().numpy()
    if len(np.unique(labels)) != layer.out_features:
        raise UsageError(f"frozen and lp-ft need images of all {layer.out_features} classes")
    scaler = StandardScaler(with_mean=layer.bias is not None)
    with threadpool_limits(1):
        standardised = scaler.fit_transform(inputs.images.double().cpu().numpy())
        weights, bias, n_steps = _fit(standardised, labels, has_bias=layer.bias is not None)
    weights /= scaler.scale_
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(weights))
        if layer.bias is not None:
            layer.bias.copy_(torch.from_numpy(bias - weights @ scaler.mean_))
        train_loss = scores_of(layer(inputs.images), inputs.labels).loss
    train_seconds = time.perf_counter() - start
    scores = evaluate(network, val)
    seconds = time.perf_counter() - start
    epoch = Epoch(1, n_steps, train_loss, scores.loss, scores.accuracy, 0.0, seconds, train_seconds)
    return History((epoch,), 1, copy_state(network))


def _fit(
    inputs: NDArray[np.float64], labels: NDArray[np.int64], *, has_bias: bool
) -> tuple[NDArray[np.float64], NDArray[np.float64], int]:
    """Return weights [n_classes, n_features], biases [n_classes] and the number of iterations of the final fit."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import log_loss

    model = LogisticRegression(
        fit_intercept=has_bias, max_iter=MOST_STEPS, warm_start=True
    )  # each fit starts from the last
    held = held_out(labels)
    losses = {}  # of held-out images, in nats
    for penalty in PENALTIES if held.any() else ():
        model.set_params(C=1 / (penalty * (~held).sum()), tol=CHOOSING)  # scikit-learn sums losses over images
        model.fit(inputs[~held], labels[~held])
        losses[penalty] = log_loss(labels[held], model.predict_proba(inputs[held]))
    penalty = min(losses, key=losses.__getitem__, default=1e-2)
    model.set_params(C=1 / (penalty * len(labels)), tol=FINAL)
    model.fit(inputs, labels)
    weights, bias = model.coef_, np.broadcast_to(model.intercept_, len(model.coef_))
    if len(weights) == 1:  # of two classes scikit-learn gives the difference
        weights, bias = np.concatenate([-weights, weights]) / 2, np.concatenate([-bias, bias]) / 2
    return weights.copy(), bias.copy(), int(model.n_iter_[0])


def held_out(labels: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Mark the first fifth of each class's images, at least one; none if a class has a single image."""
    held = np.zeros(len(labels), dtype=bool)
    classes = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    for own in classes if min(map(len, classes)) > 1 else ():
        held[own[: max(1, len(own) // HELD_OUT)]] = True
    return held
