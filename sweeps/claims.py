"""The four claims of the original report, and what a sweep says of them.

Rows in; for each claim a verdict with an effect, its interval and the reason out. Differences are random minus
pretrained, so that a loss above 0 means that pretraining helps.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from sweeps.comparison import ACCURACY_MARGIN, LOSS_MARGIN, Comparison, Difference, compare
from sweeps.statistics import effective_data, find_crossover, t_interval
from sweeps.table import Row

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
FROM_PERCENT = 25  # where the report sees random ahead
MAX_MULTIPLIER = 1.5  # of the effective data, up to which transfer is hardly needed
TRAIN, VAL, ACCURACY = "final/train_loss", "final/val_loss", "final/val_accuracy"
BEST, SCALED = "best/val_loss", "final/val_scaled_loss"


@dataclass(frozen=True)
class Verdict:
    """What is said of a claim or a prediction."""

    verdict: Answer
    reason: str
    effect: float | None = None
    interval: tuple[float, float] | None = None
    n_replicates: int = 0
    observed: str = ""
    """The effects in words, whatever the verdict."""
    percent: int | None = None
    """Fraction at which the effect is taken."""
    unit: str = "nats"

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def judge(rows: Sequence[Row]) -> dict[str, Verdict]:
    """Claim -> verdict. Replicates with a missing cell are left out."""
    pair = compare(rows)
    if not pair.n:
        return dict.fromkeys(CLAIMS, Verdict(CANNOT_BE_TOLD, pair.too_few))
    return {
        "train_loss": judge_train_loss(pair),
        "val_loss": judge_val_loss(pair),
        "overfitting": judge_overfitting(pair),
        "need": judge_need(pair),
    }


def judge_train_loss(pair: Comparison) -> Verdict:
    """Pretrained lower at every fraction (final epoch, evaluation mode). The effect is the smallest one."""
    d = pair.difference(TRAIN)
    weakest = int(np.argmin(d.intervals.low if d.intervals else d.d.mean(axis=0)))
    verdict, reason = CANNOT_BE_TOLD, pair.too_few
    if not reason:
        below = (d.band.high < 0) | d.is_equivalent
        if (d.band.low > 0).all():
            verdict, reason = HOLDS, "the simultaneous 95 % band is above 0 at every fraction"
        elif below.any():
            verdict = DOES_NOT_HOLD
            reason = f"pretrained is not lower (band below 0, or within ±{LOSS_MARGIN} nats) at {_at(d, below)}"
        else:
            reason = f"the band contains 0 at {_at(d, d.band.low <= 0)}; more replicates would narrow it"
    return _verdict(d, weakest, verdict, reason, signs(d))


def judge_val_loss(pair: Comparison) -> Verdict:
    """Random lower from some fraction on (final epoch). The effect is that at the largest fraction."""
    d, last = pair.difference(VAL), len(pair.percents) - 1
    cross = find_crossover(d.percents, d.d)
    where = "no crossover" if cross.percent is None else f"crossover of the mean at {cross.percent:.0f} %"
    observed = f"{signs(d)}; {where}, none in {cross.never:.0%} of the resamples"
    verdict, reason = CANNOT_BE_TOLD, pair.too_few
    if not reason:
        later = d.percents >= FROM_PERCENT
        random_ahead = (d.band.high < 0) & (d.percents > (cross.percent or np.inf))
        not_behind = (d.band.low >= 0) | d.is_equivalent
        if cross.is_claimable and random_ahead.any():
            verdict, reason = HOLDS, f"a crossover, and above it the band is below 0 at {_at(d, random_ahead)}"
        elif later.any() and not_behind[later].all():
            verdict = DOES_NOT_HOLD
            reason = f"from {FROM_PERCENT} % on pretrained is lower, or within ±{LOSS_MARGIN} nats, at every fraction"
        elif not cross.is_claimable:
            reason = "no crossover in this range can be claimed; more replicates or fractions would tell"
        else:
            reason = "above the crossover the band contains 0 everywhere; more replicates would narrow it"
    return _verdict(d, last, verdict, reason, observed)


def judge_overfitting(pair: Comparison) -> Verdict:
    """A deficit of the final loss that is gone at the best epoch or after temperature scaling.

    The effect is the final difference where it is lowest.
    """
    final, best, scaled = (pair.difference(score) for score in (VAL, BEST, SCALED))
    deepest = int(np.argmin(final.d.mean(axis=0)))
    percent = pair.percents[deepest]
    observed = (
        f"validation loss at {percent} %: random minus pretrained {_with_interval(final, deepest)} at the final epoch"
    )
    for d, when in ((best, "at the best epoch"), (scaled, "after temperature scaling")):
        if not np.isnan(d.d).any():
            observed += f", {_with_interval(d, deepest)} {when}"
    verdict, reason = CANNOT_BE_TOLD, pair.too_few
    if not reason and np.isnan(scaled.d).any():
        reason = "the cells were made by an earlier version, without temperature scaling"
    if not reason:
        deficit = final.band.high < 0
        gone_at_best, gone_when_scaled = ((d.band.low > 0) | d.is_equivalent for d in (best, scaled))
        remains = deficit & (best.band.high < 0) & (scaled.band.high < 0)
        if not deficit.any():
            reason = "pretrained has no deficit in final validation loss, so there is nothing to explain"
        elif (gone_at_best | gone_when_scaled)[deficit].all():
            verdict, reason = HOLDS, f"the deficit at {_at(final, deficit)} is gone at the best epoch or after scaling"
        elif remains.any():
            verdict = DOES_NOT_HOLD
            reason = f"the deficit remains at the best epoch and after temperature scaling at {_at(final, remains)}"
        else:
            reason = "the deficit at the best epoch and after scaling is neither shown nor excluded"
    return _verdict(final, deepest, verdict, reason, observed)


def judge_need(pair: Comparison) -> Verdict:
    """Equal accuracy at 100 %, and an effective-data multiplier of at most 1.5 from 25 % on.

    At fractions above 2/3 of the largest 1.5 times the data is more than there is, so the multiplier is not judged.
    The effect is the difference of accuracies at the largest fraction.
    """
    d, last = pair.difference(ACCURACY), len(pair.percents) - 1
    data = effective_data(d.percents, pair.scores("random", VAL), pair.scores("pretrained", VAL))
    judged = (d.percents >= FROM_PERCENT) & (d.percents * MAX_MULTIPLIER <= d.percents[-1])
    multipliers = ", ".join(
        f"{'>= ' if data.at_least[i] else ''}x{data.multiplier[i]:.2f} at {pair.percents[i]} %"
        for i in np.flatnonzero(judged)
    )
    observed = f"accuracy at {pair.percents[last]} %: random minus pretrained {_points(d, last)}"
    observed += f"; effective data {multipliers}" if multipliers else ""
    verdict, reason = CANNOT_BE_TOLD, pair.too_few
    if not reason and pair.percents[last] != 100:
        reason = "there is no fraction of 100 %"
    interval = None
    if pair.n >= 2:
        at_100 = t_interval(d.d[:, [last]])
        interval = float(at_100.low[0]), float(at_100.high[0])
    if not reason and interval:
        differs = interval[0] > ACCURACY_MARGIN or interval[1] < -ACCURACY_MARGIN
        exceeds, uncertain = judged & (data.low > MAX_MULTIPLIER), judged & (data.high > MAX_MULTIPLIER)
        margin = f"{100 * ACCURACY_MARGIN:.1f} points"
        if differs or exceeds.any():
            reasons = [f"accuracy differs by more than {margin}"] if differs else []
            reasons += [f"the multiplier exceeds {MAX_MULTIPLIER} at {_at(d, exceeds)}"] if exceeds.any() else []
            verdict, reason = DOES_NOT_HOLD, " and ".join(reasons)
        elif not d.is_equivalent[last]:
            reason = f"accuracies at 100 % are not shown to be within {margin}; more replicates would tell"
        elif not judged.any():
            reason = f"no fraction from {FROM_PERCENT} to {100 / MAX_MULTIPLIER:.0f} % to measure effective data at"
        elif uncertain.any():
            reason = f"the multiplier's interval contains {MAX_MULTIPLIER} at {_at(d, uncertain)}"
        else:
            verdict = HOLDS
            reason = f"accuracies at 100 % are within {margin}, the multiplier is at most {MAX_MULTIPLIER} from 25 % on"
    return Verdict(verdict, reason, d.at(last), interval, d.n, observed, pair.percents[last], "accuracy")


def _verdict(d: Difference, i: int, verdict: Answer, reason: str, observed: str) -> Verdict:
    return Verdict(verdict, reason, d.at(i), d.interval(i), d.n, observed, int(d.percents[i]))


def signs(d: Difference) -> str:
    """Both ends with intervals, and at how many fractions the mean is above 0."""
    ends = " and ".join(f"{_with_interval(d, i)} at {d.percents[i]:.0f} %" for i in sorted({0, len(d.percents) - 1}))
    n_positive = int((d.d.mean(axis=0) > 0).sum())
    return f"random minus pretrained is {ends}, above 0 at {n_positive} of {len(d.percents)} fractions"


def _with_interval(d: Difference, i: int) -> str:
    interval = d.interval(i)
    return f"{d.at(i):+.4f}" + ("" if interval is None else f" [{interval[0]:+.4f}, {interval[1]:+.4f}]")


def _points(d: Difference, i: int) -> str:
    text = f"{100 * d.at(i):+.2f}"
    if d.n >= 2:
        one = t_interval(100 * d.d[:, [i]])
        text += f" [{one.low[0]:+.2f}, {one.high[0]:+.2f}]"
    return f"{text} points"


def _at(d: Difference, where: np.ndarray) -> str:
    """The fractions as a phrase: `5, 10 and 25 %`."""
    percents = [f"{percent:.0f}" for percent in d.percents[where]]
    return " and ".join([", ".join(percents[:-1]), percents[-1]] if len(percents) > 1 else percents) + " %"
