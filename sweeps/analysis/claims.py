"""Verdicts of a sweep on the four claims of the original report, each with its effect, interval and reason.

Differences are random minus pretrained: a loss above 0 means that pretraining helps.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np

from sweeps.analysis.comparison import ACCURACY_MARGIN, LOSS_MARGIN, Comparison, Difference
from sweeps.analysis.statistics import Interval, Mask
from sweeps.rows import Score

CLAIMS = {
    "train_loss": "training loss: pretrained is lower at every fraction",
    "val_loss": "validation loss: random is lower from some fraction on",
    "overfitting": "the pretrained model over-fits",
    "need": "both are so good that transfer is hardly needed",
}
FROM_PERCENT = 25  # the report sees random ahead from here on
MAX_MULTIPLIER = 1.5  # of effective data: up to here transfer is hardly needed


@dataclass(frozen=True)
class Verdict:
    verdict: Literal["holds", "does not hold", "cannot be told"]
    reason: str
    effect: float | None = None
    interval: Interval | None = None
    n_replicates: int = 0
    observed: str = ""  # the effects in words, given with every verdict
    percent: int | None = None  # fraction at which the effect is taken
    unit: Literal["nats", "accuracy"] = "nats"


def judge(pair: Comparison) -> dict[str, Verdict]:
    if not pair.n:
        return dict.fromkeys(CLAIMS, Verdict("cannot be told", pair.too_few))
    if not all(pair.difference(score).is_known for score in (Score.TRAIN_LOSS, Score.VAL_LOSS, Score.VAL_ACCURACY)):
        return dict.fromkeys(CLAIMS, Verdict("cannot be told", "cells lack their final scores", n_replicates=pair.n))
    judges = (_judge_train_loss, _judge_val_loss, _judge_overfitting, _judge_need)
    return {claim: judge_claim(pair) for claim, judge_claim in zip(CLAIMS, judges, strict=True)}


def _judge_train_loss(pair: Comparison) -> Verdict:
    """Judge the final training loss, with the effect at the fraction nearest to failing."""
    d = pair.difference(Score.TRAIN_LOSS)
    verdict = _verdict(d, int(np.argmin(d.intervals.low if d.intervals else d.mean)), _ends(d))
    if pair.too_few:
        return verdict("cannot be told", pair.too_few)
    _, low, high = d.band
    if (low > 0).all() and pair.left_out:
        few = f"{_listed(pair.left_out)} have too few replicates"
        return verdict("cannot be told", f"above 0 at every fraction compared, but {few}")
    if (low > 0).all():
        return verdict("holds", "the simultaneous 95 % band is above 0 at every fraction")
    # One such fraction suffices, so the test is the band, which allows for all fractions.
    failing = (high < 0) | ((low <= 0) & (low > -LOSS_MARGIN) & (high < LOSS_MARGIN))
    if failing.any():
        where = f"within ±{LOSS_MARGIN} nats of it, at {_at(d, failing)}"
        return verdict("does not hold", f"the band is below 0, or {where}")
    return verdict("cannot be told", f"the band contains 0 at {_at(d, low <= 0)}; more replicates would narrow it")


def _judge_val_loss(pair: Comparison) -> Verdict:
    """Judge the final validation loss, with the effect at the largest fraction."""
    d = pair.difference(Score.VAL_LOSS)
    cross, later = d.crossover, d.percents >= FROM_PERCENT
    observed = "no crossover" if cross.percent is None else f"crossover of the mean at {cross.percent:.0f} %"
    observed += f", none in {cross.never:.0%} of the resamples" if pair.n > 1 else ""
    verdict = _verdict(d, len(later) - 1, f"{_ends(d)}; {observed}")
    if pair.too_few:
        return verdict("cannot be told", pair.too_few)
    ahead = d.is_below & (d.percents > (cross.percent or np.inf))
    if cross.is_claimable and ahead.any():
        return verdict("holds", f"above the crossover random is lower at {_at(d, ahead)}")
    if later.any() and d.is_not_below[later].all():
        shown = f"pretrained is lower, or within ±{LOSS_MARGIN} nats, at every fraction"
        return verdict("does not hold", f"from {FROM_PERCENT} % on {shown}")
    reason = f"above the crossover random is nowhere shown to be lower by more than {LOSS_MARGIN} nats"
    if (d.mean <= 0).all():
        reason = "random is lower at every fraction, so nothing crosses in this range; try smaller fractions"
    elif not cross.is_claimable:
        reason = "no crossover in this range can be claimed; try more replicates or fractions"
    return verdict("cannot be told", reason)


def _judge_overfitting(pair: Comparison) -> Verdict:
    """Judge whether a deficit of the final loss is gone at the best epoch or after temperature scaling.

    The effect is the final difference at the fraction where it is lowest.
    """
    final, best, scaled = map(pair.difference, (Score.VAL_LOSS, Score.BEST_VAL_LOSS, Score.SCALED_VAL_LOSS))
    i = int(np.argmin(final.mean))
    whens = ((final, "at the final epoch"), (best, "at the best epoch"), (scaled, "after temperature scaling"))
    effects = ", ".join(f"{_effect(d.at(i), d.interval(i))} {when}" for d, when in whens if d.is_known)
    verdict = _verdict(final, i, f"validation loss at {pair.percents[i]} %: random minus pretrained {effects}")
    if pair.too_few:
        return verdict("cannot be told", pair.too_few)
    if not (best.is_known and scaled.is_known):
        return verdict("cannot be told", "the cells are from an earlier version, without temperature scaling")
    deficit, remains = final.is_below, final.is_below & best.is_below & scaled.is_below
    if not deficit.any():
        none = f"no deficit beyond {LOSS_MARGIN} nats in final validation loss"
        return verdict("cannot be told", f"pretrained has {none}: nothing to explain")
    if (best.is_not_below | scaled.is_not_below)[deficit].all():
        return verdict("holds", f"the deficit at {_at(final, deficit)} is gone at the best epoch or after scaling")
    if remains.any():
        where = f"at the best epoch and after temperature scaling at {_at(final, remains)}"
        return verdict("does not hold", f"the deficit remains {where}")
    return verdict("cannot be told", "the deficit at the best epoch and after scaling is neither shown nor excluded")


def _judge_need(pair: Comparison) -> Verdict:
    """Judge whether accuracies are equal at 100 %, and the multiplier of effective data is at most 1.5 from 25 % on.

    The multiplier is not judged above 2/3 of the largest fraction, where 1.5 times the data does not exist.
    """
    d, data, last = pair.difference(Score.VAL_ACCURACY), pair.effective_data, len(pair.percents) - 1
    judged = (d.percents >= FROM_PERCENT) & (d.percents * MAX_MULTIPLIER <= d.percents[-1])
    multipliers = [
        f"{'>= ' if data.at_least[i] else ''}x{data.multiplier[i]:.2f} at {pair.percents[i]} %"
        for i in np.flatnonzero(judged)
    ]
    observed = f"random minus pretrained {_effect(d.at(last), d.t_interval(last), 'accuracy')} points"
    observed += f"; effective data {', '.join(multipliers)}" if multipliers else ""
    verdict = _verdict(d, last, f"accuracy at {pair.percents[-1]} %: {observed}")
    verdict = partial(verdict, interval=d.t_interval(last), unit="accuracy")
    if pair.too_few:
        return verdict("cannot be told", pair.too_few)
    if pair.percents[-1] != 100:
        return verdict("cannot be told", "the sweep has no fraction of 100 %")
    low, high = d.t_interval(last) or (-np.inf, np.inf)
    margin = f"{100 * ACCURACY_MARGIN:.1f} points"
    exceeds = judged & (data.multiplier > MAX_MULTIPLIER) & data.exceeds(MAX_MULTIPLIER, judged)
    uncertain = judged & (data.high > MAX_MULTIPLIER)
    reasons = [f"accuracy differs by more than {margin}"] if low > ACCURACY_MARGIN or high < -ACCURACY_MARGIN else []
    reasons += [f"the multiplier exceeds {MAX_MULTIPLIER} at {_at(d, exceeds)}"] if exceeds.any() else []
    if reasons:
        return verdict("does not hold", " and ".join(reasons))
    if not d.is_equivalent[last]:
        shown = f"accuracies at 100 % are not shown to be within {margin}"
        return verdict("cannot be told", f"{shown}; try more replicates")
    if not judged.any():
        between = f"{FROM_PERCENT} to {100 / MAX_MULTIPLIER:.0f} %"
        return verdict("cannot be told", f"no fraction from {between} to measure effective data at")
    if uncertain.any():
        return verdict("cannot be told", f"the multiplier's interval contains {MAX_MULTIPLIER} at {_at(d, uncertain)}")
    multiplier = f"the multiplier is at most {MAX_MULTIPLIER} from {FROM_PERCENT} % on"
    return verdict("holds", f"accuracies at 100 % are within {margin}, {multiplier}")


def _verdict(d: Difference, i: int, observed: str) -> Callable[..., Verdict]:
    effect, interval, percent = d.at(i), d.interval(i), int(d.percents[i])
    return partial(Verdict, effect=effect, interval=interval, n_replicates=d.n, observed=observed, percent=percent)


def _ends(d: Difference) -> str:
    """Describe both ends with intervals, and at how many fractions the mean is above 0."""
    ends = [f"{_effect(d.at(i), d.interval(i))} at {d.percents[i]:.0f} %" for i in sorted({0, len(d.percents) - 1})]
    n_above = (d.mean > 0).sum()
    return f"random minus pretrained is {' and '.join(ends)}, above 0 at {n_above} of {len(d.percents)} fractions"


def effect_text(claim: Mapping[str, Any]) -> str:
    """`+0.0123 [+0.0100, +0.0146] nats at 5 %`, of a verdict as a dict; empty without an effect."""
    if claim["effect"] is None:
        return ""
    unit = "points" if claim["unit"] == "accuracy" else claim["unit"]
    return f"{_effect(claim['effect'], claim['interval'], claim['unit'])} {unit} at {claim['percent']} %"


def _effect(effect: float, interval: Interval | None, unit: str = "nats") -> str:
    scale, digits = (100, 2) if unit == "accuracy" else (1, 4)
    mean, *limits = (f"{scale * value:+.{digits}f}" for value in (effect, *(interval or ())))
    return f"{mean} [{', '.join(limits)}]" if limits else mean


def _at(d: Difference, where: Mask) -> str:
    return _listed([int(percent) for percent in d.percents[where]])


def _listed(percents: Sequence[int]) -> str:
    """The fractions as a phrase: `5, 10 and 25 %`."""
    *first, last = map(str, percents)
    return f"{', '.join(first)} and {last} %" if first else f"{last} %"
