"""Bands and crossover on constructed data."""

import itertools

import numpy as np
import pytest

from sweeps.statistics import crossover, simultaneous_band, t_interval


def test_t_interval_of_known_numbers() -> None:
    band = t_interval(np.array([[1.0], [2.0], [3.0]]))
    assert band.mean == pytest.approx([2.0])
    assert band.high - band.mean == pytest.approx([4.302653 / 3**0.5], rel=1e-6)  # t(0.975, 2) * 1 / sqrt(3)


def test_band_is_at_least_as_wide_as_the_pointwise_interval_of_flips() -> None:
    d = np.random.default_rng(0).normal(0.0, 1.0, (6, 4))
    band = simultaneous_band(d)
    largest = []
    for signs in itertools.product((1, -1), repeat=6):
        flipped = np.array(signs)[:, None] * d
        largest.append(np.abs(flipped.mean(axis=0) / (flipped.std(axis=0, ddof=1) / 6**0.5)).max())
    critical = np.quantile(largest, 0.95, method="higher")
    assert band.high - band.mean == pytest.approx(critical * d.std(axis=0, ddof=1) / 6**0.5)


def test_band_covers_the_truth_95_times_in_100() -> None:
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(400):
        d = rng.normal(0, 1, (8, 1)) + rng.normal(0, 0.5, (8, 5))  # correlated over fractions, mean 0
        band = simultaneous_band(d)
        covered += bool((band.low <= 0).all() and (band.high >= 0).all())
    assert 0.92 <= covered / 400 <= 0.98


def test_too_few_replicates_are_refused() -> None:
    with pytest.raises(ValueError, match="5 replicates; 6 are the floor"):
        simultaneous_band(np.zeros((5, 2)))


def test_crossover_is_where_it_was_put() -> None:
    percents = np.array([5.0, 20.0, 80.0])
    assert crossover(percents, np.array([1.0, 1.0, -1.0])) == pytest.approx(40.0)  # half-way in log
    assert crossover(percents, np.array([1.0, 1.0, 1.0])) is None
    assert crossover(percents, np.array([-1.0, 1.0, 1.0])) is None
    assert crossover(percents, np.array([1.0, -1.0, -1.0])) == pytest.approx(10.0)
