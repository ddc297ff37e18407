"""The seven predictions written before the first sweep, and which of them came true.

One sweep with those that it is compared to in; a verdict for each prediction out. A prediction that needs a sweep that
is not there cannot be told, and says which one to make.
"""

from collections.abc import Callable, Sequence

import numpy as np
from scipy import stats

from fmnist_transfer.recipe import REFERENCE_RECIPE
from sweeps.claims import (
    ACCURACY,
    BEST,
    CANNOT_BE_TOLD,
    DOES_NOT_HOLD,
    HOLDS,
    SCALED,
    VAL,
    Verdict,
    judge,
)
from sweeps.comparison import ACCURACY_MARGIN, Comparison, compare
from sweeps.grid import Init
from sweeps.logged import LoggedSweep
from sweeps.statistics import effective_data, find_crossover, share_moved_right, t_interval

PREDICTIONS = {
    "P1": "under the reference recipe the report's pattern returns",
    "P2": "with the best epoch or temperature-scaled loss the crossover moves right or vanishes, and accuracy at 100 % "
    "differs by less than 0.3 points",
    "P3": "with equal steps the advantage at 5-10 % shrinks by more than half",
    "P4": "augmentation or shrink-perturb removes most of any deficit at 100 %, and selffer shows the same deficit",
    "P5": "semantic halves (0-4 / 5-9) transfer less than random halves",
    "P6": "the multiplier D_E/D_F falls with the fraction and is at most 2 above 25 %",
    "P7": "with the registered recipe for both inits pretraining helps nowhere; with a recipe tuned per init it helps "
    "at 5-10 % and nowhere above 25 %",
}
EARLY, LATE = (5, 10), 25  # percent
MAX_LATE_MULTIPLIER = 2.0
CERTAIN = 0.95  # share of the bootstrap resamples
SEMANTIC = ("01234", "56789")  # sources of the halves that go by kind of garment


def predict(sweep: LoggedSweep, others: Sequence[LoggedSweep]) -> dict[str, Verdict]:
    """Prediction -> verdict, from `sweep` and those laid beside it."""
    sweeps = [sweep, *others]
    return {
        "P1": _reference(sweeps),
        "P2": _over_confidence(compare(sweep.rows)),
        "P3": _equal_steps(sweeps),
        "P4": _deficit(sweep, others),
        "P5": _halves(sweeps),
        "P6": _multiplier(compare(sweep.rows)),
        "P7": _recipes(sweeps),
    }


def _untold(reason: str, n: int = 0, observed: str = "") -> Verdict:
    return Verdict(CANNOT_BE_TOLD, reason, n_replicates=n, observed=observed)


def is_reference(sweep: LoggedSweep) -> bool:
    """Whether it is of the original report's network and recipe."""
    return sweep.recipe == REFERENCE_RECIPE and not sweep.is_tuned


def _first(sweeps: Sequence[LoggedSweep], fits: Callable[[LoggedSweep], bool]) -> LoggedSweep | None:
    return next((sweep for sweep in sweeps if fits(sweep)), None)


def _reference(sweeps: Sequence[LoggedSweep]) -> Verdict:
    reference = _first(sweeps, is_reference)
    if reference is None:
        return _untold("needs a sweep of models:/cnn2-reference/best")
    claims = judge(reference.rows)
    loss, val = claims["train_loss"], claims["val_loss"]
    verdicts = {loss.verdict, val.verdict}
    said = f"training loss {loss.verdict}, validation loss {val.verdict}"
    verdict = DOES_NOT_HOLD if DOES_NOT_HOLD in verdicts else HOLDS if verdicts == {HOLDS} else CANNOT_BE_TOLD
    return Verdict(verdict, f"of the report's first two claims: {said}", n_replicates=val.n_replicates)


def _over_confidence(pair: Comparison) -> Verdict:
    if not pair.n:
        return _untold(pair.too_few)
    scores = {"final": VAL, "best epoch": BEST, "temperature-scaled": SCALED}
    d = {name: pair.difference(score) for name, score in scores.items()}
    if np.isnan(d["temperature-scaled"].d).any():
        return _untold("the cells were made by an earlier version, without temperature scaling", pair.n)
    crossings = {name: find_crossover(one.percents, one.d) for name, one in d.items()}
    words = [
        f"{name} " + ("none" if one.percent is None else f"at {one.percent:.0f} %") for name, one in crossings.items()
    ]
    observed = f"crossover of the mean: {', '.join(words)}"
    if pair.too_few:
        return _untold(pair.too_few, pair.n, observed)
    final = crossings["final"]
    if not final.is_claimable or final.percent is None:
        return _untold("no crossover of the final loss can be claimed, so there is none to move", pair.n, observed)
    moved = [share_moved_right(one.percents, d["final"].d, one.d) for name, one in d.items() if name != "final"]
    observed += f"; further right or none in {moved[0]:.0%} and {moved[1]:.0%} of the resamples"
    accuracy = pair.difference(ACCURACY)
    interval = t_interval(accuracy.d[:, [-1]])
    apart = interval.low[0] > ACCURACY_MARGIN or interval.high[0] < -ACCURACY_MARGIN
    if max(moved) <= 1 - CERTAIN or apart:
        reason = "accuracies at 100 % differ by more" if apart else "the crossover does not move right"
        return Verdict(DOES_NOT_HOLD, reason, n_replicates=pair.n, observed=observed)
    if max(moved) >= CERTAIN and accuracy.is_equivalent[-1]:
        reason = "it moves, and accuracies are within 0.3 points"
        return Verdict(HOLDS, reason, n_replicates=pair.n, observed=observed)
    return _untold("moving, or accuracies within 0.3 points, is not shown", pair.n, observed)


def _equal_steps(sweeps: Sequence[LoggedSweep]) -> Verdict:
    """Shrinking is judged pair by pair: replicates of both sweeps share their draws."""
    epochs = _first(sweeps, lambda one: one.params.get("budget") == "epochs" and not one.is_tuned)
    steps = _first(
        sweeps,
        lambda one: (
            one.params.get("budget") == "steps"
            and epochs is not None
            and _same(one, epochs, "weights_digest", "seed", "recipe_mode")
        ),
    )
    if epochs is None or steps is None:
        return _untold("needs a sweep with --budget steps and one with --budget epochs of the same model")
    one, other = compare(epochs.rows), compare(steps.rows)
    percents = [percent for percent in EARLY if percent in one.percents and percent in other.percents]
    replicates = [r for r in one.replicates if r in other.replicates]
    if not percents or len(replicates) < 2:
        return _untold("the two sweeps share no replicates at 5 and 10 %")

    def early(pair: Comparison) -> np.ndarray:
        d = pair.difference(VAL)
        rows = [pair.replicates.index(r) for r in replicates]
        return d.d[rows][:, [pair.percents.index(p) for p in percents]].mean(axis=1, keepdims=True)

    of_epochs, of_steps = early(one), early(other)
    advantage, rest = t_interval(of_epochs), t_interval(of_steps - of_epochs / 2)
    observed = f"advantage {advantage.mean[0]:+.4f} nats by epochs, {of_steps.mean():+.4f} by steps"
    if len(replicates) < 6:
        return _untold(f"{len(replicates)} shared replicates, and 6 are the floor", len(replicates), observed)
    if advantage.low[0] <= 0:
        return _untold("there is no advantage by epochs that could shrink", len(replicates), observed)
    verdict = HOLDS if rest.high[0] < 0 else DOES_NOT_HOLD if rest.low[0] > 0 else CANNOT_BE_TOLD
    interval = (float(rest.low[0]), float(rest.high[0]))
    reason = "by steps minus half of that by epochs, 95 % t-interval"
    return Verdict(verdict, reason, float(rest.mean[0]), interval, len(replicates), observed)


def _same(one: LoggedSweep, other: LoggedSweep, *keys: str) -> bool:
    return all(one.params.get(key) == other.params.get(key) for key in keys)


def _deficit(sweep: LoggedSweep, others: Sequence[LoggedSweep]) -> Verdict:
    """At 100 %, of the final validation loss, beside random."""

    def deficit(of: LoggedSweep, init: Init) -> tuple[float, float, float, int] | None:
        pair = compare(of.rows, init)
        if 100 not in pair.percents or pair.n < 2:
            return None
        band = t_interval(-pair.difference(VAL).d[:, [pair.percents.index(100)]])
        return float(band.mean[0]), float(band.low[0]), float(band.high[0]), pair.n

    own = deficit(sweep, "pretrained")
    if own is None:
        return _untold("needs two replicates or more of pretrained and random at 100 %")
    observed = f"deficit of pretrained {own[0]:+.4f} [{own[1]:+.4f}, {own[2]:+.4f}] nats"
    shrunk, selffer = deficit(sweep, "shrink-perturb"), deficit(sweep, "selffer")
    for name, one in (("shrink-perturb", shrunk), ("selffer", selffer)):
        observed += f", of {name} {one[0]:+.4f} [{one[1]:+.4f}, {one[2]:+.4f}]" if one else ""
    if own[3] < 6:
        return _untold(f"{own[3]} replicates, and 6 are the floor", own[3], observed)
    if own[1] <= 0:
        return _untold("pretrained has no deficit at 100 % that could be removed", own[3], observed)
    augmented = [
        one
        for other in others
        if (other.recipe.flip or other.recipe.shift or other.recipe.erase)
        and not (sweep.recipe.flip or sweep.recipe.shift or sweep.recipe.erase)
        and (one := deficit(other, "pretrained"))
    ]
    removing = [one for one in (shrunk, *augmented) if one]
    if not removing or not selffer:
        return _untold("needs inits shrink-perturb (or a sweep with augmentation) and selffer", own[3], observed)
    removed, same = any(one[0] < own[0] / 2 for one in removing), selffer[1] > 0
    reason = (
        f"most of it {'is' if removed else 'is not'} removed; selffer {'has' if same else 'has not'} a deficit, too"
    )
    return Verdict(HOLDS if removed and same else DOES_NOT_HOLD, reason, own[0], own[1:3], own[3], observed)


def _halves(sweeps: Sequence[LoggedSweep]) -> Verdict:
    """Mean advantage over the fractions all splits share; a split is one replicate of the task."""
    pairs = {sweep.params.get("split", ""): compare(sweep.rows) for sweep in sweeps if not is_reference(sweep)}
    pairs = {split: pair for split, pair in pairs.items() if pair.n}
    shared = set.intersection(*(set(pair.percents) for pair in pairs.values())) if pairs else set()
    advantages: dict[str, list[float]] = {"semantic": [], "other": []}
    for split, pair in pairs.items():
        columns = [pair.percents.index(percent) for percent in sorted(shared)]
        if columns:
            kind = "semantic" if split.partition("/")[0] in SEMANTIC else "other"
            advantages[kind].append(float(pair.difference(VAL).d[:, columns].mean()))
    observed = "; ".join(
        f"{kind} halves {', '.join(f'{value:+.4f}' for value in values)} nats"
        for kind, values in advantages.items()
        if values
    )
    semantic, other = advantages["semantic"], advantages["other"]
    if not semantic or not other:
        return _untold("needs sweeps of semantic halves and of others", observed=observed)
    less, more = (stats.mannwhitneyu(semantic, other, alternative=way).pvalue for way in ("less", "greater"))
    reason = f"{len(semantic)} and {len(other)} splits, exact one-sided rank test p = {less:.3f}"
    verdict = HOLDS if less < 0.05 else DOES_NOT_HOLD if more < 0.05 else CANNOT_BE_TOLD
    if verdict == CANNOT_BE_TOLD:
        reason += "; with both semantic splits, five others or more could tell"
    return Verdict(verdict, reason, observed=observed)


def _multiplier(pair: Comparison) -> Verdict:
    if pair.n < 2 or len(pair.percents) < 3:
        return _untold(pair.too_few or "needs three fractions or more", pair.n)
    percents = np.array(pair.percents, float)
    data = effective_data(percents, pair.scores("random", VAL), pair.scores("pretrained", VAL))
    told = ~data.at_least & ~data.at_most
    bounds = [
        ">= " if over else "<= " if under else "" for over, under in zip(data.at_least, data.at_most, strict=True)
    ]
    observed = "multipliers " + ", ".join(
        f"{bound}{value:.2f} at {percent} %"
        for bound, value, percent in zip(bounds, data.multiplier, pair.percents, strict=True)
    )
    if pair.too_few:
        return _untold(pair.too_few, pair.n, observed)
    late = (percents > LATE) & (percents * MAX_LATE_MULTIPLIER <= percents[-1])
    if (data.low[late] > MAX_LATE_MULTIPLIER).any():
        return Verdict(DOES_NOT_HOLD, "it exceeds 2 above 25 %", n_replicates=pair.n, observed=observed)
    if late.any() and data.low[late].max() > data.high[0]:
        return Verdict(DOES_NOT_HOLD, "it rises with the fraction", n_replicates=pair.n, observed=observed)
    if not told[0] or not late.any():
        return _untold("it is not measured at the smallest fraction, or nowhere above 25 %", pair.n, observed)
    falls = data.low[0] > data.high[late].max()
    if falls and (data.high[late] <= MAX_LATE_MULTIPLIER).all():
        reason = "it is larger at the smallest fraction than above 25 %, where it is at most 2"
        return Verdict(HOLDS, reason, n_replicates=pair.n, observed=observed)
    return _untold("intervals of small and large fractions overlap", pair.n, observed)


def _recipes(sweeps: Sequence[LoggedSweep]) -> Verdict:
    model = _first(
        sweeps, lambda one: not one.is_tuned and one.params.get("budget") == "epochs" and not is_reference(one)
    )
    tuned = _first(
        sweeps, lambda one: one.is_tuned and model is not None and _same(one, model, "weights_digest", "budget")
    )
    if model is None or tuned is None:
        return _untold("needs a sweep with --recipe model and one with --recipe tuned of the same model")
    one, other = compare(model.rows), compare(tuned.rows)
    if one.too_few or other.too_few:
        return _untold(one.too_few or other.too_few, min(one.n, other.n))
    d, tuned_d = one.difference(VAL), other.difference(VAL)
    early = np.isin(tuned_d.percents, EARLY)
    late = tuned_d.percents > LATE
    helps_nowhere = not (d.band.low > 0).any()
    helps_early, helps_late = (tuned_d.band.low[early] > 0), (tuned_d.band.low[late] > 0)
    n = min(one.n, other.n)
    observed = (
        f"fractions at which the band is above 0: {int((d.band.low > 0).sum())} of {len(d.percents)} with the "
        f"registered recipe; tuned, {int(helps_early.sum())} of {len(helps_early)} at 5-10 % and "
        f"{int(helps_late.sum())} of {len(helps_late)} above 25 %"
    )
    if not helps_nowhere or helps_late.any() or ((tuned_d.band.high <= 0) | tuned_d.is_equivalent)[early].any():
        return Verdict(
            DOES_NOT_HOLD, "it helps where it should not, or not where it should", n_replicates=n, observed=observed
        )
    if helps_early.all() and len(helps_early):
        return Verdict(HOLDS, "as predicted at every fraction", n_replicates=n, observed=observed)
    return _untold("at 5-10 % the band of the tuned recipe contains 0", n, observed)
