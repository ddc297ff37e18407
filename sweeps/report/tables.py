"""Tables of the report's page: numbers in, Markdown out. A line of a table is a dict, column -> cell."""

from collections.abc import Iterable, Mapping
from math import isnan
from typing import Any

import pandas as pd

from fmnist_transfer.terminal.output import counted, duration
from sweeps.analysis.claims import CLAIMS, effect_text
from sweeps.report.answer import in_percent
from sweeps.report.findings import SCORES, Findings, Table
from sweeps.results.read import LoggedSweep
from sweeps.rows import Score
from sweeps.training.recipes import is_on_edge


def markdown_table(lines: Iterable[Mapping[str, Any]] | pd.DataFrame) -> str:
    """Leave out columns without any cell."""
    table = pd.DataFrame(lines).dropna(axis="columns", how="all").fillna("").astype(str)
    rows = [table.columns, ["---"] * len(table.columns), *table.to_numpy()]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)


def answer_table(findings: Findings) -> str:
    """Each claim's verdict with its effect, replicates and signs; beside an open one, what would decide it."""
    marks = ["one source network"] * (findings["n_sources"] == 1)
    lines = []
    for name, claim in findings["claims"].items():
        more = f" ({text})" if (text := more_text(claim, findings["seconds_per_replicate"])) else ""
        lines.append(
            {
                "claim": CLAIMS[name],
                "verdict": f"**{claim['verdict']}**{more}",
                "random against pretrained [95 %]": effect_text(claim),
                "replicates": ", ".join([str(claim["n_replicates"]), *marks, *["extended"] * claim["is_extended"]]),
                "sign on validation, test": ", ".join(filter(None, (claim["val_sign"], claim["test_sign"]))),
                "why": claim["reason"],
            }
        )
    return markdown_table(lines)


def more_text(claim: Mapping[str, Any], seconds_per_replicate: float) -> str:
    """`12 more replicates would tell, some 3 h 20 min`, or that none would; empty beside a verdict."""
    n = claim["more"]
    if not isinstance(n, int):
        return str(n)
    time = "" if isnan(seconds_per_replicate) else f", some {duration(n * seconds_per_replicate)}"
    return f"{counted(n, 'more replicate')} would tell{time}"


def points_table(points: Table, score: Score) -> str:
    return markdown_table(_cells(at, score) for at in points)


def controls_table(controls: Table, score: Score) -> str:
    heads = [({"init": own["init"], "n": own["n_replicates"]}, own["points"]) for own in controls]
    return markdown_table(head | _cells(at, score, head["init"], "mean") for head, points in heads for at in points)


def _cells(at: Mapping[str, Any], score: Score, own: str = "pretrained", label: str = "") -> dict[str, str]:
    """One line of `findings.points`: means, then the difference; of a loss in percent and nats, else in points."""
    values = {key: f"{score.scale * at[key]:.{score.digits}f}" for key in (own, "random")}
    cells = {"data": f"{at['percent']} %", label or own: values[own], "random": values["random"]}
    if not score.is_loss:
        return cells | {"random is higher by (points)": _effect(at, is_loss=False)}
    return cells | {"random is higher by (%)": _effect(at, is_loss=True), "by (nats)": f"{at['difference']:+.4f}"}


def _effect(at: Mapping[str, Any], *, is_loss: bool) -> str:
    """`+6.10 [+1.20, +11.30]`: of a loss in percent, of an accuracy in points."""
    mean, low, high = (in_percent(at[key]) if is_loss else 100 * at[key] for key in ("mean", "low", "high"))
    return f"{mean:+.2f}" + ("" if isnan(low) else f" [{low:+.2f}, {high:+.2f}]")


def effective_table(table: Table) -> str:
    return markdown_table(
        {
            "D_F, of the data": f"{line['percent']} %",
            "D_E": f"{_bound(line)}{line['effective_percent']:.1f} %",
            "D_E / D_F [95 % limits]": multiplier_text(line),
        }
        for line in table
    )


def multiplier_text(line: Mapping[str, Any]) -> str:
    """`1.30 x [1.10, 1.61]`, of a line of effective data; an unknown limit is `...`."""
    low, high = ("..." if isnan(line[key]) else f"{line[key]:.2f}" for key in ("low", "high"))
    return f"{_bound(line)}{line['multiplier']:.2f} x [{low}, {high}]"


def _bound(line: Mapping[str, Any]) -> str:
    return "≥ " if line["at_least"] else "≤ " if line["at_most"] else ""


def inits_table(inits: Table) -> str:
    lines = []
    for line in inits:
        means = {
            SCORES[name].label: f"{SCORES[name].scale * mean:.{SCORES[name].digits}f}"
            for name, mean in line["means"].items()
        }
        lines.append({"init": line["init"], "data": f"{line['percent']} %", "n": line["n_replicates"]} | means)
    return markdown_table(lines)


def recipes_table(sweep: LoggedSweep) -> str:
    lines = []
    for init, settings in sweep.chosen.items():
        for percent, change in sorted(settings.items()):
            values = f"{change.learning_rate:.3g}", f"{change.warm_up:.2g}"
            lines.append([init, f"{percent} %", *values, "yes" if is_on_edge(change, sweep.recipe) else ""])
    columns = ["init", "data", "learning rate", "warm-up", "on the grid's edge"]
    return markdown_table(pd.DataFrame(lines, columns=columns))


def beside_table(sweeps: Table) -> str:
    lines = []
    for sweep in sweeps:
        head = {"run": code(sweep["run_id"]), "of": code(sweep["name"]), "kind": sweep["kind"]}
        verdicts = {text: sweep["verdicts"].get(name, "not yet") for name, text in CLAIMS.items()}
        effects = {f"{at['percent']} %": _effect(at, is_loss=True) for at in sweep["points"]}
        lines.append(head | {"replicates": sweep["n_replicates"]} | verdicts | effects)
    return markdown_table(lines)


def settings_table(sweep: LoggedSweep) -> str:
    """Spec and recipe first, then what else identifies the sweep, and where its cells were trained."""
    settings = dict(sorted(sweep.params.items(), key=lambda item: not item[0].startswith(("spec.", "recipe."))))
    settings |= {key: sweep.tags.get(key, "") for key in ("model_uri", "model_uri_pinned")}
    settings |= {key: ", ".join(values) for key, values in sweep.provenance.items()}
    return markdown_table({"setting": code(key), "value": code(value)} for key, value in settings.items())


def code(text: str) -> str:
    """The text as code: names, params and tags of a store may hold anything."""
    return f"`{text.replace('`', chr(39))}`" if text else ""
