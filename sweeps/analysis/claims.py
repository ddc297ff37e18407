"""Verdicts of a sweep on the four claims of the original report.

A comparison in; for each claim a verdict with its effect, interval and reason out. Differences are random minus
pretrained: a loss above 0 means that pretraining helps.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from sweeps.analysis.comparison import ACCURACY_MARGIN, LOSS_MARGIN, Comparison, Difference, Interval
from sweeps.analysis.statistics import Mask
from sweeps.rows import BEST_VAL_LOSS, SCALED_VAL_LOSS, TRAIN_LOSS, VAL_ACCURACY, VAL_LOSS, Score

Answer = Literal["holds", "does not hold", "cannot be told"]
Judgement = tuple[Answer, str]  # with the reason
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
    verdict: Answer
    reason: str
    effect: float | None = None
    interval: Interval | None = None
    n_replicates: int = 0
    observed: str = ""  # the effects in words, given with every verdict
    percent: int | None = None  # fraction at which the effect is taken
    unit: str = "nats"


def judge(pair: Comparison) -> dict[str, Verdict]:
    """Judge every claim in `CLAIMS`."""
    if not pair.n:
        return dict.fromkeys(CLAIMS, Verdict("cannot be told", pair.too_few))
    train, val, accuracy = map(pair.difference, (TRAIN_LOSS, VAL_LOSS, VAL_ACCURACY))
    if not (train.is_known and val.is_known and accuracy.is_known):
        return dict.fromkeys(CLAIMS, Verdict("cannot be told", "cells lack their final scores", n_replicates=pair.n))
    weakest = int(np.argmin(train.intervals.low if train.intervals else train.mean))  # nearest to failing
    deepest, last = int(np.argmin(val.mean)), len(pair.percents) - 1

    def verdict(score: Score, i: int, observed: str, judge_claim: Callable[[Comparison], Judgement]) -> Verdict:
        d, is_loss = pair.difference(score), score != VAL_ACCURACY
        judgement: Judgement = ("cannot be told", pair.too_few) if pair.too_few else judge_claim(pair)
        interval, unit = (d.interval(i), "nats") if is_loss else (d.t_interval(i), "accuracy")
        return Verdict(*judgement, d.at(i), interval, pair.n, observed, pair.percents[i], unit)

    return {
        "train_loss": verdict(TRAIN_LOSS, weakest, _ends(train), _judge_train_loss),
        "val_loss": verdict(VAL_LOSS, last, f"{_ends(val)}; {_crossing(val)}", _judge_val_loss),
        "overfitting": verdict(VAL_LOSS, deepest, _deficit(pair, deepest), _judge_overfitting),
        "need": verdict(VAL_ACCURACY, last, _worth(pair, last), _judge_need),
    }


def effect_text(claim: Mapping[str, Any]) -> str:
    """`+0.0123 [+0.0100, +0.0146] nats at 5 %`, of a verdict as a dict; empty without an effect."""
    if claim["effect"] is None:
        return ""
    return f"{_shown(claim['effect'], claim['interval'], claim['unit'])} at {claim['percent']} %"


def _judge_train_loss(pair: Comparison) -> Judgement:
    d = pair.difference(TRAIN_LOSS)
    _, low, high = d.band
    if (low > 0).all():
        if pair.left_out:
            few = f"{_listed(pair.left_out)} % have too few replicates"
            return "cannot be told", f"above 0 at every fraction compared, but {few}"
        return "holds", "the simultaneous 95 % band is above 0 at every fraction"
    # One such fraction suffices, so the test is the band, which allows for all fractions.
    not_lower = (high < 0) | ((low <= 0) & (low > -LOSS_MARGIN) & (high < LOSS_MARGIN))
    if not_lower.any():
        return "does not hold", f"the band is below 0, or within ±{LOSS_MARGIN} nats of it, at {_at(d, not_lower)}"
    return "cannot be told", f"the band contains 0 at {_at(d, low <= 0)}; more replicates would narrow it"


def _judge_val_loss(pair: Comparison) -> Judgement:
    d = pair.difference(VAL_LOSS)
    cross, later = d.crossover, d.percents >= FROM_PERCENT
    ahead = d.is_below & (d.percents > (cross.percent or np.inf))
    if cross.is_claimable and ahead.any():
        return "holds", f"above the crossover random is lower at {_at(d, ahead)}"
    if later.any() and d.is_not_below[later].all():
        shown = f"pretrained is lower, or within ±{LOSS_MARGIN} nats, at every fraction"
        return "does not hold", f"from {FROM_PERCENT} % on {shown}"
    if (d.mean <= 0).all():
        reason = "random is lower at every fraction, so nothing crosses in this range; try smaller fractions"
    elif not cross.is_claimable:
        reason = "no crossover in this range can be claimed; try more replicates or fractions"
    else:
        reason = f"above the crossover random is nowhere shown to be lower by more than {LOSS_MARGIN} nats"
    return "cannot be told", reason


def _judge_overfitting(pair: Comparison) -> Judgement:
    """Judge whether a deficit of the final loss is gone at the best epoch or after temperature scaling."""
    final, best, scaled = map(pair.difference, (VAL_LOSS, BEST_VAL_LOSS, SCALED_VAL_LOSS))
    if not (best.is_known and scaled.is_known):
        return "cannot be told", "the cells are from an earlier version, without temperature scaling"
    deficit, remains = final.is_below, final.is_below & best.is_below & scaled.is_below
    if not deficit.any():
        none = f"no deficit beyond {LOSS_MARGIN} nats in final validation loss"
        return "cannot be told", f"pretrained has {none}: nothing to explain"
    if (best.is_not_below | scaled.is_not_below)[deficit].all():
        return "holds", f"the deficit at {_at(final, deficit)} is gone at the best epoch or after scaling"
    if remains.any():
        where = f"at the best epoch and after temperature scaling at {_at(final, remains)}"
        return "does not hold", f"the deficit remains {where}"
    return "cannot be told", "the deficit at the best epoch and after scaling is neither shown nor excluded"


def _judge_need(pair: Comparison) -> Judgement:
    """Judge whether accuracies are equal at 100 %, and effective data is small from 25 % on."""
    d, data, judged = pair.difference(VAL_ACCURACY), pair.effective_data, _is_judged(pair)
    if pair.percents[-1] != 100:
        return "cannot be told", "the sweep has no fraction of 100 %"
    low, high = d.t_interval(len(judged) - 1) or (-np.inf, np.inf)
    margin = f"{100 * ACCURACY_MARGIN:.1f} points"
    exceeds = judged & (data.multiplier > MAX_MULTIPLIER) & data.exceeds(MAX_MULTIPLIER, judged)
    uncertain = judged & (data.high > MAX_MULTIPLIER)
    reasons = [f"accuracy differs by more than {margin}"] if low > ACCURACY_MARGIN or high < -ACCURACY_MARGIN else []
    reasons += [f"the multiplier exceeds {MAX_MULTIPLIER} at {_at(d, exceeds)}"] if exceeds.any() else []
    if reasons:
        return "does not hold", " and ".join(reasons)
    if not d.is_equivalent[-1]:
        return "cannot be told", f"accuracies at 100 % are not shown to be within {margin}; try more replicates"
    if not judged.any():
        between = f"{FROM_PERCENT} to {100 / MAX_MULTIPLIER:.0f} %"
        return "cannot be told", f"no fraction from {between} to measure effective data at"
    if uncertain.any():
        return "cannot be told", f"the multiplier's interval contains {MAX_MULTIPLIER} at {_at(d, uncertain)}"
    equal = f"accuracies at 100 % are within {margin}"
    return "holds", f"{equal}, the multiplier is at most {MAX_MULTIPLIER} from 25 % on"


def _is_judged(pair: Comparison) -> Mask:
    """Fractions at which effective data is judged: from 25 %, up to where 1.5 times the data exists."""
    percents = np.array(pair.percents)
    return (percents >= FROM_PERCENT) & (percents * MAX_MULTIPLIER <= percents[-1])


def _ends(d: Difference) -> str:
    """Describe both ends with intervals, and at how many fractions the mean is above 0."""
    ends = " and ".join(f"{_with_interval(d, i)} at {d.percents[i]:.0f} %" for i in sorted({0, len(d.percents) - 1}))
    return f"random minus pretrained is {ends}, above 0 at {(d.mean > 0).sum()} of {len(d.percents)} fractions"


def _crossing(d: Difference) -> str:
    percent, never, n = d.crossover
    where = "no crossover" if percent is None else f"crossover of the mean at {percent:.0f} %"
    return where + (f", none in {never:.0%} of the resamples" if n > 1 else "")


def _deficit(pair: Comparison, i: int) -> str:
    whens = {
        VAL_LOSS: "at the final epoch",
        BEST_VAL_LOSS: "at the best epoch",
        SCALED_VAL_LOSS: "after temperature scaling",
    }
    known = [
        f"{_with_interval(d, i)} {when}" for score, when in whens.items() if (d := pair.difference(score)).is_known
    ]
    return f"validation loss at {pair.percents[i]} %: random minus pretrained {', '.join(known)}"


def _worth(pair: Comparison, i: int) -> str:
    d, data = pair.difference(VAL_ACCURACY), pair.effective_data
    observed = (
        f"accuracy at {pair.percents[i]} %: random minus pretrained {_shown(d.at(i), d.t_interval(i), 'accuracy')}"
    )
    multipliers = ", ".join(
        f"{'>= ' if data.at_least[j] else ''}x{data.multiplier[j]:.2f} at {pair.percents[j]} %"
        for j in np.flatnonzero(_is_judged(pair))
    )
    return observed + (f"; effective data {multipliers}" if multipliers else "")


def _with_interval(d: Difference, i: int) -> str:
    return _shown(d.at(i), d.interval(i), "")


def _shown(effect: float, interval: Interval | None, unit: str) -> str:
    """The effect with its interval; that of an accuracy in points."""
    scale, digits, unit = (100, 2, "points") if unit == "accuracy" else (1, 4, unit)
    between = f" [{', '.join(f'{scale * limit:+.{digits}f}' for limit in interval)}]" if interval else ""
    return f"{scale * effect:+.{digits}f}{between} {unit}".rstrip()


def _at(d: Difference, where: Mask) -> str:
    """The fractions as a phrase: `5, 10 and 25 %`."""
    return _listed([int(percent) for percent in d.percents[where]]) + " %"


def _listed(percents: Sequence[int]) -> str:
    *first, last = map(str, percents)
    return f"{', '.join(first)} and {last}" if first else last
