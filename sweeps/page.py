"""The report in words: findings in, Markdown and one self-contained HTML page out."""

import base64
import html
from collections.abc import Iterable, Mapping, Sequence

from sweeps.arms import PERTURB, PROBING_SHARE, SHRINK
from sweeps.claims import CLAIMS, MAX_MULTIPLIER, Verdict, signs
from sweeps.comparison import ACCURACY_MARGIN, LOSS_MARGIN, compare
from sweeps.findings import Findings
from sweeps.logged import LoggedSweep
from sweeps.predictions import PREDICTIONS
from sweeps.statistics import MIN_REPLICATES
from sweeps.tuned import PERCENTS as TUNED_PERCENTS

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; margin: 1rem 0; font-size: 0.9rem; }
th, td { border-bottom: 1px solid #ddd; padding: 0.3rem 0.6rem; text-align: left; vertical-align: top; }
img { max-width: 100%; }
code { background: #f4f4f4; padding: 0 0.2rem; overflow-wrap: anywhere; }
"""


def markdown_of(findings: Findings, captions: Mapping[str, str]) -> str:
    """The report as Markdown. captions: figure file -> caption, in order."""
    sweep = findings.sweep
    source, _, target = sweep.params.get("split", "?/?").partition("/")
    parts = [
        f"# Transfer from classes {source} to classes {target}",
        f"Is a network that was trained on Fashion-MNIST classes {source} a better start for classes {target} than "
        f"random weights, and up to how much data?\nSweep `{sweep.run_id}` ({sweep.name}): {findings.pair.n} complete "
        f"replicates of both inits at {_list(findings.pair.percents)} % of 25,000 training images.",
        "## The four claims of the original report",
        _table(
            ["claim", "verdict", "effect [interval]", "why"],
            ([text, f"**{one.verdict}**", effect_of(one), one.reason] for text, one in _named(CLAIMS, findings.claims)),
        ),
        "Effects are random minus pretrained; intervals are 95 %, simultaneous over all fractions for losses.",
        *(f"- {text}: {one.observed}." for text, one in _named(CLAIMS, findings.claims) if one.observed),
        "## The predictions written before the first sweep",
        _table(
            ["", "prediction", "verdict", "why", "seen"],
            (
                [name, PREDICTIONS[name], f"**{one.verdict}**", one.reason, one.observed]
                for name, one in findings.predictions.items()
            ),
        ),
    ]
    if captions:
        parts += ["## Figures", *(f"![{caption}]({path})\n\n*{caption}*" for path, caption in captions.items())]
    parts += [*_crossover(findings), *_inits(findings), *_recipes(findings), *_beside(findings)]
    parts += [*_protocol(findings), *_limits(findings)]
    return "\n\n".join(parts) + "\n"


def html_of(text: str, images: Mapping[str, bytes]) -> str:
    """The Markdown as a page that needs nothing else. images: path in the Markdown -> PNG."""
    import markdown

    body = markdown.markdown(text, extensions=["tables"])
    for path, content in images.items():
        body = body.replace(f'src="{path}"', f'src="data:image/png;base64,{base64.b64encode(content).decode()}"')
    title = html.escape(text.partition("\n")[0].lstrip("# "))
    head = f'<meta charset="utf-8"><title>{title}</title><style>{STYLE}</style>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body>\n{body}\n</body></html>\n'


def claims_text(findings: Findings) -> str:
    """The claims in a few lines, and how many cells are missing."""
    lines = ["The report's four claims, as this sweep sees them:", ""]
    for i, (text, one) in enumerate(_named(CLAIMS, findings.claims), 1):
        lines += [f"{i}. {text}: **{one.verdict}** ({one.reason})."]
        lines += [f"   Observed: {one.observed}."] if one.observed else []
    if findings.missing:
        n = len(findings.missing)
        lines += ["", f"{n} of {len(findings.sweep.rows)} cells are missing: {_some(findings.missing)}."]
    return "\n".join(lines) + "\n"


def effect_of(one: Verdict) -> str:
    """`+0.0123 [+0.0100, +0.0146] nats at 5 %`."""
    if one.effect is None:
        return ""
    unit, digits, name = (100, 2, "points") if one.unit == "accuracy" else (1, 4, one.unit)
    interval = ""
    if one.interval:
        interval = f" [{unit * one.interval[0]:+.{digits}f}, {unit * one.interval[1]:+.{digits}f}]"
    where = "" if one.percent is None else f" at {one.percent} %"
    return f"{unit * one.effect:+.{digits}f}{interval} {name}{where}"


def _named(names: Mapping[str, str], verdicts: Mapping[str, Verdict]) -> list[tuple[str, Verdict]]:
    return [(names[key], one) for key, one in verdicts.items()]


def _crossover(findings: Findings) -> list[str]:
    cross, data = findings.crossover, findings.effective
    if cross is None:
        return []
    where = "does not cross 0 downwards" if cross.percent is None else f"crosses 0 at {cross.percent:.1f} %"
    claim = "" if cross.is_claimable else ": no crossover in this range can be claimed"
    kind = "simultaneous band" if findings.pair.n >= MIN_REPLICATES else "t-interval"
    parts = [
        "## Crossover and effective data",
        f"The mean difference of the final validation loss {where}; {cross.never:.0%} of the bootstrap resamples have "
        f"no crossover{claim}. Its {kind} contains 0 at {_list(findings.uncertain) or 'no'} %.",
    ]
    if data is None:
        return parts
    rows = []
    for i, percent in enumerate(findings.pair.percents):
        bound = "≥ " if data.at_least[i] else "≤ " if data.at_most[i] else ""
        rows.append(
            [
                f"{percent} %",
                f"{bound}{data.effective[i]:.1f} %",
                f"{bound}{data.transferred[i]:+.1f}",
                f"{bound}{data.multiplier[i]:.2f}",
                f"{data.low[i]:.2f} to {data.high[i]:.2f}",
            ]
        )
    return [
        *parts,
        _table(["D_F, of the data", "D_E", "D_T = D_E - D_F (points)", "D_E / D_F", "95 % bootstrap"], rows),
    ]


def _inits(findings: Findings) -> list[str]:
    if not findings.inits:
        return []
    rows = [
        [
            line.init,
            f"{line.percent} %",
            str(line.n_replicates),
            f"{line.train_loss:.4f}",
            f"{line.val_loss:.4f}",
            f"{100 * line.val_accuracy:.2f}",
            f"{100 * line.test_accuracy:.2f}",
        ]
        for line in findings.inits
    ]
    header = ["init", "data", "replicates", "training loss", "validation loss", "validation accuracy", "test accuracy"]
    return ["## Inits side by side", "Means at the final epoch, accuracies in percent.", _table(header, rows)]


def _recipes(findings: Findings) -> list[str]:
    sweep = findings.sweep
    if not sweep.is_tuned:
        return []
    done, n = sweep.n_tuning
    effort = (
        f"Nine settings for each init, two replicates each, at {_list(sorted(TUNED_PERCENTS))} %; the "
        "lowest mean final validation loss wins, and what is between is interpolated in the logarithm of the number "
        f"of images. {done} of {n} of these cells are done."
    )
    rows = [
        [init, f"{percent} %", f"{one.learning_rate:.3g}", f"{one.trunk_factor:.2g}", f"{one.warm_up:.2g}"]
        for init, of_init in sweep.chosen.items()
        for percent, one in sorted(of_init.items())
    ]
    header = ["init", "data", "learning rate", "factor of the trunk", "warm-up"]
    return ["## The recipe of each init", effort, *([_table(header, rows)] if rows else [])]


def _beside(findings: Findings) -> list[str]:
    if not findings.others:
        return []
    sweeps = [findings.sweep, *findings.others]
    pairs = [compare(sweep.rows) for sweep in sweeps]
    rows = [
        [
            f"`{sweep.run_id[:8]}` {sweep.name}",
            _kind(sweep),
            str(pair.n),
            signs(pair.difference("final/val_loss")) if pair.n else pair.too_few,
        ]
        for sweep, pair in zip(sweeps, pairs, strict=True)
    ]
    return ["## Sweeps side by side", "Final validation loss.", _table(["sweep", "kind", "replicates", "seen"], rows)]


def _kind(sweep: LoggedSweep) -> str:
    recipe = sweep.recipe
    augmentation = [name for name in ("flip", "shift", "erase") if getattr(recipe, name)]
    kind = "a recipe for each init" if sweep.is_tuned else "the registered recipe"
    return (
        f"split {sweep.params.get('split', '?')}, {kind}, budget {sweep.params.get('budget', '?')}, {recipe.epochs} "
        f"epochs, augmentation {' and '.join(augmentation) or 'none'}"
    )


def _protocol(findings: Findings) -> list[str]:
    sweep = findings.sweep
    settings = {key: value for key, value in sweep.params.items() if key.startswith(("spec.", "recipe."))}
    others = {key: value for key, value in sweep.params.items() if key not in settings}
    others |= {key: sweep.tags.get(key, "") for key in ("model_uri", "model_uri_pinned")}
    others |= {key: ", ".join(values) for key, values in sweep.provenance.items()}
    missing = findings.missing
    return [
        "## How it was made",
        f"- {_kind(sweep)}. Validation is 5,000 images, the same for every cell, and selects; the 5,000 test images "
        "are scored once per run and select nothing. Fractions are nested and class-balanced; within a replicate every "
        "init sees the same subset, classifier, batches, augmentation and dropout (but `frozen`: no augmentation). "
        "Batch-norm statistics are re-estimated before each evaluation; training loss is in evaluation mode.",
        f"- No practical difference means: two one-sided tests within ±{LOSS_MARGIN} nats or "
        f"±{100 * ACCURACY_MARGIN:.1f} points. Transfer is hardly needed up to a multiplier of {MAX_MULTIPLIER}.",
        f"- Controls: shrink-perturb takes {SHRINK} of the registered weights and {PERTURB} of fresh ones; lp-ft "
        f"spends {PROBING_SHARE:.0%} of its epochs on the classifier alone; selffer trains twice the budget of the "
        "others; matched copies batch-norm buffers from the registered network.",
        "- Bands: max-|t| over sign flips of whole replicates' deviations; p-values in the CSV: over flips of the "
        "differences, adjusted for all fractions.",
        f"- {len(missing)} of {len(sweep.rows)} cells are missing" + (f": {_some(missing)}." if missing else "."),
        _table(["setting", "value"], ([f"`{key}`", f"`{value}`"] for key, value in (settings | others).items())),
        "Runs: "
        + (", ".join(f"`{run_id}`" for run_id in [sweep.run_id, *(other.run_id for other in findings.others)]))
        + ".",
    ]


def _limits(findings: Findings) -> list[str]:
    sweep, pair = findings.sweep, findings.pair
    limits = [
        "The bands cover draws of subset, classifier, batches, dropout and augmentation"
        + (
            ", and of the source network."
            if "sources" in sweep.params
            else ", not of the source network: there is one."
        ),
        "One way to cut the classes into halves is one replicate of the task; other splits may differ.",
        "Fashion-MNIST's validation and test images come from the same source as the training images.",
    ]
    if pair.too_few:
        limits.insert(0, f"Nothing is claimed: {pair.too_few}.")
    if pair.left_out:
        limits.append(f"{_list(pair.left_out)} % have fewer than {MIN_REPLICATES} replicates and are left out.")
    if not sweep.is_tuned:
        limits.append(
            "The recipe was tuned from random weights, so it favours them; `--recipe tuned` gives each init its own."
        )
    return ["## What this sweep cannot tell", "\n".join(f"- {limit}" for limit in limits)]


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _list(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, numbers))


def _some(names: Sequence[str], n: int = 20) -> str:
    """The first `n`, and how many more there are."""
    more = f" and {len(names) - n} more" if len(names) > n else ""
    return ", ".join(names[:n]) + more
