"""Tables of the report's page: numbers in, Markdown out. A line of a table is a dict, column -> cell."""

from collections.abc import Iterable, Mapping
from math import isnan, nan
from typing import Any

import pandas as pd

from sweeps.analysis.claims import CLAIMS
from sweeps.report.findings import SCORES, Table
from sweeps.results.read import LoggedSweep
from sweeps.rows import VAL_LOSS, Score
from sweeps.training.recipes import is_on_edge


def markdown_table(lines: Iterable[Mapping[str, Any]] | pd.DataFrame) -> str:
    """Columns without any cell are left out."""
    table = pd.DataFrame(lines).dropna(axis="columns", how="all").fillna("").astype(str)
    rows = [table.columns, ["---"] * len(table.columns), *table.to_numpy()]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)


def points_table(points: Table, score: Score) -> str:
    return markdown_table(_cells(at, score) for at in points)


def controls_table(controls: Table) -> str:
    heads = [({"init": own["init"], "n": own["n_replicates"]}, own["points"]) for own in controls]
    return markdown_table(head | _cells(at, label="random - init") for head, points in heads for at in points)


def _cells(at: dict[str, Any], score: Score = VAL_LOSS, label: str = "random - pretrained") -> dict[str, str]:
    """One line of `findings.points`; an accuracy in points."""
    texts = {key: f"{score.scale * value:+.{score.digits}f}" for key, value in at.items()}
    intervals = [f"{texts[low]} to {texts[high]}" for low, high in (("t_low", "t_high"), ("low", "high"))]
    t_interval, band = ("-" if "nan" in interval else interval for interval in intervals)
    p = "-" if isnan(at["p"]) else f"{at['p']:.4f}"
    return {"data": f"{at['percent']} %", label: texts["mean"], "t-interval": t_interval, "band": band, "p": p}


def effective_table(table: Table) -> str:
    lines = []
    for at in table:
        bound = "≥ " if at["at_least"] else "≤ " if at["at_most"] else ""
        low, high = at["low"], at["high"]  # 0 and NaN are no bounds
        interval = f"≥ {low:.2f}" if isnan(high) else f"{low:.2f} to {high:.2f}" if low else f"≤ {high:.2f}"
        effective = {
            "D_E": f"{bound}{at['effective_percent']:.1f} %",
            "D_T = D_E - D_F (points)": f"{bound}{at['transferred_percent']:+.1f}",
            "D_E / D_F": f"{bound}{at['multiplier']:.2f}",
        }
        lines.append({"D_F, of the data": f"{at['percent']} %", **effective, "95 % bootstrap": interval})
    return markdown_table(lines)


def inits_table(inits: Table) -> str:
    lines = []
    for line in inits:
        means = {name.replace("_", " "): _number(line["means"].get(name, nan), score) for name, score in SCORES.items()}
        head = {"init": line["init"], "data": f"{line['percent']} %", "n": line["n_replicates"]}
        lines.append(head | means | {"sd of val loss": _number(line["val_loss_sd"], VAL_LOSS) or ""})
    return markdown_table(lines)


def _number(value: float, score: Score) -> str | None:
    digits = score.digits if abs(value) < 10 else 2
    return None if isnan(value) else f"{score.scale * value:.{digits}f}"


def recipes_table(sweep: LoggedSweep) -> str:
    settings = [(init, *setting) for init, of_init in sweep.chosen.items() for setting in sorted(of_init.items())]
    return markdown_table(
        {
            "init": init,
            "data": f"{percent} %",
            "learning rate": f"{change.learning_rate:.3g}",
            "factor of the trunk": f"{change.trunk_factor:.2g}",
            "warm-up": f"{change.warm_up:.2g}",
            "on the grid's edge": "yes" if is_on_edge(change, init, sweep.recipe) else "",
        }
        for init, percent, change in settings
    )


def beside_table(sweeps: Table) -> str:
    """A column per sweep."""
    percents = sorted({at["percent"] for sweep in sweeps for at in sweep["points"]})
    columns = []
    for sweep in sweeps:
        column = {"run": f"`{sweep['run_id']}`", "of": code(sweep["name"]), "kind": sweep["kind"]}
        column |= {"replicates": sweep["n_replicates"]} | {
            CLAIMS[key]: answer for key, answer in sweep["verdicts"].items()
        }
        column |= {f"{percent} %": "" for percent in percents}
        for cells in map(_cells, sweep["points"]):
            band = "" if cells["band"] == "-" else f" ({cells['band']})"
            column[cells["data"]] = cells["random - pretrained"] + band
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
