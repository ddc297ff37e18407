"""Calibration: the gap between confidence and accuracy, and the loss after temperature scaling.

Logits and labels in, numbers out (numpy and scipy only). Guo et al. 2017, "On Calibration of Modern Neural Networks".
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

N_BINS = 15  # of equal width, as in Guo et al.
LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE = 0.05, 20.0
Logits = NDArray[np.float64]
Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Calibration:
    """Calibration of one network on one set of images."""

    ece: float
    """Expected calibration error of the unscaled logits, in [0, 1]."""
    temperature: float
    """Divisor of the logits; above 1 if the network is over-confident."""
    scaled_loss: float
    """Mean cross-entropy in nats after dividing."""


def calibrate_val(logits: Logits, labels: Labels) -> Calibration:
    """Calibrate on validation images: all of them fit the temperature; the scaled loss is cross-fitted in two folds."""
    return Calibration(
        expected_calibration_error(logits, labels), fit_temperature(logits, labels), cross_fitted_loss(logits, labels)
    )


def calibrate_test(logits: Logits, labels: Labels, temperature: float) -> Calibration:
    """Apply a temperature that was fitted to other images."""
    scaled = cross_entropy(logits / temperature, labels)
    return Calibration(expected_calibration_error(logits, labels), temperature, scaled)


def expected_calibration_error(logits: Logits, labels: Labels, n_bins: int = N_BINS) -> float:
    """Mean over images of |accuracy - confidence| of the image's bin; bins have equal width in the confidence.

    Args:
        logits: [n, n_classes].
        labels: [n], 0 ... n_classes - 1.
    """
    probabilities = softmax(logits.astype(np.float64), axis=1)
    confidence, correct = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    bins = np.minimum((confidence * n_bins).astype(int), n_bins - 1)
    gaps = np.bincount(bins, weights=correct - confidence, minlength=n_bins)
    return float(np.abs(gaps).sum() / len(labels))


def cross_entropy(logits: Logits, labels: Labels) -> float:
    """Mean cross-entropy over images, in nats."""
    return float(-log_softmax(logits.astype(np.float64), axis=1)[np.arange(len(labels)), labels].mean())


def fit_temperature(logits: Logits, labels: Labels) -> float:
    """Return the temperature from 0.05 to 20 with the lowest cross-entropy, which is convex in 1 / temperature."""
    minimum = minimize_scalar(
        lambda log_t: cross_entropy(logits * math.exp(-log_t), labels),
        bounds=(math.log(LOWEST_TEMPERATURE), math.log(HIGHEST_TEMPERATURE)),
        method="bounded",
        options={"xatol": 1e-5},
    )
    return math.exp(minimum.x)


def cross_fitted_loss(logits: Logits, labels: Labels) -> float:
    """Mean cross-entropy in nats after scaling each half of the images by the temperature fitted to the other half.

    The halves are class-balanced: images of each class alternate. Raises ValueError if a half is empty.
    """
    fold = np.zeros(len(labels), dtype=int)
    for label in np.unique(labels):
        fold[labels == label] = np.arange((labels == label).sum()) % 2
    total = 0.0
    for here in (0, 1):
        fitted, scored = fold != here, fold == here
        if not fitted.any() or not scored.any():
            raise ValueError(f"{len(labels)} images cannot be cut into two folds")
        temperature = fit_temperature(logits[fitted], labels[fitted])
        total += scored.sum() * cross_entropy(logits[scored] / temperature, labels[scored])
    return float(total / len(labels))
