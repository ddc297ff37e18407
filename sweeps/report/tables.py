"""Tables of the report's page: numbers in, Markdown out. A line of a table is a dict, column -> cell."""

from collections.abc import Iterable, Mapping
from math import expm1, isnan, nan
from typing import Any

import pandas as pd

from sweeps.analysis.claims import CLAIMS
from sweeps.report.findings import SCORES, Table
from sweeps.results.read import LoggedSweep
from sweeps.rows import Score
from sweeps.training.recipes import is_on_edge


def markdown_table(lines: Iterable[Mapping[str, Any]] | pd.DataFrame) -> str:
    """Leave out columns without any cell."""
    table = pd.DataFrame(lines).dropna(axis="columns", how="all").fillna("").astype(str)
    rows = [table.columns, ["---"] * len(table.columns), *table.to_numpy()]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)


def points_table(points: Table) -> str:
    return markdown_table(_cells(at) for at in points)


def controls_table(controls: Table) -> str:
    heads = [({"init": own["init"], "n": own["n_replicates"]}, own["points"]) for own in controls]
    return markdown_table(head | _cells(at, label="random - init") for head, points in heads for at in points)


def _cells(at: dict[str, Any], label: str = "random - pretrained") -> dict[str, str]:
    """One line of `findings.points`: a loss in percent of pretrained's and in nats, an accuracy in points."""
    values = [100 * (expm1(at[key]) if "nats" in at else at[key]) for key in ("mean", "low", "high")]
    mean, low, high = (f"{value:+.2f}" for value in values)
    cells = {"data": f"{at['percent']} %", label: mean, "interval": "-" if low == "+nan" else f"{low} to {high}"}
    return cells | ({"nats": f"{at['nats']:+.4f}"} if "nats" in at else {})


def effective_table(table: Table) -> str:
    lines = []
    for percent, effective, transferred, multiplier, low, high, at_least, at_most in map(dict.values, table):
        bound = "≥ " if at_least else "≤ " if at_most else ""
        limits = [f"≥ {low:.2f}"] * (not isnan(low)) + [f"≤ {high:.2f}"] * (not isnan(high))
        interval = ", ".join(limits) or "-"
        numbers = [f"{effective:.1f} %", f"{transferred:+.1f}", f"{multiplier:.2f}"]
        lines.append([f"{percent} %", *(bound + number for number in numbers), interval])
    columns = ["D_F, of the data", "D_E", "D_T = D_E - D_F (points)", "D_E / D_F", "95 % limits"]
    return markdown_table(pd.DataFrame(lines, columns=columns))


def inits_table(inits: Table) -> str:
    lines = []
    for line in inits:
        means = {name.replace("_", " "): _number(line["means"].get(name, nan), score) for name, score in SCORES.items()}
        head = {"init": line["init"], "data": f"{line['percent']} %", "n": line["n_replicates"]}
        lines.append(head | means | {"sd of val loss": _number(line["val_loss_sd"], Score.VAL_LOSS) or ""})
    return markdown_table(lines)


def _number(value: float, score: Score) -> str | None:
    digits = score.digits if abs(value) < 10 else 2
    return None if isnan(value) else f"{score.scale * value:.{digits}f}"


def recipes_table(sweep: LoggedSweep) -> str:
    lines = []
    for init, settings in sweep.chosen.items():
        for percent, change in sorted(settings.items()):
            values = f"{change.learning_rate:.3g}", f"{change.trunk_factor:.2g}", f"{change.warm_up:.2g}"
            lines.append([init, f"{percent} %", *values, "yes" if is_on_edge(change, init, sweep.recipe) else ""])
    columns = ["init", "data", "learning rate", "factor of the trunk", "warm-up", "on the grid's edge"]
    return markdown_table(pd.DataFrame(lines, columns=columns))


def beside_table(sweeps: Table) -> str:
    percents = [f"{percent} %" for percent in sorted({at["percent"] for sweep in sweeps for at in sweep["points"]})]
    columns = []
    for sweep in sweeps:
        head = {"run": f"`{sweep['run_id']}`", "of": code(sweep["name"]), "kind": sweep["kind"]}
        verdicts = {CLAIMS[name]: verdict for name, verdict in sweep["verdicts"].items()}
        points = map(_cells, sweep["points"])
        effects = {at["data"]: f"{at['random - pretrained']} ({at['interval']})".removesuffix(" (-)") for at in points}
        column = head | {"replicates": sweep["n_replicates"]} | verdicts | dict.fromkeys(percents, "") | effects
        columns.append(pd.Series(column, name=f"`{sweep['run_id'][:8]}`"))
    return markdown_table(pd.concat(columns, axis="columns").reset_index(names=""))


def settings_table(sweep: LoggedSweep) -> str:
    """Spec and recipe first, then what else identifies the sweep, and where its cells were trained."""
    settings = dict(sorted(sweep.params.items(), key=lambda item: not item[0].startswith(("spec.", "recipe."))))
    settings |= {key: sweep.tags.get(key, "") for key in ("model_uri", "model_uri_pinned")}
    settings |= {key: ", ".join(values) for key, values in sweep.provenance.items()}
    return markdown_table({"setting": code(key), "value": code(value)} for key, value in settings.items())


def code(text: str) -> str:
    """The text as code: names, params and tags of a store may hold anything."""
    return f"`{text.replace('`', chr(39))}`" if text else ""
