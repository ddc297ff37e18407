"""Calibration of logits [n, n_classes], with labels [n] in 0 ... n_classes - 1 (Guo et al. 2017)."""

import math

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

Logits = NDArray[np.float64]
Labels = NDArray[np.int64]


def cross_entropies(logits: Logits, labels: Labels) -> NDArray[np.float64]:
    """Cross-entropy of each image, [n], in nats."""
    return -log_softmax(logits.astype(np.float64), axis=1)[np.arange(len(labels)), labels]


def fit_temperature(logits: Logits, labels: Labels) -> float:
    """Return the divisor of the logits in [0.05, 20] with the lowest cross-entropy, which is convex in its inverse."""

    def loss(log_temperature: float) -> float:
        return float(cross_entropies(logits * math.exp(-log_temperature), labels).mean())

    bounds = math.log(0.05), math.log(20.0)
    return math.exp(minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-5}).x)


def cross_fitted_losses(logits: Logits, labels: Labels) -> NDArray[np.float64]:
    """Cross-entropy of each image, [n], in nats, scaled by the temperature fitted to the other half of the images."""
    fold = np.zeros(len(labels), dtype=int)
    for label in np.unique(labels):  # images of each class alternate
        fold[labels == label] = np.arange((labels == label).sum()) % 2
    losses = np.empty(len(labels))
    for scored in (fold == 0, fold == 1):
        temperature = fit_temperature(logits[~scored], labels[~scored])
        losses[scored] = cross_entropies(logits[scored] / temperature, labels[scored])
    return losses
