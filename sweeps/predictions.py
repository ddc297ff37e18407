"""The seven predictions written before the first sweep, and which of them came true.

One sweep with those that it is compared to in; a verdict for each prediction out. A prediction that needs a sweep that
is not there cannot be told, and says which one to make.
"""

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
from scipy import stats

from fmnist_transfer.model import REFERENCE_SPEC
from fmnist_transfer.recipe import REFERENCE_RECIPE
from fmnist_transfer.split import DEFAULT_SPLIT
from sweeps.claims import CANNOT_BE_TOLD, DOES_NOT_HOLD, HOLDS, Answer, Verdict, judge, verdict_at
from sweeps.comparison import (
    ACCURACY,
    ACCURACY_MARGIN,
    BEST,
    LOSS_MARGIN,
    SCALED,
    VAL,
    Comparison,
    Difference,
)
from sweeps.grid import Init
from sweeps.logged import LoggedSweep
from sweeps.statistics import MIN_REPLICATES, Array, share_moved_right, t_interval

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
AUGMENTATION = ("recipe.flip", "recipe.shift", "recipe.erase")


def predict(sweep: LoggedSweep, others: Sequence[LoggedSweep]) -> dict[str, Verdict]:
    """Prediction -> verdict, from `sweep` and those laid beside it."""
    sweeps = [sweep, *others]
    return {
        "P1": _reference(sweeps),
        "P2": _over_confidence(sweep.pair),
        "P3": _equal_steps(sweeps),
        "P4": _deficit(sweep, others),
        "P5": _halves(sweeps),
        "P6": _multiplier(sweep.pair),
        "P7": _recipes(sweeps),
    }


def is_reference(sweep: LoggedSweep) -> bool:
    """Whether it is of the original report's network, recipe and budget."""
    spec = {f"spec.{key}": str(value) for key, value in REFERENCE_SPEC.to_dict().items()}
    same_spec = all(sweep.params.get(key) == value for key, value in spec.items())
    return same_spec and sweep.recipe == REFERENCE_RECIPE and not sweep.is_tuned and _is(sweep, budget="epochs")


def _is(sweep: LoggedSweep, **params: str) -> bool:
    return all(sweep.params.get(key) == value for key, value in params.items())


def _same_but(one: LoggedSweep, other: LoggedSweep, *keys: str) -> bool:
    """Whether the sweeps differ in nothing but these params."""
    return all(one.params.get(key) == other.params.get(key) for key in {*one.params, *other.params} - set(keys))


def _pairs(sweeps: Sequence[LoggedSweep], *keys: str) -> Iterator[tuple[LoggedSweep, LoggedSweep]]:
    """Ordered pairs of sweeps that differ in nothing but these params."""
    return ((one, other) for one, other in itertools.permutations(sweeps, 2) if _same_but(one, other, *keys))


def _untold(reason: str, n: int = 0, observed: str = "") -> Verdict:
    return Verdict(CANNOT_BE_TOLD, reason, n_replicates=n, observed=observed)


def _too_few(n: int) -> str:
    return "" if n >= MIN_REPLICATES else f"{n} replicates, and {MIN_REPLICATES} are the floor"


def _reference(sweeps: Sequence[LoggedSweep]) -> Verdict:
    references = [sweep for sweep in sweeps if is_reference(sweep) and _is(sweep, split=str(DEFAULT_SPLIT))]
    if not references:
        return _untold("needs a sweep of models:/cnn2-reference/best")
    reference = max(references, key=lambda sweep: sweep.pair.n)
    claims = judge(reference.pair)
    loss, val = claims["train_loss"], claims["val_loss"]
    verdicts = {loss.verdict, val.verdict}
    verdict = DOES_NOT_HOLD if DOES_NOT_HOLD in verdicts else HOLDS if verdicts == {HOLDS} else CANNOT_BE_TOLD
    reason = f"of the report's first two claims: training loss {loss.verdict}, validation loss {val.verdict}"
    return Verdict(verdict, reason, val.effect, val.interval, val.n_replicates, val.observed, val.percent)


def _over_confidence(pair: Comparison) -> Verdict:
    """The effect is the difference of accuracies at 100 %."""
    if not pair.n:
        return _untold(pair.too_few)
    d = {"final": pair.difference(VAL), "best epoch": pair.difference(BEST), "scaled": pair.difference(SCALED)}
    if not d["scaled"].is_known:
        return _untold("the cells were made by an earlier version, without temperature scaling", pair.n)
    crossings = {name: one.crossover for name, one in d.items()}
    at = [
        f"{name} {'none, ' + _everywhere(d[name]) if one.percent is None else f'at {one.percent:.0f} %'}"
        for name, one in crossings.items()
    ]
    observed = f"crossover of the mean: {', '.join(at)}"
    if pair.too_few or pair.percents[-1] != 100:
        return _untold(pair.too_few or "there is no fraction of 100 %", pair.n, observed)
    if not crossings["final"].is_claimable:
        return _untold("no crossover of the final loss can be claimed, so there is none to move", pair.n, observed)
    moved = [share_moved_right(one.percents, d["final"].d, one.d) for name, one in d.items() if name != "final"]
    observed += f"; further right in {moved[0]:.0%} and {moved[1]:.0%} of the resamples"
    accuracy = pair.difference(ACCURACY)
    low, high = accuracy.t_interval(len(pair.percents) - 1) or (-np.inf, np.inf)
    verdict, reason = CANNOT_BE_TOLD, "that it moves, or that accuracies are within 0.3 points, is not shown"
    if low > ACCURACY_MARGIN or high < -ACCURACY_MARGIN:
        verdict, reason = DOES_NOT_HOLD, "accuracies at 100 % differ by more"
    elif max(moved) <= 1 - CERTAIN:
        verdict, reason = DOES_NOT_HOLD, "the crossover does not move right"
    elif max(moved) >= CERTAIN and accuracy.is_equivalent[-1]:
        verdict, reason = HOLDS, "it moves, and accuracies are within 0.3 points"
    return Verdict(verdict, reason, accuracy.at(-1), (low, high), pair.n, observed, 100, "accuracy")


def _everywhere(d: Difference) -> str:
    """Why a difference has no crossover."""
    return "random is lower everywhere" if d.is_nowhere_above else "pretrained is lower at the end"


def _equal_steps(sweeps: Sequence[LoggedSweep]) -> Verdict:
    """Both sweeps share their draws. The effect is the advantage by steps minus half of that by epochs."""
    pairs = (pair for pair in _pairs(sweeps, "budget") if _is(pair[0], budget="epochs"))
    epochs, steps = next(pairs, (None, None))
    if epochs is None or steps is None:
        return _untold("needs a sweep with --budget steps and one with --budget epochs, otherwise alike")
    one, other = epochs.pair, steps.pair
    percents = [percent for percent in EARLY if percent in one.percents and percent in other.percents]
    replicates = [r for r in one.replicates if r in other.replicates]
    if not percents or len(replicates) < 2:
        return _untold("the two sweeps share no two replicates at 5 or 10 %")

    def early(pair: Comparison) -> Array:
        rows = [pair.replicates.index(r) for r in replicates]
        columns = [pair.percents.index(p) for p in percents]
        return pair.difference(VAL).d[rows][:, columns].mean(axis=1, keepdims=True)

    advantage, rest = t_interval(early(one)), t_interval(early(other) - early(one) / 2)
    observed = f"advantage {advantage.mean[0]:+.4f} nats by epochs, {early(other).mean():+.4f} by steps"
    n = len(replicates)
    verdict, reason = CANNOT_BE_TOLD, _too_few(n) or "the interval of steps minus half of epochs contains 0"
    if n >= MIN_REPLICATES and advantage.low[0] <= 0:
        reason = "there is no advantage by epochs that could shrink"
    elif n >= MIN_REPLICATES and rest.high[0] < 0:
        verdict, reason = HOLDS, "by steps it is less than half of that by epochs"
    elif n >= MIN_REPLICATES and rest.low[0] > 0:
        verdict, reason = DOES_NOT_HOLD, "by steps it is more than half of that by epochs"
    interval = (float(rest.low[0]), float(rest.high[0]))
    return Verdict(verdict, reason, float(rest.mean[0]), interval, n, observed)


def _at_100(sweep: LoggedSweep, init: Init) -> dict[int, float]:
    """Final validation loss of each replicate minus that of random weights."""
    losses = {
        (row.cell.init, row.cell.replicate): row.scores[VAL]
        for row in sweep.rows
        if row.cell.percent == 100 and VAL in row.scores
    }
    return {r: loss - losses["random", r] for (i, r), loss in losses.items() if i == init and ("random", r) in losses}


def _deficit(sweep: LoggedSweep, others: Sequence[LoggedSweep]) -> Verdict:
    """Of the final validation loss at 100 %. The effect is random minus pretrained, so a deficit is below 0."""
    own = _at_100(sweep, "pretrained")
    augmented = next(
        (
            _at_100(other, "pretrained")
            for other in others
            if _same_but(sweep, other, *AUGMENTATION, "weights_digest")
            and any(getattr(other.recipe, name.removeprefix("recipe.")) for name in AUGMENTATION)
            and not any(getattr(sweep.recipe, name.removeprefix("recipe.")) for name in AUGMENTATION)
        ),
        {},
    )
    parts = {
        "shrink-perturb": _at_100(sweep, "shrink-perturb"),
        "augmentation": augmented,
        "selffer": _at_100(sweep, "selffer"),
    }
    if len(own) < 2:
        return _untold("needs two replicates or more of pretrained and random at 100 %")
    band = t_interval(np.array([list(own.values())]).T)
    observed = f"deficit of pretrained {band.mean[0]:+.4f} [{band.low[0]:+.4f}, {band.high[0]:+.4f}] nats"
    observed += "".join(f", with {name} {np.mean(list(one.values())):+.4f}" for name, one in parts.items() if one)

    def answer(verdict: Answer, reason: str) -> Verdict:
        interval = (-float(band.high[0]), -float(band.low[0]))
        return Verdict(verdict, reason, -float(band.mean[0]), interval, len(own), observed, 100)

    if too_few := _too_few(len(own)):
        return answer(CANNOT_BE_TOLD, too_few)
    if band.low[0] <= 0:
        return answer(CANNOT_BE_TOLD, "pretrained has no deficit at 100 % that could be removed")
    removed = {name: _sign(own, parts[name], share=0.5) for name in ("shrink-perturb", "augmentation")}
    same = _sign(parts["selffer"], dict.fromkeys(parts["selffer"], 0.0))
    if 1 in removed.values() and same == 1:
        return answer(HOLDS, "more than half of it is removed, and selffer has a deficit, too")
    if set(removed.values()) == {-1}:
        return answer(DOES_NOT_HOLD, "neither shrink-perturb nor augmentation removes half of it")
    if same == -1:
        return answer(DOES_NOT_HOLD, "selffer has no deficit")
    if None in (same, removed["shrink-perturb"]):
        return answer(CANNOT_BE_TOLD, "needs six replicates of inits shrink-perturb and selffer")
    if removed["augmentation"] is None and removed["shrink-perturb"] == -1:
        return answer(CANNOT_BE_TOLD, "shrink-perturb does not; needs this sweep without augmentation, and one with it")
    return answer(CANNOT_BE_TOLD, "intervals of what is removed, or of selffer's deficit, contain 0")


def _sign(whole: dict[int, float], part: dict[int, float], share: float = 1.0) -> int | None:
    """Sign of share x whole - part by its paired 95 % t-interval; 0 if that contains 0, None below six replicates."""
    shared = sorted(whole.keys() & part.keys())
    if len(shared) < MIN_REPLICATES:
        return None
    band = t_interval(np.array([[share * whole[r] - part[r]] for r in shared]))
    return int(band.low[0] > 0) - int(band.high[0] < 0)


def _halves(sweeps: Sequence[LoggedSweep]) -> Verdict:
    """Mean advantage over the fractions that all splits share; a split is one replicate of the task, and N is of those.

    The effect is that of semantic halves minus that of others.
    """
    alike = [one for one in sweeps if _same_but(sweeps[0], one, "split", "weights_digest")]
    pairs: dict[str, Comparison] = {}
    for one in sorted(alike, key=lambda one: one.pair.n):  # of one split the sweep with most replicates
        if one.pair.n:
            pairs[one.params.get("split", "")] = one.pair
    shared = set.intersection(*(set(pair.percents) for pair in pairs.values())) if pairs else set()
    advantages: dict[bool, list[float]] = {True: [], False: []}
    for split, pair in pairs.items():
        columns = [pair.percents.index(percent) for percent in sorted(shared)]
        if columns:
            is_semantic = split.partition("/")[0] in SEMANTIC
            advantages[is_semantic].append(float(pair.difference(VAL).d[:, columns].mean()))
    semantic, other = advantages[True], advantages[False]
    observed = "; ".join(
        f"{kind} halves {', '.join(f'{value:+.4f}' for value in values)} nats"
        for kind, values in (("semantic", semantic), ("other", other))
        if values
    )
    if not shared and len(pairs) > 1:
        return _untold("the splits share no fraction")
    if not semantic or not other:
        return _untold("needs sweeps of semantic halves and of others, otherwise alike", observed=observed)
    n = len(semantic) + len(other)
    less, more = (
        float(stats.mannwhitneyu(semantic, other, alternative=way, method="exact").pvalue)
        for way in ("less", "greater")
    )
    reason = f"{len(semantic)} semantic and {len(other)} other splits, exact one-sided rank test p = {less:.3f}"
    verdict = HOLDS if less < 0.05 else DOES_NOT_HOLD if more < 0.05 else CANNOT_BE_TOLD
    if verdict == CANNOT_BE_TOLD:
        reason += "; both semantic splits and five others could tell"
    return Verdict(verdict, reason, float(np.mean(semantic) - np.mean(other)), n_replicates=n, observed=observed)


def _multiplier(pair: Comparison) -> Verdict:
    """The effect is the multiplier at the smallest fraction."""
    if pair.n < 2 or len(pair.percents) < 3:
        return _untold(pair.too_few or "needs three fractions or more", pair.n)
    percents, data = np.array(pair.percents, float), pair.effective_data
    bounds = [
        ">= " if over else "<= " if under else "" for over, under in zip(data.at_least, data.at_most, strict=True)
    ]
    observed = "multipliers " + ", ".join(
        f"{bound}{value:.2f} at {percent} %"
        for bound, value, percent in zip(bounds, data.multiplier, pair.percents, strict=True)
    )
    # Above half of the data a multiplier of 2 is more than there is.
    late = (percents > LATE) & (percents * MAX_LATE_MULTIPLIER <= percents[-1])
    verdict, reason = CANNOT_BE_TOLD, "intervals of small and large fractions overlap"
    if pair.too_few or not late.any():
        reason = pair.too_few or "no fraction between 25 and 50 % to measure it at"
    elif data.exceeds(MAX_LATE_MULTIPLIER, late):
        verdict, reason = DOES_NOT_HOLD, "it exceeds 2 above 25 %"
    elif data.low[late].max() > data.high[0]:
        verdict, reason = DOES_NOT_HOLD, "it rises with the fraction"
    elif data.low[0] > data.high[late].max() and (data.high[late] <= MAX_LATE_MULTIPLIER).all():
        verdict, reason = HOLDS, "it is larger at the smallest fraction than above 25 %, where it is at most 2"
    interval = (float(data.low[0]), float(data.high[0]))
    return Verdict(verdict, reason, float(data.multiplier[0]), interval, pair.n, observed, pair.percents[0], "times")


def _recipes(sweeps: Sequence[LoggedSweep]) -> Verdict:
    """The effect is that of the tuned recipes at the smallest fraction."""
    pairs = (pair for pair in _pairs(sweeps, "recipe_mode") if pair[1].is_tuned)
    model, tuned = next(pairs, (None, None))
    if model is None or tuned is None:
        return _untold("needs a sweep with --recipe model and one with --recipe tuned, otherwise alike")
    one, other = model.pair, tuned.pair
    if not one.n or not other.n:
        return _untold(one.too_few or other.too_few)
    d, tuned_d = one.difference(VAL), other.difference(VAL)
    observed = f"random minus pretrained with the registered recipe {_listed(d)}; "
    observed += f"with a recipe for each init {_listed(tuned_d)}"
    verdict, reason = CANNOT_BE_TOLD, one.too_few or other.too_few
    early, late = np.isin(tuned_d.percents, EARLY), tuned_d.percents > LATE
    if not reason and not (early.any() and late.any()):
        reason = "the tuned sweep needs fractions of 5 or 10 % and above 25 %"
    if not reason:
        parts = [_helps(d), _helps(tuned_d, late)]  # predicted: 0 and 0, and 1 early
        at_early = _helps(tuned_d, early, everywhere=True)
        reason = "that it helps, or that it does not, is not shown at every fraction; more replicates would tell"
        if 1 in parts or at_early == 0:
            verdict, reason = DOES_NOT_HOLD, "it helps where it should not, or not where it should"
        elif parts == [0, 0] and at_early == 1:
            verdict, reason = HOLDS, f"as predicted; less than {LOSS_MARGIN} nats is no help"
    return verdict_at(tuned_d, 0, verdict, reason, observed)


def _helps(d: Difference, where: np.ndarray | slice = slice(None), *, everywhere: bool = False) -> int | None:
    """1 if pretraining is shown to help at one fraction (or `everywhere`), 0 if not to, None if neither is."""
    does_not = d.band.high[where] < LOSS_MARGIN
    helps = (d.band.low[where] > 0) & ~does_not
    if everywhere:
        return 1 if helps.all() else 0 if does_not.any() else None
    return 1 if helps.any() else 0 if does_not.all() else None


def _listed(d: Difference) -> str:
    return ", ".join(f"{d.at(i):+.4f} at {d.percents[i]:.0f} %" for i in range(len(d.percents)))
