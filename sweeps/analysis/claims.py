"""Verdicts of a sweep on the four claims of the original report.

A comparison in; for each claim a verdict with its effect, interval and reason out. Differences are random minus
pretrained: a loss above 0 means that pretraining helps.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from sweeps.analysis.comparison import ACCURACY_MARGIN, LOSS_MARGIN, Comparison, Difference
from sweeps.rows import BEST_VAL_LOSS, SCALED_VAL_LOSS, TRAIN_LOSS, VAL_ACCURACY, VAL_LOSS

Answer = Literal["holds", "does not hold", "cannot be told"]
HOLDS: Answer = "holds"
DOES_NOT_HOLD: Answer = "does not hold"
CANNOT_BE_TOLD: Answer = "cannot be told"
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
    interval: tuple[float, float] | None = None
    n_replicates: int = 0
    observed: str = ""
    """The effects in words, given with every verdict."""
    percent: int | None = None
    """Fraction at which the effect is taken."""
    unit: str = "nats"

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def judge(pair: Comparison) -> dict[str, Verdict]:
    """Judge every claim in `CLAIMS`."""
    if not pair.n:
        return dict.fromkeys(CLAIMS, Verdict(CANNOT_BE_TOLD, pair.too_few))
    if not all(pair.difference(score).is_known for score in (TRAIN_LOSS, VAL_LOSS, VAL_ACCURACY)):
        return dict.fromkeys(CLAIMS, Verdict(CANNOT_BE_TOLD, "cells lack their final scores", n_replicates=pair.n))
    return {
        "train_loss": judge_train_loss(pair),
        "val_loss": judge_val_loss(pair),
        "overfitting": judge_overfitting(pair),
        "need": judge_need(pair),
    }


def judge_train_loss(pair: Comparison) -> Verdict:
    """Judge the training loss (final epoch, evaluation mode). The effect is at the fraction nearest to failing."""
    d = pair.difference(TRAIN_LOSS)
    weakest = int(np.argmin(d.intervals.low if d.intervals else d.d.mean(axis=0)))
    verdict, reason = CANNOT_BE_TOLD, pair.too_few
    if not reason:
        # One such fraction suffices, so the test is the band, which allows for all fractions.
        not_lower = (d.band.high < 0) | ((d.band.low <= 0) & (d.band.low > -LOSS_MARGIN) & (d.band.high < LOSS_MARGIN))
        if (d.band.low > 0).all() and pair.left_out:
            reason = f"above 0 at every fraction compared, but {_listed(pair.left_out)} % have too few replicates"
        elif (d.band.low > 0).all():
            verdict, reason = HOLDS, "the simultaneous 95 % band is above 0 at every fraction"
        elif not_lower.any():
            verdict = DOES_NOT_HOLD
            reason = f"the band is below 0, or within ±{LOSS_MARGIN} nats of it, at {_at(d, not_lower)}"
        else:
            reason = f"the band contains 0 at {_at(d, d.band.low <= 0)}; more replicates would narrow it"
    return verdict_at(d, weakest, verdict, reason, signs(d))


def judge_val_loss(pair: Comparison) -> Verdict:
    """Judge the validation loss (final epoch). The effect is at the largest fraction."""
    d, last = pair.difference(VAL_LOSS), len(pair.percents) - 1
    cross = d.crossover
    where = "no crossover" if cross.percent is None else f"crossover of the mean at {cross.percent:.0f} %"
    observed = f"{signs(d)}; {where}"
    if pair.n > 1:
        observed += f", none in {cross.never:.0%} of the resamples"
    verdict, reason = CANNOT_BE_TOLD, pair.too_few
    if not reason:
        later = d.percents >= FROM_PERCENT
        random_ahead = d.is_below & (d.percents > (cross.percent or np.inf))
        not_behind = (d.band.low >= 0) | d.is_equivalent
        if cross.is_claimable and random_ahead.any():
            verdict, reason = HOLDS, f"above the crossover random is lower at {_at(d, random_ahead)}"
        elif later.any() and not_behind[later].all():
            verdict = DOES_NOT_HOLD
            reason = f"from {FROM_PERCENT} % on pretrained is lower, or within ±{LOSS_MARGIN} nats, at every fraction"
        elif d.is_nowhere_above:
            reason = "random is lower at every fraction, so nothing crosses in this range; try smaller fractions"
        elif not cross.is_claimable:
            reason = "no crossover in this range can be claimed; try more replicates or fractions"
        else:
            reason = f"above the crossover random is nowhere shown to be lower by more than {LOSS_MARGIN} nats"
    return verdict_at(d, last, verdict, reason, observed)


def judge_overfitting(pair: Comparison) -> Verdict:
    """Judge whether a deficit of the final loss is gone at the best epoch or after temperature scaling.

    The effect is the final difference at the fraction where it is lowest.
    """
    final, best, scaled = (pair.difference(score) for score in (VAL_LOSS, BEST_VAL_LOSS, SCALED_VAL_LOSS))
    deepest = int(np.argmin(final.d.mean(axis=0)))
    observed = f"validation loss at {pair.percents[deepest]} %: random minus pretrained "
    observed += f"{_with_interval(final, deepest)} at the final epoch"
    for d, when in ((best, "at the best epoch"), (scaled, "after temperature scaling")):
        if d.is_known:
            observed += f", {_with_interval(d, deepest)} {when}"
    verdict, reason = CANNOT_BE_TOLD, pair.too_few
    if not reason and not (best.is_known and scaled.is_known):
        reason = "the cells are from an earlier version, without temperature scaling"
    if not reason:
        deficit = final.is_below
        gone, remains = best.is_not_below | scaled.is_not_below, deficit & best.is_below & scaled.is_below
        if not deficit.any():
            reason = f"pretrained has no deficit beyond {LOSS_MARGIN} nats in final validation loss: nothing to explain"
        elif gone[deficit].all():
            verdict, reason = HOLDS, f"the deficit at {_at(final, deficit)} is gone at the best epoch or after scaling"
        elif remains.any():
            verdict = DOES_NOT_HOLD
            reason = f"the deficit remains at the best epoch and after temperature scaling at {_at(final, remains)}"
        else:
            reason = "the deficit at the best epoch and after scaling is neither shown nor excluded"
    return verdict_at(final, deepest, verdict, reason, observed)


def judge_need(pair: Comparison) -> Verdict:
    """Judge whether accuracies are equal at 100 % and the effective-data multiplier is at most 1.5 from 25 % on.

    The multiplier is not judged above 2/3 of the largest fraction, where 1.5 times the data does not exist.
    The effect is the difference of accuracies at the largest fraction.
    """
    d, last = pair.difference(VAL_ACCURACY), len(pair.percents) - 1
    data = pair.effective_data
    judged = (d.percents >= FROM_PERCENT) & (d.percents * MAX_MULTIPLIER <= d.percents[-1])
    multipliers = ", ".join(
        f"{'>= ' if data.at_least[i] else ''}x{data.multiplier[i]:.2f} at {pair.percents[i]} %"
        for i in np.flatnonzero(judged)
    )
    observed = f"accuracy at {pair.percents[last]} %: random minus pretrained {_points(d, last)}"
    observed += f"; effective data {multipliers}" if multipliers else ""
    verdict, reason = CANNOT_BE_TOLD, pair.too_few
    if not reason and pair.percents[last] != 100:
        reason = "the sweep has no fraction of 100 %"
    interval = d.t_interval(last)
    if not reason and interval:
        differs = interval[0] > ACCURACY_MARGIN or interval[1] < -ACCURACY_MARGIN
        exceeds = judged & (data.multiplier > MAX_MULTIPLIER) & data.exceeds(MAX_MULTIPLIER, judged)
        uncertain = judged & (data.high > MAX_MULTIPLIER)
        margin = f"{100 * ACCURACY_MARGIN:.1f} points"
        if differs or exceeds.any():
            reasons = [f"accuracy differs by more than {margin}"] if differs else []
            reasons += [f"the multiplier exceeds {MAX_MULTIPLIER} at {_at(d, exceeds)}"] if exceeds.any() else []
            verdict, reason = DOES_NOT_HOLD, " and ".join(reasons)
        elif not d.is_equivalent[last]:
            reason = f"accuracies at 100 % are not shown to be within {margin}; try more replicates"
        elif not judged.any():
            reason = f"no fraction from {FROM_PERCENT} to {100 / MAX_MULTIPLIER:.0f} % to measure effective data at"
        elif uncertain.any():
            reason = f"the multiplier's interval contains {MAX_MULTIPLIER} at {_at(d, uncertain)}"
        else:
            verdict = HOLDS
            reason = f"accuracies at 100 % are within {margin}, the multiplier is at most {MAX_MULTIPLIER} from 25 % on"
    return Verdict(verdict, reason, d.at(last), interval, d.n, observed, pair.percents[last], "accuracy")


def verdict_at(d: Difference, i: int, verdict: Answer, reason: str, observed: str) -> Verdict:
    """Verdict with the effect and the interval, in nats, at the i-th fraction."""
    return Verdict(verdict, reason, d.at(i), d.interval(i), d.n, observed, int(d.percents[i]))


def signs(d: Difference) -> str:
    """Describe both ends with intervals, and at how many fractions the mean is above 0."""
    ends = " and ".join(f"{_with_interval(d, i)} at {d.percents[i]:.0f} %" for i in sorted({0, len(d.percents) - 1}))
    n_positive = int((d.d.mean(axis=0) > 0).sum())
    return f"random minus pretrained is {ends}, above 0 at {n_positive} of {len(d.percents)} fractions"


def _with_interval(d: Difference, i: int) -> str:
    interval = d.interval(i)
    return f"{d.at(i):+.4f}" + ("" if interval is None else f" [{interval[0]:+.4f}, {interval[1]:+.4f}]")


def _points(d: Difference, i: int) -> str:
    interval = d.t_interval(i)
    between = "" if interval is None else f" [{100 * interval[0]:+.2f}, {100 * interval[1]:+.2f}]"
    return f"{100 * d.at(i):+.2f}{between} points"


def _at(d: Difference, where: np.ndarray) -> str:
    """The fractions as a phrase: `5, 10 and 25 %`."""
    return _listed([int(percent) for percent in d.percents[where]]) + " %"


def _listed(percents: Sequence[int]) -> str:
    texts = [str(percent) for percent in percents]
    return " and ".join([", ".join(texts[:-1]), texts[-1]] if len(texts) > 1 else texts)
