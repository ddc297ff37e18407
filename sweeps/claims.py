"""The four claims of the original report, and what a sweep says of them."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from sweeps.statistics import MIN_REPLICATES, Array, crossover, simultaneous_band, t_interval
from sweeps.table import Row, by_replicate, finished_percents

HOLDS, DOES_NOT_HOLD, CANNOT_BE_TOLD = "holds", "does not hold", "cannot be told"
CLAIMS = {
    "train_loss": "training loss: pretrained is lower at every fraction",
    "val_loss": "validation loss: random is lower from some fraction on",
    "overfitting": "the pretrained model over-fits",
    "need": "both are so good that transfer is hardly needed",
}


def judge(rows: Sequence[Row]) -> dict[str, dict[str, Any]]:
    """Claim -> verdict, reason, and what is observed. Replicates with a missing cell are left out of the means."""
    percents = finished_percents(rows)
    observed = {name: _difference(rows, score, percents) for name, score in _SCORES.items()}
    return {
        "train_loss": _judge_train_loss(percents, observed["train_loss"]),
        "val_loss": _judge_val_loss(percents, observed["val_loss"]),
        "overfitting": _judge_overfitting(percents, observed["val_loss"], observed["best_val_loss"]),
        "need": _judge_need(percents, observed["val_accuracy"]),
    }


_SCORES = {
    "train_loss": "final/train_loss",
    "val_loss": "final/val_loss",
    "best_val_loss": "best/val_loss",
    "val_accuracy": "final/val_accuracy",
}


def _difference(rows: Sequence[Row], score: str, percents: list[int]) -> Array:
    """random - pretrained, [n_complete_replicates, n_percents]."""
    d = by_replicate(rows, "random", score, percents) - by_replicate(rows, "pretrained", score, percents)
    return d[~np.isnan(d).any(axis=1)] if len(percents) else d[:0]


def _answer(d: Array, verdict: str, reason: str, observed: str) -> dict[str, Any]:
    return {"verdict": verdict, "reason": reason, "observed": observed, "n_replicates": len(d)}


def _too_few(d: Array) -> str:
    if len(d) < MIN_REPLICATES:
        return f"{len(d)} complete replicates, and {MIN_REPLICATES} are the floor for a claim"
    return ""


def _signs(percents: list[int], d: Array) -> str:
    ends = " and ".join(f"{_mean(d[:, i])} at {percents[i]} %" for i in sorted({0, len(percents) - 1}))
    n_positive = int((d.mean(axis=0) > 0).sum())
    return f"random minus pretrained is {ends}, positive at {n_positive} of {len(percents)} fractions"


def _mean(values: Array, unit: float = 1.0, digits: int = 4) -> str:
    """Mean over replicates with its 95 % t-interval, which one replicate has not."""
    mean = f"{unit * values.mean():+.{digits}f}"
    if len(values) < 2:
        return mean
    band = t_interval(unit * values[:, None])
    return f"{mean} [{band.low[0]:+.{digits}f}, {band.high[0]:+.{digits}f}]"


def _judge_train_loss(percents: list[int], d: Array) -> dict[str, Any]:
    if not len(d):
        return _answer(d, CANNOT_BE_TOLD, "no complete replicate of both inits", "")
    if reason := _too_few(d):
        return _answer(d, CANNOT_BE_TOLD, reason, _signs(percents, d))
    band = simultaneous_band(d)
    if (band.low > 0).all():
        return _answer(d, HOLDS, "the simultaneous 95 % band is above 0 at every fraction", _signs(percents, d))
    if (band.high < 0).any():
        where = [p for p, high in zip(percents, band.high, strict=True) if high < 0]
        return _answer(d, DOES_NOT_HOLD, f"the band is below 0 at {where} %", _signs(percents, d))
    return _answer(d, CANNOT_BE_TOLD, "the simultaneous 95 % band contains 0; more replicates", _signs(percents, d))


def _judge_val_loss(percents: list[int], d: Array) -> dict[str, Any]:
    if not len(d):
        return _answer(d, CANNOT_BE_TOLD, "no complete replicate of both inits", "")
    at = crossover(np.array(percents, float), d.mean(axis=0))
    observed = _signs(percents, d) + ("; no crossover" if at is None else f"; crossover of the mean at {at:.0f} %")
    if reason := _too_few(d):
        return _answer(d, CANNOT_BE_TOLD, reason, observed)
    band = simultaneous_band(d)
    above_25 = np.array(percents) >= 25
    if above_25.any() and (band.low[above_25] >= 0).all():
        return _answer(d, DOES_NOT_HOLD, "the band is above 0 at every fraction from 25 % on", observed)
    reason = "bootstrap of the crossover is not computed by this version"
    return _answer(d, CANNOT_BE_TOLD, reason, observed)


def _judge_overfitting(percents: list[int], final: Array, best: Array) -> dict[str, Any]:
    if not len(final):
        return _answer(final, CANNOT_BE_TOLD, "no complete replicate of both inits", "")
    observed = (
        f"validation loss at {percents[-1]} %, random minus pretrained: {_mean(final[:, -1])} at the final epoch, "
        f"{_mean(best[:, -1])} at the best"
    )
    reason = _too_few(final) or "temperature scaling is not computed by this version"
    return _answer(final, CANNOT_BE_TOLD, reason, observed)


def _judge_need(percents: list[int], d: Array) -> dict[str, Any]:
    if not len(d):
        return _answer(d, CANNOT_BE_TOLD, "no complete replicate of both inits", "")
    observed = f"accuracy at {percents[-1]} %: random minus pretrained {_mean(d[:, -1], 100.0, 2)} points"
    reason = _too_few(d) or "effective data transferred is not computed by this version"
    return _answer(d, CANNOT_BE_TOLD, reason, observed)
