"""Calibration of logits (Guo et al. 2017)."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

N_BINS = 15  # of equal width, as in Guo et al.
Logits = NDArray[np.float64]  # [n, n_classes]
Labels = NDArray[np.int64]  # [n], 0 ... n_classes - 1


@dataclass(frozen=True)
class Calibration:
    """Calibration of one network on one set of images."""

    ece: float  # expected calibration error of the unscaled logits, in [0, 1]
    temperature: float  # divisor of the logits; above 1 if the network is over-confident
    scaled_loss: float  # mean cross-entropy in nats after dividing


def calibrate(
    logits: Logits, labels: Labels, temperature: float | None = None
) -> tuple[Calibration, NDArray[np.float64]]:
    """Calibrate with a temperature of other images; without one, fit it to all of these and cross-fit the losses.

    Also returns the scaled loss of each image, [n].
    """
    if temperature is None:
        scaled, temperature = cross_fitted_losses(logits, labels), fit_temperature(logits, labels)
    else:
        scaled = cross_entropies(logits / temperature, labels)
    return Calibration(expected_calibration_error(logits, labels), temperature, float(scaled.mean())), scaled


def expected_calibration_error(logits: Logits, labels: Labels) -> float:
    """Mean over images of |accuracy - confidence| of the image's bin; bins have equal width in the confidence."""
    probabilities = softmax(logits.astype(np.float64), axis=1)
    confidence, correct = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    bins = np.minimum((confidence * N_BINS).astype(int), N_BINS - 1)
    gaps = np.bincount(bins, weights=correct - confidence, minlength=N_BINS)
    return float(np.abs(gaps).sum() / len(labels))


def cross_entropies(logits: Logits, labels: Labels) -> NDArray[np.float64]:
    """Cross-entropy of each image, [n], in nats."""
    return -log_softmax(logits.astype(np.float64), axis=1)[np.arange(len(labels)), labels]


def fit_temperature(logits: Logits, labels: Labels) -> float:
    """Return the temperature in [0.05, 20] with the lowest cross-entropy, which is convex in 1 / temperature."""

    def loss(log_temperature: float) -> float:
        return float(cross_entropies(logits * math.exp(-log_temperature), labels).mean())

    bounds = math.log(0.05), math.log(20.0)
    return math.exp(minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-5}).x)


def cross_fitted_losses(logits: Logits, labels: Labels) -> NDArray[np.float64]:
    """Cross-entropy of each image, [n], in nats, scaled by the temperature fitted to the other half of the images.

    The halves are class-balanced: images of each class alternate. Raises ValueError if a half is empty.
    """
    fold = np.zeros(len(labels), dtype=int)
    for label in np.unique(labels):
        fold[labels == label] = np.arange((labels == label).sum()) % 2
    losses = np.empty(len(labels))
    for fitted, scored in ((fold == 1, fold == 0), (fold == 0, fold == 1)):
        if not fitted.any() or not scored.any():
            raise ValueError(f"{len(labels)} images cannot be cut into two folds")
        temperature = fit_temperature(logits[fitted], labels[fitted])
        losses[scored] = cross_entropies(logits[scored] / temperature, labels[scored])
    return losses
