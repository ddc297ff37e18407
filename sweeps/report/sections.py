"""The sections of the report's page: findings in, Markdown out."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sweeps.analysis.claims import CLAIMS, MAX_MULTIPLIER, Verdict
from sweeps.analysis.comparison import ACCURACY_MARGIN, LOSS_MARGIN
from sweeps.analysis.statistics import MIN_REPLICATES
from sweeps.grid import PERTURB, PROBING_SHARE, SHRINK
from sweeps.report.findings import DIAGNOSIS, Findings, Point, kind_of
from sweeps.rows import VAL_LOSS
from sweeps.training.recipes import PERCENTS as TUNED_PERCENTS
from sweeps.training.recipes import is_on_edge

ACCURACIES = ("val_accuracy", "test_accuracy")  # of a diagnosis, in percent


def sections(findings: Findings, figures: Mapping[str, str]) -> list[str]:
    """Of the whole page, in order. figures: file -> caption."""
    parts = [*_question(findings), *_claims(findings)]
    if figures:
        parts += ["## Figures", *(f"![{caption}]({path})\n\n*{caption}*" for path, caption in figures.items())]
    for section in (_differences, _crossover, _inits, _controls, _recipes, _beside, _protocol, _runs, _limits):
        parts += section(findings)
    return parts


def effect_of(claim: Verdict) -> str:
    """`+0.0123 [+0.0100, +0.0146] nats at 5 %`."""
    if claim.effect is None:
        return ""
    unit, digits, name = {"accuracy": (100, 2, "points"), "times": (1, 2, "times")}.get(claim.unit, (1, 4, claim.unit))
    interval = ""
    if claim.interval:
        interval = f" [{unit * claim.interval[0]:+.{digits}f}, {unit * claim.interval[1]:+.{digits}f}]"
    where = "" if claim.percent is None else f" at {claim.percent} %"
    text = f"{unit * claim.effect:+.{digits}f}{interval} {name}{where}"
    return text.replace("+", "") if claim.unit == "times" else text


def named(names: Mapping[str, str], verdicts: Mapping[str, Verdict]) -> list[tuple[str, Verdict]]:
    return [(names[key], claim) for key, claim in verdicts.items()]


def _question(findings: Findings) -> list[str]:
    sweep, pair = findings.sweep, findings.pair
    source, _, target = sweep.params.get("split", "?/?").partition("/")
    compared = f"{pair.n} complete replicates of both inits at {_list(pair.percents)} % of the target's training images"
    return [
        f"# Transfer from classes {source} to classes {target}",
        f"Is a network that was trained on Fashion-MNIST classes {source} a better start for classes {target} than "
        f"random weights, and up to how much data?\nSweep `{sweep.run_id}` ({_code(sweep.name)}): "
        f"{compared if pair.n else pair.too_few}.",
    ]


def _intervals(findings: Findings) -> str:
    if findings.pair.n >= MIN_REPLICATES:
        return "simultaneous 95 % bands over all fractions"
    return "paired 95 % t-intervals of each fraction alone"


def _claims(findings: Findings) -> list[str]:
    claims = named(CLAIMS, findings.claims)
    return [
        "## The four claims of the original report",
        _table(
            ["claim", "verdict", "effect [interval]", "why"],
            ([text, f"**{claim.verdict}**", effect_of(claim), claim.reason] for text, claim in claims),
        ),
        "Effects are random minus pretrained. "
        + (
            f"Intervals of losses are {_intervals(findings)}; that of the accuracy is a paired 95 % t-interval."
            if findings.pair.n > 1
            else "Two replicates or more have intervals."
        ),
        _bullets(f"{text}: {claim.observed}." for text, claim in claims if claim.observed),
    ]


def _differences(findings: Findings) -> list[str]:
    parts = []
    for name, title in (("train_loss", "training loss"), ("val_loss", "validation loss"), ("val_accuracy", "accuracy")):
        if points := findings.differences.get(name):
            unit = "points" if name in ACCURACIES else "nats"
            p = findings.family_p.get(name)
            family = "" if p is None else f" No difference at any fraction: p = {p:.4f}."
            header = ["data", "random - pretrained", "t-interval", "band", "p"]
            parts.append(f"**Final {title}** in {unit}.{family}")
            parts.append(_table(header, (_point(point, name in ACCURACIES) for point in points)))
    if findings.family_p:
        parts.append("p is of sign flips of whole replicates, adjusted for all fractions.")
    return ["## Differences at each fraction", *parts] if parts else []


def _point(point: Point, in_points: bool = False) -> list[str]:
    def between(low: float | None, high: float | None) -> str:
        return "-" if low is None or high is None else f"{unit * low:+.{digits}f} to {unit * high:+.{digits}f}"

    unit, digits = (100, 2) if in_points else (1, 4)
    return [
        f"{point.percent} %",
        f"{unit * point.mean:+.{digits}f}",
        between(point.t_low, point.t_high),
        between(point.low, point.high),
        "-" if point.p is None else f"{point.p:.4f}",
    ]


def _crossover(findings: Findings) -> list[str]:
    pair, rows = findings.pair, findings.effective_rows()
    if not rows:
        return []
    cross = pair.difference(VAL_LOSS).crossover
    where = "is above 0 at the end" if cross.percent is None else f"is below 0 from {cross.percent:.1f} % on"
    if pair.difference(VAL_LOSS).is_nowhere_above:
        where = "is below 0 at every fraction, so nothing crosses"
    text = f"The mean difference of the final validation loss {where}."
    if pair.n > 1:
        text += (
            f" {cross.never:.0%} of the bootstrap resamples have no crossover: "
            f"{'one' if cross.is_claimable else 'none'} in this range can be claimed. "
            f"The interval contains 0 at {_list(findings.uncertain) + ' %' if findings.uncertain else 'no fraction'}."
        )

    def bound(row: Mapping[str, Any]) -> str:
        return "≥ " if row["at_least"] else "≤ " if row["at_most"] else ""

    lines = (
        [
            f"{row['percent']} %",
            f"{bound(row)}{row['effective_percent']:.1f} %",
            f"{bound(row)}{row['transferred_percent']:+.1f}",
            f"{bound(row)}{row['multiplier']:.2f}",
            _range(row["low"], row["high"]),
        ]
        for row in rows
    )
    header = ["D_F, of the data", "D_E", "D_T = D_E - D_F (points)", "D_E / D_F", "95 % bootstrap"]
    return ["## Crossover and effective data", text, _table(header, lines)]


def _range(low: float, high: float | None) -> str:
    """Of a multiplier; 0 and None are no bounds."""
    if high is None:
        return f"≥ {low:.2f}"
    return f"{low:.2f} to {high:.2f}" if low else f"≤ {high:.2f}"


def _inits(findings: Findings) -> list[str]:
    if not findings.inits:
        return []
    columns = [name for name in DIAGNOSIS if any(name in line.means for line in findings.inits)]
    rows = []
    for line in findings.inits:
        sd = "" if line.val_loss_sd is None else f"{line.val_loss_sd:.4f}"
        numbers = [_number(name, line.means.get(name)) for name in columns]
        rows.append([line.init, f"{line.percent} %", str(line.n_replicates), *numbers, sd])
    header = ["init", "data", "n", *(name.replace("_", " ") for name in columns), "sd of val loss"]
    note = (
        "Means over the finished replicates at the final epoch; losses and gap in nats, accuracies in percent, "
        "expected calibration error of validation in 15 bins, distance from the start in L2 over all layers. Scaled: "
        "after temperature scaling, cross-fitted in two folds."
    )
    return ["## Inits side by side", note, _table(header, rows)]


def _number(name: str, value: float | None) -> str:
    if value is None:
        return ""
    return f"{100 * value:.2f}" if name in ACCURACIES else f"{value:.4f}" if abs(value) < 10 else f"{value:.2f}"


def _controls(findings: Findings) -> list[str]:
    if not findings.controls:
        return []
    rows = (
        [control.init, str(control.n_replicates), *_point(point)]
        for control in findings.controls
        for point in control.points
    )
    header = ["init", "n", "data", "random - init", "t-interval", "band", "p"]
    return ["## Controls against random", "Final validation loss in nats.", _table(header, rows)]


def _recipes(findings: Findings) -> list[str]:
    sweep = findings.sweep
    if not sweep.is_tuned:
        return []
    done, n_failed, n = sweep.n_tuning
    failed = f", {n_failed} of them failed" if n_failed else ""
    effort = (
        f"Nine settings for each init, two replicates each, at {_list(sorted(TUNED_PERCENTS))} %; the lowest mean "
        "final validation loss wins, and what is between is interpolated in the logarithm of the number of images. "
        f"These replicates are not compared above. {done} of {n} of these cells are done{failed}."
    )
    rows = [
        [
            init,
            f"{percent} %",
            f"{change.learning_rate:.3g}",
            f"{change.trunk_factor:.2g}",
            f"{change.warm_up:.2g}",
            "yes" if is_on_edge(change, init, sweep.recipe) else "",
        ]
        for init, of_init in sweep.chosen.items()
        for percent, change in sorted(of_init.items())
    ]
    header = ["init", "data", "learning rate", "factor of the trunk", "warm-up", "on the grid's edge"]
    return ["## The recipe of each init", effort, *([_table(header, rows)] if rows else [])]


def _beside(findings: Findings) -> list[str]:
    sweeps = findings.beside
    if not sweeps:
        return []
    at = [{point.percent: point for point in sweep.points} for sweep in sweeps]
    percents = sorted({percent for points in at for percent in points})
    rows = [
        ["run", *(f"`{sweep.run_id}`" for sweep in sweeps)],
        ["of", *(_code(sweep.name) for sweep in sweeps)],
        ["kind", *(sweep.kind for sweep in sweeps)],
        ["replicates", *(str(sweep.n_replicates) for sweep in sweeps)],
        *([text, *(sweep.verdicts[name] for sweep in sweeps)] for name, text in CLAIMS.items()),
        *([f"{p} %", *(_mean_and_band(points[p]) if p in points else "" for points in at)] for p in percents),
    ]
    note = "Final validation loss in nats, random minus pretrained, with its interval (a band from six replicates on)."
    return ["## Sweeps side by side", note, _table(["", *(f"`{sweep.run_id[:8]}`" for sweep in sweeps)], rows)]


def _mean_and_band(point: Point) -> str:
    _, mean, _, band, _ = _point(point)
    return mean if band == "-" else f"{mean} ({band})"


def _protocol(findings: Findings) -> list[str]:
    sweep = findings.sweep
    settings = {key: value for key, value in sweep.params.items() if key.startswith(("spec.", "recipe."))}
    rest = {key: value for key, value in sweep.params.items() if key not in settings}
    rest |= {key: sweep.tags.get(key, "") for key in ("model_uri", "model_uri_pinned")}
    rest |= {key: ", ".join(values) for key, values in sweep.provenance.items()}
    margins = f"±{LOSS_MARGIN} nats or ±{100 * ACCURACY_MARGIN:.1f} points"
    rules = [
        f"{kind_of(sweep)}. Validation is the same images for every cell, and selects; test images are scored once per "
        "run and select nothing. Fractions are nested and class-balanced; within a replicate every init sees the same "
        "subset, classifier, batches, augmentation and dropout (but neither of the last two where `frozen` and `lp-ft` "
        "train the classifier alone). Batch-norm statistics are re-estimated before each evaluation; training loss is "
        "in evaluation mode.",
        f"No practical difference: within {margins}, by two one-sided tests, or by the band where one of several "
        f"fractions would do. Lower: the band is below 0, and the difference is not within the margin. Transfer is "
        f"hardly needed up to a multiplier of {MAX_MULTIPLIER}.",
        f"Controls: shrink-perturb takes {SHRINK} of the registered weights and {PERTURB} of fresh ones; lp-ft spends "
        f"{PROBING_SHARE:.0%} of its epochs on the classifier alone; selffer trains twice the budget of the others; "
        "matched copies batch-norm buffers from the registered network.",
        "Bands: max-|t| over sign flips of whole replicates' deviations from the mean.",
    ]
    table = _table(["setting", "value"], ([_code(key), _code(value)] for key, value in (settings | rest).items()))
    return ["## How it was made", _bullets(rules), table]


def _runs(findings: Findings) -> list[str]:
    missing, n = findings.missing, len(findings.sweep.rows)
    text = "Every cell, those that chose recipes too, with its run id is in `cells.csv` beside this page. "
    text += f"{len(missing)} of {n} cells are missing"
    return ["## The runs behind it", f"{text}: {_code(some(missing))}." if missing else f"{text}."]


def _limits(findings: Findings) -> list[str]:
    sweep, pair = findings.sweep, findings.pair
    own_sources = "sources" in sweep.params
    limits = [
        "The bands cover draws of subset, classifier, batches, dropout and augmentation, "
        + ("and of the source network." if own_sources else "not of the source network: there is one."),
        "Bands suppose replicates that spread symmetrically; very skewed ones are covered less often.",
        "One way to cut the classes into halves is one replicate of the task; other splits may differ.",
        "Validation images are what the claims are about, and come from the same source as the training images.",
    ]
    if pair.too_few:
        limits.insert(0, f"Nothing is claimed: {pair.too_few}.")
    if pair.left_out:
        limits.append(f"{_list(pair.left_out)} % are left out, for few replicates have them.")
    if pair.incomplete:
        limits.append(f"Replicates {_list(pair.incomplete)} are left out, for one of their cells is missing.")
    if sweep.is_reference:
        limits.append("The recipe is the original report's; nobody tuned it for either init here.")
    elif not sweep.is_tuned:
        limits.append("The recipe was tuned from random weights, which favours them; see `--recipe tuned`.")
    return ["## What this sweep cannot tell", _bullets(limits)]


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _code(text: str) -> str:
    """Names, params and tags of a store may hold anything."""
    return f"`{text.replace('`', chr(39))}`" if text else ""


def _list(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, numbers))


def some(names: Sequence[str], n: int = 12) -> str:
    """The first `n`, and how many more there are."""
    more = f" and {len(names) - n} more" if len(names) > n else ""
    return ", ".join(names[:n]) + more
