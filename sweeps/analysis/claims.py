"""Verdicts of a sweep on the four claims of the original report, each with its effect, interval and reason.

Differences are random minus pretrained: of log losses, where above 0 means that pretraining helps, and of accuracies.
A statement is shown if a one-sided test with moderated variances has p < 5 %, or less where a docstring says so.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import numpy as np

from sweeps.analysis.comparison import ACCURACY_MARGIN, LOSS_MARGIN, Comparison, Difference, in_percent
from sweeps.analysis.statistics import FLOOR, Mask
from sweeps.rows import Score

CLAIMS = {
    "train_loss": "training loss: pretrained is lower at every fraction",
    "val_loss": "validation loss: random is lower from some fraction on",
    "overfitting": "the pretrained model over-fits",
    "need": "both are so good that transfer is hardly needed",
}
ALPHA = 0.05
FROM_PERCENT = 25  # the report sees random ahead from here on
MAX_MULTIPLIER = 1.5  # of effective data: up to here transfer is hardly needed
MOST_REPLICATES = 1_000  # more are never asked for
NO_HELP = "more replicates won't tell"
LOSSES, ACCURACIES = (Score.VAL_LOSS, Score.TEST_LOSS), (Score.VAL_ACCURACY, Score.TEST_ACCURACY)
SIGNS = {1.0: "+", -1.0: "-", 0.0: "0"}


@dataclass(frozen=True)
class Verdict:
    verdict: Literal["holds", "does not hold", "does not arise", "cannot be told"]
    reason: str
    effect: float | None = None
    interval: tuple[float, float] | None = None  # 95 %, of this effect alone
    n_replicates: int = 0
    percent: int | None = None  # fraction at which the effect is taken
    unit: Literal["log ratio", "accuracy"] = "log ratio"
    val_sign: str = ""  # of the mean effect on validation images: "+", "-" or "0"; empty for training loss
    test_sign: str = ""
    more: int | str = ""  # further replicates for 80 % power at the observed effect, or why they would not help
    is_extended: bool = False  # after a first verdict, so that levels are nominal

    @property
    def effect_text(self) -> str:
        """`+1.24 [+1.01, +1.47] % of the loss at 5 %`; empty without an effect."""
        if self.effect is None or self.interval is None:
            return ""
        is_loss = self.unit == "log ratio"
        unit = "% of the loss" if is_loss else "points of accuracy"
        return f"{interval_text(self.effect, *self.interval, is_loss=is_loss)} {unit} at {self.percent} %"


def interval_text(mean: float, low: float, high: float, *, is_loss: bool) -> str:
    """`+6.10 [+1.20, +11.30]`: log ratios in percent, or accuracies in points; without limits if they are NaN."""
    mean, low, high = (in_percent(value) if is_loss else 100 * value for value in (mean, low, high))
    return f"{mean:+.2f}" + ("" if math.isnan(low) else f" [{low:+.2f}, {high:+.2f}]")


def judge(pair: Comparison) -> dict[str, Verdict]:
    """Judge every claim. Below the floor or in an incomplete plan all are `cannot be told`, with a forecast."""
    if pair.n < 2:
        return dict.fromkeys(CLAIMS, Verdict("cannot be told", pair.no_verdict, n_replicates=pair.n))
    judges = {  # claim -> its judge, and the scores that it needs
        "train_loss": (_judge_train_loss, {Score.TRAIN_LOSS}),
        "val_loss": (_judge_val_loss, {pair.loss, Score.TEST_LOSS}),
        "overfitting": (_judge_overfitting, {pair.loss, Score.TEST_LOSS, Score.TEST_BEST_LOSS, Score.TEST_SCALED_LOSS}),
        "need": (_judge_need, {pair.loss, pair.accuracy}),
    }
    unknown = Verdict("cannot be told", "cells lack a score, or have a loss of 0")
    verdicts = {}
    for claim, (judge_claim, scores) in judges.items():
        is_known = all(pair.difference(score).is_known for score in scores)
        verdict = judge_claim(pair) if is_known else unknown
        verdict = replace(verdict, n_replicates=pair.n, is_extended=pair.is_extended)
        if pair.no_verdict:
            more = verdict.more or max(0, FLOOR - pair.n) or ""
            verdict = replace(verdict, verdict="cannot be told", reason=pair.no_verdict, more=more)
        verdicts[claim] = verdict
    return verdicts


def _judge_train_loss(pair: Comparison) -> Verdict:
    """Judge the final training loss by an intersection-union test; the effect is at the fraction nearest to failing."""
    d, k = pair.difference(Score.TRAIN_LOSS), len(pair.percents)
    e = d.estimate
    above, below, within = e.above(), e.below(), e.within(LOSS_MARGIN)
    conclude = _conclude(pair, d, int(np.argmax(above)))
    if (above < ALPHA).all():
        return conclude("holds", f"it is lower at every fraction (p <= {above.max():.2g} each)")
    if (lower := below < ALPHA / k).any():  # one fraction suffices to refute
        return conclude("does not hold", f"random is lower at {_at(d, lower)}")
    if (equal := (within < ALPHA / k) & (above >= ALPHA) & (below >= ALPHA)).any():
        return conclude("does not hold", f"the two are within 10 % and neither is lower at {_at(d, equal)}")
    holding, signs = e.needed(d.mean), e.needed(abs(d.mean))
    equivalence = e.needed(LOSS_MARGIN - abs(d.mean), ALPHA / k)
    refuting = np.minimum(e.needed(-d.mean, ALPHA / k), np.where(equivalence < signs, equivalence, np.inf))
    reason = f"it is not shown to be lower at {_at(d, ~(above < ALPHA))}"
    return conclude("cannot be told", reason, more=_more(pair, holding.max(), refuting.min()))


def _judge_val_loss(pair: Comparison) -> Verdict:
    """Judge the final held-out loss by a fixed sequence of tests from 100 % downward, with the effect at 100 %."""
    d, test = pair.difference(pair.loss), pair.difference(Score.TEST_LOSS)
    conclude, e, later = _conclude(pair, d, -1, *LOSSES), d.estimate, d.percents >= FROM_PERCENT
    if pair.percents[-1] != 100:
        return conclude("cannot be told", "100 % is not among the judged fractions")
    above, below, fine = e.above() < ALPHA, e.below() < ALPHA, e.within(LOSS_MARGIN) < ALPHA
    p = f"p = {e.below()[-1]:.2g}"
    if below[-1]:
        if test.estimate.above()[-1] < ALPHA:
            return conclude("cannot be told", f"random is lower at 100 % ({p}), but shown to be higher on test images")
        _, first = crossover(pair)
        since = "already from the smallest" if first == pair.percents[0] else f"from {first} % on"
        return conclude("holds", f"random is lower at 100 % ({p}), {since}")
    if (above | fine)[later].all() and not below[later].any():
        if test.estimate.below()[-1] < ALPHA:
            return conclude("cannot be told", "no deficit from 25 % on, but at 100 % random is lower on test images")
        shown = "pretrained is lower, or the two are within 10 %, at every fraction"
        return conclude("does not hold", f"from {FROM_PERCENT} % on {shown}")
    refuting = np.minimum(e.needed(d.mean), e.needed(LOSS_MARGIN - abs(d.mean)))[later].max()
    reason = f"at 100 % random is not shown to be lower ({p}), nor within 10 % or higher from {FROM_PERCENT} % on"
    return conclude("cannot be told", reason, more=_more(pair, e.needed(-d.mean)[-1], refuting))


def crossover(pair: Comparison) -> tuple[int | None, int]:
    """Last percent at which pretrained is shown to be lower, and first from which on random is, where claim 2 holds."""
    e = pair.difference(pair.loss).estimate
    i = len(e.mean) - int(np.cumprod(e.below()[::-1] < ALPHA).sum())
    ahead = np.flatnonzero(e.above()[:i] < ALPHA)
    return pair.percents[ahead[-1]] if len(ahead) else None, pair.percents[i]


def _judge_overfitting(pair: Comparison) -> Verdict:
    """Judge whether half of a deficit at the largest fraction is gone at the best epoch, or by temperature scaling."""
    d = pair.difference(pair.loss)
    conclude, e, percent = _conclude(pair, d, -1, *LOSSES), d.estimate, pair.percents[-1]
    if not e.below()[-1] < ALPHA:
        if e.above(-LOSS_MARGIN)[-1] < ALPHA:
            return conclude("does not arise", f"a deficit of 10 % or more at {percent} % is excluded")
        reason = f"a deficit at {percent} % is neither shown nor excluded"
        more = _more(pair, e.needed(-d.mean)[-1], e.needed(LOSS_MARGIN + d.mean)[-1])
        return conclude("cannot be told", reason, more=more)
    tests = {  # on test images, because validation chose the epoch and the temperature
        "at the best epoch": pair.contrast(Score.TEST_BEST_LOSS, Score.TEST_LOSS).estimate,
        "after temperature scaling": pair.contrast(Score.TEST_SCALED_LOSS, Score.TEST_LOSS).estimate,
    }
    if gone := [name for name, test in tests.items() if test.above()[-1] < ALPHA / 2]:
        return conclude("holds", f"more than half of the deficit at {percent} % is gone {' and '.join(gone)}")
    if all(test.below()[-1] < ALPHA / 2 for test in tests.values()):
        return conclude("does not hold", f"more than half of the deficit at {percent} % remains {' and '.join(tests)}")
    holding, refuting = ([test.needed(sign * test.mean, ALPHA / 2)[-1] for test in tests.values()] for sign in (1, -1))
    reason = f"it is open whether half of the deficit at {percent} % is gone {' or '.join(tests)}"
    return conclude("cannot be told", reason, more=_more(pair, min(holding), max(refuting)))


def _judge_need(pair: Comparison) -> Verdict:
    """Judge whether accuracies are equal at 100 %, and the multiplier of effective data is at most 1.5 from 25 % on."""
    # The multiplier's tests have p < 2.5 % / fractions, so that they agree with its intervals.
    d, judged = pair.difference(pair.accuracy), has_multiplier(pair)
    conclude, e = partial(_conclude(pair, d, -1, *ACCURACIES), unit="accuracy"), d.estimate
    if pair.percents[-1] != 100 or not judged.any():
        between = f"{FROM_PERCENT} to {100 / MAX_MULTIPLIER:.0f} %"
        return conclude("cannot be told", f"the judged fractions lack 100 %, or any from {between}")
    excess, alpha = pair.curves.excess(MAX_MULTIPLIER * d.percents), ALPHA / 2 / judged.sum()
    margin = f"{100 * ACCURACY_MARGIN:.1f} points"
    exceeds, is_most = judged & (excess.above() < alpha), excess.below()[judged] < alpha
    differs = min(e.above(ACCURACY_MARGIN)[-1], e.below(-ACCURACY_MARGIN)[-1]) < ALPHA / 2
    reasons = [f"accuracy at 100 % differs by more than {margin}"] if differs else []
    if exceeds.any():
        reasons.append(f"pretraining is worth more than {MAX_MULTIPLIER} times the data at {_at(d, exceeds)}")
    if reasons:
        return conclude("does not hold", " and ".join(reasons))
    is_equal = e.within(ACCURACY_MARGIN)[-1] < ALPHA
    if is_equal and is_most.all():
        most = f"pretraining is worth at most {MAX_MULTIPLIER} times the data from {FROM_PERCENT} % on"
        return conclude("holds", f"accuracies at 100 % are within {margin}, and {most}")
    reasons = [] if is_equal else [f"accuracies at 100 % are not shown to be within {margin}"]
    reasons += [] if is_most.all() else [f"the multiplier's interval contains {MAX_MULTIPLIER}"]
    holding = max(e.needed(ACCURACY_MARGIN - abs(d.mean))[-1], excess.needed(-excess.mean, alpha)[judged].max())
    differing = e.needed(abs(d.mean) - ACCURACY_MARGIN, ALPHA / 2)[-1]
    more = _more(pair, holding, differing, excess.needed(excess.mean, alpha)[judged].min())
    return conclude("cannot be told", " and ".join(reasons), more=more)


def has_multiplier(pair: Comparison) -> Mask:
    """Fractions at which the multiplier is judged, [n_fractions]; 1.5 times the data must exist."""
    percents = np.array(pair.percents)
    return (percents >= FROM_PERCENT) & (percents * MAX_MULTIPLIER <= percents[-1])


def _conclude(pair: Comparison, d: Difference, i: int, *apart: Score) -> Callable[..., Verdict]:
    """Return a function of verdict and reason. Effect and signs of the scores `apart` are at the i-th fraction."""
    mean, low, high = (float(values[i]) for values in d.estimate.intervals(n_together=1))
    val, test = [SIGNS.get(float(np.sign(pair.difference(s).mean[i])), "") for s in apart] or ("", "")
    return partial(Verdict, effect=mean, interval=(low, high), percent=pair.percents[i], val_sign=val, test_sign=test)


def _more(pair: Comparison, *needed: float) -> int | str:
    """Further replicates until the first of the numbers needed for a verdict is there."""
    fewest = min(needed)
    return max(1, FLOOR - pair.n, math.ceil(fewest) - pair.n) if fewest <= MOST_REPLICATES else NO_HELP


def _at(d: Difference, where: Mask) -> str:
    """The fractions as a phrase: `5, 10 and 25 %`."""
    *first, last = (f"{percent:.0f}" for percent in d.percents[where])
    return f"{', '.join(first)} and {last} %" if first else f"{last} %"
