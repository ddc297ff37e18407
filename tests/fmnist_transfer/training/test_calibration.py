"""Calibration on logits with known answers."""

import numpy as np
import pytest

from fmnist_transfer.training.calibration import cross_entropies, cross_fitted_losses, fit_temperature


def draw(n: int, temperature: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits [n, 5], and labels drawn from their softmax at `temperature`."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 3, (n, 5))
    gumbel = rng.gumbel(size=(n, 5))
    return logits, (logits / temperature + gumbel).argmax(axis=1)


def cross_entropy(logits: np.ndarray, labels: np.ndarray) -> float:
    return float(cross_entropies(logits, labels).mean())


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_temperature_is_found(temperature: float) -> None:
    logits, labels = draw(20_000, temperature)
    assert fit_temperature(logits, labels) == pytest.approx(temperature, rel=0.05)


def test_scaling_cannot_hurt_where_it_was_fitted() -> None:
    logits, labels = draw(500, 2.0)
    temperature = fit_temperature(logits, labels)
    assert cross_entropy(logits / temperature, labels) < cross_entropy(logits, labels)


def test_cross_fitting_scores_each_half_by_the_other() -> None:
    """Every other image of a class is sharpened tenfold: each half is then scored by a temperature not its own."""
    logits, labels = draw(4_000, 1.0)
    order = np.argsort(labels, kind="stable")
    logits, labels = logits[order], labels[order]
    position = np.concatenate([np.arange((labels == label).sum()) for label in range(5)])
    sharp = position % 2 == 1
    mixed = np.where(sharp[:, None], 10 * logits, logits)
    # The plain half is divided by 10, the sharp half by 1.
    expected = (
        cross_entropy(logits[~sharp] / 10, labels[~sharp]) + cross_entropy(10 * logits[sharp], labels[sharp])
    ) / 2
    assert cross_fitted_losses(mixed, labels).mean() == pytest.approx(expected, rel=0.1)
    assert cross_fitted_losses(logits, labels).mean() == pytest.approx(cross_entropy(logits, labels), rel=0.01)
