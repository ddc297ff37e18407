"""Intervals, tests and effective data on constructed data with known answers, and against scipy."""

import numpy as np
import pytest
from scipy import special, stats

from sweeps.analysis.statistics import DataCurves, estimate, image_variance, intervals, prior_of

D = np.random.default_rng(0).normal([0.3, 0.1, -0.1, 0.0, 0.2], [0.5, 0.4, 0.3, 0.2, 0.1], (8, 5))
FRACTIONS = np.array([5.0, 10.0, 25.0, 50.0, 100.0])


def test_one_fraction_is_a_t_test() -> None:
    d = D[:, [0]]
    of_scipy = stats.ttest_1samp(d[:, 0], 0.1, alternative="greater")
    e = estimate(d)
    assert e.above(0.1) == pytest.approx([of_scipy.pvalue])
    assert e.below(0.1) == pytest.approx([1 - of_scipy.pvalue])
    limits = stats.ttest_1samp(d[:, 0], 0).confidence_interval(0.95)
    assert [*np.ravel(intervals(d))] == pytest.approx([d.mean(), limits.low, limits.high])


def test_p_is_near_that_of_a_permutation_test() -> None:
    d = D[:, [0]]
    of_scipy = stats.permutation_test((d[:, 0],), np.mean, permutation_type="samples", alternative="greater")
    assert estimate(d).above() == pytest.approx([of_scipy.pvalue], abs=0.02)


def test_equivalence_is_two_one_sided_tests() -> None:
    d = D[:, [3]] / 10
    lower = stats.ttest_1samp(d[:, 0], -0.02, alternative="greater").pvalue
    upper = stats.ttest_1samp(d[:, 0], 0.02, alternative="less").pvalue
    assert estimate(d).within(0.02) == pytest.approx([max(lower, upper)])


def test_simultaneous_intervals_are_bonferroni_s() -> None:
    e = estimate(D, FRACTIONS)
    half = stats.t.ppf(1 - 0.025 / 5, e.df) * e.se
    assert e.intervals().high == pytest.approx(D.mean(axis=0) + half)
    assert e.intervals(n_together=1).low == pytest.approx(D.mean(axis=0) - stats.t.ppf(0.975, e.df) * e.se)


def test_a_trend_of_variances_is_found() -> None:
    """Exact trend: the prior has its scale and the largest weight, and the moderated variances are the own ones."""
    unit = D[:, [0]] / D[:, 0].std(ddof=1)
    d = unit / np.sqrt(FRACTIONS)
    prior = prior_of(d, FRACTIONS)
    assert prior.scale * FRACTIONS == pytest.approx(np.full(5, np.exp(np.log(3.5) - special.digamma(3.5))), rel=1e-4)
    assert prior.df == pytest.approx([3.5])
    assert prior.leverage.sum() == pytest.approx(2)
    assert (estimate(d, FRACTIONS).df > 7).all()
    assert prior_of(d).scale == pytest.approx(np.full(5, prior_of(d).scale[0]))  # without a trend


def test_fractions_that_differ_much_are_left_alone() -> None:
    d = D * [1, 1e3, 1, 1e3, 1]
    e = estimate(d, FRACTIONS)
    assert e.df == pytest.approx(np.full(5, 7.0), abs=0.5)
    assert e.variance == pytest.approx(d.var(axis=0, ddof=1), rel=0.2)


def test_two_fractions_tell_nothing_about_a_trend() -> None:
    e = estimate(D[:, :2], FRACTIONS[:2])
    assert e.df == pytest.approx([7.0, 7.0])
    assert e.variance == pytest.approx(D[:, :2].var(axis=0, ddof=1))


def test_image_variance_widens_and_keeps_the_degrees_of_freedom() -> None:
    plain, with_images = estimate(D, FRACTIONS), estimate(D, FRACTIONS, np.full(5, 0.01))
    assert with_images.se**2 == pytest.approx(plain.se**2 + 0.01)
    assert (with_images.df == plain.df).all()


def test_without_spread_nothing_is_shown() -> None:
    d = np.column_stack([np.full(8, 0.1), D[:, :2]])
    e = estimate(d)
    assert not (e.above() < 0.05)[0]
    assert np.isnan(e.intervals().low[0])
    assert (e.df[1:] == 7).all()
    assert np.isnan(estimate(np.zeros((4, 3))).above()).all()


def test_one_replicate_has_no_interval() -> None:
    with pytest.raises(ValueError, match="1 replicates"):
        intervals(np.ones((1, 2)))


def test_leading_axes_are_simulated_sweeps() -> None:
    many = np.stack([D, 2 * D + 1])
    assert intervals(many, FRACTIONS).low[1] == pytest.approx(intervals(2 * D + 1, FRACTIONS).low)


def test_the_number_needed_has_the_power() -> None:
    e = estimate(D[:, [0]])
    (needed,) = np.ceil(e.needed(np.array([0.15])))
    rng = np.random.default_rng(1)
    d = rng.normal(0.15, np.sqrt(e.variance[0]), (4_000, int(needed), 1))
    assert np.mean(estimate(d).above() < 0.05) == pytest.approx(0.8, abs=0.03)
    assert e.needed(np.array([-0.3])) == [np.inf]
    assert estimate(D[:, [0]], None, np.array([0.1])).needed(np.array([0.3])) == [np.inf]


def test_image_variance_is_that_of_new_images() -> None:
    """Against the spread over many sets of images, of log ratios and of a contrast with half of another."""
    rng = np.random.default_rng(2)
    random = rng.gamma(0.3, 1.0, (1_000, 400))
    pretrained, best = random * rng.uniform(0.5, 1.5, random.shape), random**1.1
    ratios = np.log(random.mean(axis=1) / pretrained.mean(axis=1))
    halves = np.log(best.mean(axis=1) / pretrained.mean(axis=1)) - ratios / 2
    estimated = np.mean([image_variance(*pair, is_log=True) for pair in zip(random, pretrained, strict=True)])
    assert estimated == pytest.approx(ratios.var(), rel=0.15)
    triples = zip(random, pretrained, best, strict=True)
    of_half = [image_variance(c, b, is_log=True, half=(a, b)) for a, b, c in triples]
    assert np.mean(of_half) == pytest.approx(halves.var(), rel=0.15)
    correct = rng.integers(0, 2, (2, 400)).astype(float)
    plain = image_variance(*correct, is_log=False)
    assert plain == pytest.approx((correct[0] - correct[1]).var(ddof=1) / 400)


def curves(factor: float, noise: float = 0.002, n: int = 8) -> DataCurves:
    """Losses that follow a power law; pretraining is worth `factor` times the data."""
    rng = np.random.default_rng(3)
    random, pretrained = ((FRACTIONS * by) ** -0.3 * np.exp(rng.normal(0, noise, (n, 5))) for by in (1.0, factor))
    return DataCurves(FRACTIONS, random, pretrained)


@pytest.mark.parametrize("factor", [0.75, 1.2, 1.9])
def test_a_power_law_is_interpolated_without_bias(factor: float) -> None:
    data = curves(factor, noise=1e-6).effective_data()
    inside = ~(data.at_least | data.at_most)
    assert data.multiplier[inside] == pytest.approx(np.full(inside.sum(), factor), rel=1e-4)
    assert data.effective[inside] == pytest.approx(factor * FRACTIONS[inside], rel=1e-4)
    assert inside.tolist() == [factor > 1, True, True, True, factor < 1]


def test_limits_of_effective_data_agree_with_the_test_at_them() -> None:
    c = curves(1.5, noise=0.05)
    data = c.effective_data(n_together=2)
    assert (data.low < data.multiplier).all()
    assert (data.high[:4] > data.multiplier[:4]).all()
    assert c.excess(data.low * FRACTIONS).above()[:4] == pytest.approx(np.full(4, 0.0125), abs=0.006)
    assert c.excess(data.high * FRACTIONS).below()[:3] == pytest.approx(np.full(3, 0.0125), abs=0.006)
    assert data.at_least.tolist() == [False] * 4 + [True]
    assert data.high[4] == np.inf
    assert np.isnan(c.excess(1.5 * FRACTIONS).mean[4])  # 150 % of the data
    wider = DataCurves(FRACTIONS, c.random, c.pretrained, np.full(5, 0.001)).effective_data(n_together=2)
    assert (wider.high[:3] > data.high[:3]).all()


def test_a_random_curve_that_rises_is_made_monotone() -> None:
    random, pretrained = np.array([1.0, 0.6, 0.8, 0.4, 0.2]), np.array([0.7, 0.7, 0.5, 0.3, 0.2])
    noise = np.exp(np.random.default_rng(4).normal(0, 1e-3, (6, 5)))
    data = DataCurves(FRACTIONS, random * noise, pretrained * noise).effective_data()
    assert (np.diff(data.effective) >= -1e-9).all()
    assert data.effective[0] == pytest.approx(9.87, rel=0.02)  # 0.6 and 0.8 are pooled to 0.693
