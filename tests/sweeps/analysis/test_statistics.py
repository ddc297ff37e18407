"""Bands, tests, crossover and effective data on constructed data with known answers."""

import itertools

import numpy as np
import pytest
from scipy import stats

from sweeps.analysis.statistics import (
    crossover,
    effective_data,
    equivalence_p,
    find_crossover,
    flip_test,
    simultaneous_band,
    t_interval,
)


def test_t_interval_of_known_numbers() -> None:
    band = t_interval(np.array([[1.0], [2.0], [3.0]]))
    assert band.mean == pytest.approx([2.0])
    assert band.high - band.mean == pytest.approx([4.302653 / 3**0.5], rel=1e-6)  # t(0.975, 2) * 1 / sqrt(3)
    with pytest.raises(ValueError, match="1 replicates; 2 are the floor"):
        t_interval(np.ones((1, 2)))


def t(d: np.ndarray) -> np.ndarray:
    return np.abs(d.mean(axis=0)) / (d.std(axis=0, ddof=1) / len(d) ** 0.5)


def test_band_is_the_enumerated_one() -> None:
    d = np.random.default_rng(0).normal(0.3, 1.0, (6, 4))
    band = simultaneous_band(d)
    residuals = d - d.mean(axis=0)
    largest = [t(np.array(signs)[:, None] * residuals).max() for signs in itertools.product((1, -1), repeat=6)]
    critical = np.quantile(largest, 0.95, method="higher")
    assert band.high - band.mean == pytest.approx(critical * d.std(axis=0, ddof=1) / 6**0.5)
    assert band.mean - band.low == pytest.approx(band.high - band.mean)


@pytest.mark.parametrize(("n", "effect"), [(6, 0.0), (6, 10.0), (10, 0.0), (10, 1.0)])
def test_band_covers_the_truth_95_times_in_100(n: int, effect: float) -> None:
    """A large effect matters: a band from flips of d itself covers it 56 times in 100 at n = 6."""
    rng = np.random.default_rng(1)
    covered, n_simulations = 0, 400
    for _ in range(n_simulations):
        d = effect + rng.normal(0, 0.7, (n, 1)) + rng.normal(0, 1, (n, 11))  # correlated over fractions
        band = simultaneous_band(d)
        covered += bool((band.low <= effect).all() and (band.high >= effect).all())
    error = 3 * (0.95 * 0.05 / n_simulations) ** 0.5
    assert abs(covered / n_simulations - 0.95) <= error


def test_p_is_exact_for_small_n() -> None:
    d = np.array([[0.1], [0.3], [0.2], [0.4], [0.1], [0.2]])
    result = flip_test(d)
    assert result.family == pytest.approx(2 / 2**6)  # only all signs alike are as extreme
    assert result.each == pytest.approx([2 / 2**6])
    d = np.random.default_rng(3).normal(0.4, 1.0, (7, 1))
    means = [abs((np.array(signs) * d[:, 0]).mean()) for signs in itertools.product((1, -1), repeat=7)]
    expected = np.mean([mean >= abs(d.mean()) - 1e-12 for mean in means])  # |t| and |mean| have the same order
    assert flip_test(d).family == pytest.approx(expected)


def test_p_of_a_family_is_that_of_its_most_extreme_member_adjusted_for_all() -> None:
    rng = np.random.default_rng(4)
    d = rng.normal(0, 1, (8, 3))
    d[:, 1] += 3
    result = flip_test(d)
    assert result.family == result.each.min() == result.each[1]
    alone = [flip_test(d[:, [f]]).family for f in range(3)]
    assert (result.each >= np.array(alone) - 1e-12).all()


def test_p_is_uniform_where_nothing_is() -> None:
    rng = np.random.default_rng(5)
    p = [flip_test(rng.normal(0, 1, (7, 3))).family for _ in range(400)]
    assert abs(np.mean(np.array(p) <= 0.1) - 0.1) <= 3 * (0.1 * 0.9 / 400) ** 0.5


def test_more_than_twelve_replicates_are_sampled() -> None:
    d = np.random.default_rng(6).normal(0.5, 1, (14, 2))
    assert flip_test(d).family == flip_test(d).family > 0
    exact = stats.ttest_1samp(d, 0).pvalue
    assert flip_test(d[:, [0]]).family == pytest.approx(exact[0], abs=0.03)
    assert np.isfinite(simultaneous_band(d).high).all()


def test_equal_differences_have_no_width() -> None:
    d = np.tile([0.1, -0.2], (6, 1))
    band = simultaneous_band(d)
    assert band.low == pytest.approx([0.1, -0.2])
    assert band.high == pytest.approx([0.1, -0.2])
    assert flip_test(d).family == pytest.approx(2 / 2**6)


def test_tied_values_leave_the_band_finite() -> None:
    d = np.array([[0.01, 0.01], [0.01, -0.01], [-0.01, 0.01], [0.01, 0.01], [-0.01, -0.01], [0.01, -0.01]])
    band = simultaneous_band(d)
    assert np.isfinite([band.low, band.high]).all()


@pytest.mark.parametrize("function", [simultaneous_band, flip_test])
def test_too_few_replicates_are_refused(function: object) -> None:
    with pytest.raises(ValueError, match=r"\b5\b.*\b6\b"):
        function(np.zeros((5, 2)))  # type: ignore[operator]


def test_equivalence_is_two_one_sided_tests() -> None:
    d = np.random.default_rng(7).normal(0.001, 0.002, (10, 1))
    lower = stats.ttest_1samp(d[:, 0], -0.005, alternative="greater").pvalue
    upper = stats.ttest_1samp(d[:, 0], 0.005, alternative="less").pvalue
    assert equivalence_p(d, 0.005) == pytest.approx([max(lower, upper)])
    assert equivalence_p(d + 0.01, 0.005)[0] > 0.5
    assert equivalence_p(np.full((3, 1), 0.004), 0.005)[0] == 0.0


def test_crossover_is_where_it_was_put() -> None:
    percents = np.array([5.0, 20.0, 80.0])
    assert crossover(percents, np.array([1.0, 1.0, -1.0])) == pytest.approx(40.0)  # half-way in log
    assert crossover(percents, np.array([1.0, 1.0, 1.0])) is None
    assert crossover(percents, np.array([-1.0, 1.0, 1.0])) is None
    assert crossover(percents, np.array([1.0, -1.0, -1.0])) == pytest.approx(10.0)
    four = np.array([5.0, 10.0, 20.0, 40.0])
    assert crossover(four, np.array([1.0, -1.0, 1.0, -1.0])) == pytest.approx(800**0.5)
    assert crossover(four, np.array([1.0, -1.0, -1.0, 1.0])) is None  # a dip
    assert crossover(four, np.array([-1.0, -1.0, -1.0, -1.0])) is None


def test_crossover_that_every_resample_has_is_claimable() -> None:
    percents = np.array([5.0, 20.0, 80.0])
    noise = np.random.default_rng(8).normal(0, 0.1, (8, 3))
    found = find_crossover(percents, np.array([1.0, 1.0, -1.0]) + noise)
    assert found.percent == pytest.approx(40.0, rel=0.1)
    assert (found.never, found.is_claimable) == (0.0, True)


def test_crossover_by_chance_is_not() -> None:
    """Of noise about 0 at eleven fractions."""
    percents = np.linspace(5, 100, 11)
    rng = np.random.default_rng(9)
    claimed = sum(find_crossover(percents, rng.normal(0, 1, (10, 11))).is_claimable for _ in range(20))
    assert claimed <= 4
    few = find_crossover(percents, np.linspace(1, -1, 11) + rng.normal(0, 0.01, (5, 11)))
    assert (few.never, few.is_claimable) == (0.0, False)  # five replicates


PERCENTS = np.array([5.0, 10.0, 20.0, 40.0, 80.0])


def curve(percents: np.ndarray) -> np.ndarray:
    return 1 - 0.2 * np.log(percents / 5)  # falls by 0.1386 a doubling


def test_twice_the_data_is_a_multiplier_of_two() -> None:
    random, pretrained = (np.tile(curve(PERCENTS * factor), (6, 1)) for factor in (1, 2))
    data = effective_data(PERCENTS, random, pretrained)
    assert data.multiplier[:4] == pytest.approx([2.0] * 4)
    assert data.effective[:4] == pytest.approx(2 * PERCENTS[:4])
    assert data.transferred[:4] == pytest.approx(PERCENTS[:4])
    assert data.low[:3] == pytest.approx([2.0] * 3)
    assert data.at_least.tolist() == [False, False, False, False, True]
    assert (data.multiplier[4], data.high[4]) == (1.0, np.inf)  # 80 % or more
    judged, none = np.array([True, True, False, False, False]), np.zeros(5, bool)
    exceeds = (data.exceeds(1.9, judged), data.exceeds(2.1, judged), data.exceeds(1.9, none))
    assert exceeds == (True, False, False)


def test_pretraining_that_costs_data_is_negative() -> None:
    random, pretrained = (np.tile(curve(PERCENTS * factor), (6, 1)) for factor in (1, 0.75))
    data = effective_data(PERCENTS, random, pretrained)
    assert data.multiplier[1:] == pytest.approx([0.75] * 4)
    assert data.transferred[1:] == pytest.approx(-0.25 * PERCENTS[1:])
    assert data.at_most.tolist() == [True, False, False, False, False]
    assert data.low[0] == 0.0


def test_a_random_curve_that_rises_is_made_monotone() -> None:
    random = np.tile([1.0, 0.6, 0.8, 0.4, 0.2], (6, 1))
    pretrained = np.tile([0.7, 0.7, 0.5, 0.3, 0.2], (6, 1))
    data = effective_data(PERCENTS, random, pretrained)
    assert data.effective[0] == pytest.approx(10.0)  # 0.6 and 0.8 are pooled to 0.7
    assert (np.diff(data.effective) >= -1e-9).all()
