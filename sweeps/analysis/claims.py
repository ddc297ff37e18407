"""Verdicts of a sweep on the four claims of the original report, each with its effect, interval and reason.

Differences are random minus pretrained: of log losses, where above 0 means that pretraining helps, and of accuracies.
A statement is shown if a one-sided test with moderated variances has p < 5 %, or less where a docstring says so.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np

from sweeps.analysis.comparison import ACCURACY_MARGIN, LOSS_MARGIN, Comparison, Difference
from sweeps.analysis.statistics import FLOOR, Interval, Mask
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


@dataclass(frozen=True)
class Verdict:
    verdict: Literal["holds", "does not hold", "does not arise", "cannot be told"]
    reason: str
    effect: float | None = None
    interval: Interval | None = None  # 95 %, of this effect alone
    n_replicates: int = 0
    percent: int | None = None  # fraction at which the effect is taken
    unit: Literal["log ratio", "accuracy"] = "log ratio"
    val_sign: str = ""  # of the mean effect on validation images: "+", "-" or "0"; empty for training loss
    test_sign: str = ""
    more: int | str = ""  # further replicates for 80 % power at the observed effect, or why they would not help
    is_extended: bool = False  # after a first verdict, so that levels are nominal


Conclude = Callable[..., Verdict]


def judge(pair: Comparison) -> dict[str, Verdict]:
    """Judge every claim. Below the floor or in an incomplete plan all are `cannot be told`, with a forecast."""
    judges = (_judge_train_loss, _judge_val_loss, _judge_overfitting, _judge_need)
    if pair.n < 2:
        return dict.fromkeys(CLAIMS, Verdict("cannot be told", pair.no_verdict, n_replicates=pair.n))
    verdicts = {claim: judge_claim(pair) for claim, judge_claim in zip(CLAIMS, judges, strict=True)}
    if not pair.no_verdict:
        return verdicts
    withheld = partial(dataclasses.replace, verdict="cannot be told", reason=pair.no_verdict)
    below_floor = max(0, FLOOR - pair.n) or ""
    return {claim: withheld(verdict, more=verdict.more or below_floor) for claim, verdict in verdicts.items()}


def _judge_train_loss(pair: Comparison) -> Verdict:
    """Judge the final training loss by an intersection-union test, with the effect at the fraction nearest to failing.

    One fraction suffices to refute the claim, so refutations have p < 5 % / fractions.
    """
    d, k = pair.difference(Score.TRAIN_LOSS), len(pair.percents)
    if not d.is_known:
        return _unknown(pair)
    e = d.estimate
    above, below, within = e.above(), e.below(), e.within(LOSS_MARGIN)
    conclude = _conclude(pair, d, int(np.argmax(above)))
    if (above < ALPHA).all():
        return conclude("holds", f"it is lower at every fraction (p <= {above.max():.2g} each)")
    if (lower := below < ALPHA / k).any():
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
    if not (d.is_known and test.is_known):
        return _unknown(pair)
    conclude, e, later = _conclude(pair, d, -1, *LOSSES), d.estimate, d.percents >= FROM_PERCENT
    if pair.percents[-1] != 100:
        return conclude("cannot be told", "100 % is not among the judged fractions")
    above, below, fine = e.above() < ALPHA, e.below() < ALPHA, e.within(LOSS_MARGIN) < ALPHA
    p = f"p = {e.below()[-1]:.2g}"
    if below[-1]:
        if test.estimate.above()[-1] < ALPHA:
            return conclude("cannot be told", f"random is lower at 100 % ({p}), but shown to be higher on test images")
        first = pair.percents[crossing(below)]
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


def crossing(is_below: Mask) -> int:
    """Index of the first fraction from which on every one is below, counted from the largest downward."""
    return len(is_below) - int(np.cumprod(is_below[::-1]).sum())


def crossover(pair: Comparison) -> tuple[int | None, int] | None:
    """Gap in which random becomes better, in percent; None where claim 2 does not hold.

    Its ends are the highest fraction at which pretrained is shown to be lower, if any, and the lowest from which on
    random is.
    """
    if judge(pair)["val_loss"].verdict != "holds":
        return None
    e = pair.difference(pair.loss).estimate
    i = crossing(e.below() < ALPHA)
    ahead = np.flatnonzero(e.above()[:i] < ALPHA)
    return pair.percents[ahead[-1]] if len(ahead) else None, pair.percents[i]


def _judge_overfitting(pair: Comparison) -> Verdict:
    """Judge whether half of a deficit at the largest fraction is gone at the best epoch or after temperature scaling.

    The two contrasts are on test images, because validation chose the epoch and the temperature; each has p < 2.5 %.
    """
    d = pair.difference(pair.loss)
    contrasts = [pair.contrast(score, Score.TEST_LOSS) for score in (Score.TEST_BEST_LOSS, Score.TEST_SCALED_LOSS)]
    if not all(of.is_known for of in (d, *contrasts)):
        return _unknown(pair)
    conclude, e, percent = _conclude(pair, d, -1, *LOSSES), d.estimate, pair.percents[-1]
    if not e.below()[-1] < ALPHA:
        if e.above(-LOSS_MARGIN)[-1] < ALPHA:
            return conclude("does not arise", f"a deficit of 10 % or more at {percent} % is excluded")
        reason = f"a deficit at {percent} % is neither shown nor excluded"
        more = _more(pair, e.needed(-d.mean)[-1], e.needed(LOSS_MARGIN + d.mean)[-1])
        return conclude("cannot be told", reason, more=more)
    tests = [of.estimate for of in contrasts]
    names = "at the best epoch", "after temperature scaling"
    gone = [name for name, of in zip(names, tests, strict=True) if of.above()[-1] < ALPHA / 2]
    if gone:
        return conclude("holds", f"more than half of the deficit at {percent} % is gone {' and '.join(gone)}")
    if all(of.below()[-1] < ALPHA / 2 for of in tests):
        return conclude("does not hold", f"more than half of the deficit at {percent} % remains {' and '.join(names)}")
    needed = [of.needed(sign * of.mean, ALPHA / 2)[-1] for sign in (1, -1) for of in tests]
    reason = f"it is open whether half of the deficit at {percent} % is gone {' or '.join(names)}"
    return conclude("cannot be told", reason, more=_more(pair, min(needed[:2]), max(needed[2:])))


def _judge_need(pair: Comparison) -> Verdict:
    """Judge whether accuracies are equal at 100 %, and the multiplier of effective data is at most 1.5 from 25 % on.

    The multiplier is not judged above 2/3 of the largest fraction, where 1.5 times the data does not exist. Its tests
    have p < 2.5 % / fractions, so that they agree with its intervals.
    """
    d = pair.difference(pair.accuracy)
    if not (d.is_known and pair.difference(pair.loss).is_known):
        return _unknown(pair)
    judged = (d.percents >= FROM_PERCENT) & (d.percents * MAX_MULTIPLIER <= d.percents[-1])
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
    refuting = min(
        e.needed(abs(d.mean) - ACCURACY_MARGIN, ALPHA / 2)[-1], excess.needed(excess.mean, alpha)[judged].min()
    )
    return conclude("cannot be told", " and ".join(reasons), more=_more(pair, holding, refuting))


def _conclude(pair: Comparison, d: Difference, i: int, *apart: Score) -> Conclude:
    """Return a function of verdict and reason. Effect and signs of the scores `apart` are at the i-th fraction."""
    low, high = d.estimate.intervals(n_together=1).at(i)
    val_sign, test_sign = [_sign(pair.difference(score).mean[i]) for score in apart] or ("", "")
    return partial(
        Verdict,
        effect=float(d.mean[i]),
        interval=(low, high),
        n_replicates=pair.n,
        percent=pair.percents[i],
        is_extended=pair.is_extended,
        val_sign=val_sign,
        test_sign=test_sign,
    )


def _sign(mean: float) -> str:
    """`+`, `-` or `0`; empty if the mean is unknown."""
    return {1.0: "+", -1.0: "-", 0.0: "0"}.get(float(np.sign(mean)), "")


def _unknown(pair: Comparison) -> Verdict:
    reason = "cells lack a score, or have a loss of 0"
    return Verdict("cannot be told", reason, n_replicates=pair.n, is_extended=pair.is_extended)


def _more(pair: Comparison, *needed: float) -> int | str:
    """Further replicates until the first of the numbers needed for a verdict is there."""
    fewest = min(needed)
    return max(1, FLOOR - pair.n, math.ceil(fewest) - pair.n) if fewest <= MOST_REPLICATES else NO_HELP


def effect_text(claim: Mapping[str, Any]) -> str:
    """`+1.24 [+1.01, +1.47] % of the loss at 5 %`, of a verdict as a dict; empty without an effect."""
    if claim["effect"] is None:
        return ""
    is_accuracy = claim["unit"] == "accuracy"
    values = np.array([claim["effect"], *claim["interval"]])
    mean, low, high = 100 * (values if is_accuracy else np.expm1(values))
    unit = "points of accuracy" if is_accuracy else "% of the loss"
    return f"{mean:+.2f} [{low:+.2f}, {high:+.2f}] {unit} at {claim['percent']} %"


def _at(d: Difference, where: Mask) -> str:
    """The fractions as a phrase: `5, 10 and 25 %`."""
    *first, last = (f"{percent:.0f}" for percent in d.percents[where])
    return f"{', '.join(first)} and {last} %" if first else f"{last} %"
