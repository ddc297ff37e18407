"""The expected best of n trials, against enumeration."""

import itertools

import numpy as np
import pytest

from tuning.figures import expected_best


def test_expected_best_is_the_mean_over_all_draws() -> None:
    scores = [0.9, 0.7, 0.8]
    for n, value in enumerate(expected_best(scores), 1):
        assert value == pytest.approx(np.mean([max(draw) for draw in itertools.product(scores, repeat=n)]))
