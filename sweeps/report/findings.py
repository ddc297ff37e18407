"""The numbers of a report: logged sweeps in, plain data out, as `--json` and `report.csv` have it.

Tables are lists of dicts, one per line; a number that does not exist is NaN, which `--json` writes as null.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from sweeps.analysis.claims import crossover, judge
from sweeps.analysis.comparison import Comparison
from sweeps.grid import REPORTED, RecipeChange
from sweeps.results.read import LoggedSweep
from sweeps.rows import Score, by_replicate

SCORES = {score.name.lower(): score for score in Score}  # by name in `--json`, such as `val_loss`
COMPARED = ("train_loss", "heldout_loss", "val_loss", "test_loss", "heldout_accuracy", "val_accuracy", "test_accuracy")
NO_INTERVAL = (np.nan, np.nan)
Findings = dict[str, Any]
Table = list[dict[str, Any]]


def find(sweep: LoggedSweep, others: Sequence[LoggedSweep] = ()) -> Findings:
    """Collect everything that the logged runs say about a sweep, and summaries of `others` to compare it with."""
    pair = sweep.pair
    band = {name: table for name in COMPARED if (table := points(pair, SCORES[name]))}
    controls = [sweep.comparison(init) for init in sweep.inits if init not in REPORTED]
    return {
        "sweep_run_id": sweep.run_id,
        "n_replicates": pair.n,
        "claims": {name: dataclasses.asdict(claim) for name, claim in judge(pair).items()},
        "crossover": crossover(pair),
        "effective_data": _effective_data(pair),
        "band": band,
        "inits": list(_means(sweep)),
        "controls": [
            {"init": control.init, "n_replicates": control.n, "points": points(control)}
            for control in controls
            if control.n
        ],
        "recipes": {init: {str(p): vars(change) for p, change in own.items()} for init, own in sweep.chosen.items()},
        "compared_with": [beside(other) for other in others],
        "missing": [f"{row.cell.name} ({row.status})" for row in sweep.rows if row.status != "finished"],
    }


def points(pair: Comparison, score: Score | None = None) -> Table:
    """random - init of one score (default: the judged loss) at each fraction; empty if nothing can be compared.

    `mean`, `low` and `high` are those of the log ratio for a loss, simultaneous; `nats` is the plain mean difference.
    """
    score = score or pair.loss
    d = pair.difference(score)
    if not pair.n or not d.is_known:
        return []
    low, high = (d.intervals.low, d.intervals.high) if d.intervals else np.full((2, len(pair.percents)), np.nan)
    columns = {"percent": np.array(pair.percents), "mean": d.mean, "low": low, "high": high}
    return pd.DataFrame(columns | ({"nats": pair.nats(score).mean} if score.is_loss else {})).to_dict("records")


def _effective_data(pair: Comparison) -> Table:
    if len(pair.percents) < 2 or pair.n < 2 or not pair.difference(pair.loss).is_known:
        return []
    data, percents = pair.curves.effective_data(len(pair.percents)), np.array(pair.percents)
    columns = {"percent": percents, "effective_percent": data.effective, "transferred_percent": data.transferred}
    columns |= {
        "multiplier": data.multiplier,
        "low": np.where(data.low > 0, data.low, np.nan),
        "high": np.where(np.isfinite(data.high), data.high, np.nan),
    }
    return pd.DataFrame(columns | {"at_least": data.at_least, "at_most": data.at_most}).to_dict("records")


def _means(sweep: LoggedSweep) -> Iterator[dict[str, Any]]:
    """Means over the finished replicates, and the sd of the validation loss, at each fraction of each init."""
    for init in sweep.inits:
        cells = [row for row in sweep.rows if row.cell.init == init and row.status == "finished"]
        for percent in sorted({row.cell.percent for row in cells}):
            values = {name: by_replicate(cells, init, score, [percent]) for name, score in SCORES.items()}
            n = int(np.isfinite(values["val_loss"]).sum())
            sd = np.nanstd(values["val_loss"], ddof=1) if n > 1 else np.nan
            means = {name: np.nanmean(of_cells) for name, of_cells in values.items() if not np.isnan(of_cells).all()}
            yield {"init": init, "percent": percent, "n_replicates": n, "val_loss_sd": sd, "means": means}


def beside(sweep: LoggedSweep) -> dict[str, Any]:
    """One sweep in a comparison of several; `kind` says how it differs from others."""
    split, budget, seed = (sweep.params.get(key, "?") for key in ("split", "budget", "seed"))
    recipe = "a recipe for each init" if sweep.is_tuned else "one recipe"
    augmentation = " and ".join(name for name in ("flip", "shift", "erase") if getattr(sweep.recipe, name)) or "none"
    training = f"budget {budget}, {sweep.recipe.epochs} epochs, augmentation {augmentation}, seed {seed}"
    sources = ", a source network for each replicate" if "sources" in sweep.params else ""
    return {
        "run_id": sweep.run_id,
        "name": sweep.name,
        "kind": f"split {split}, {recipe}, {training}{sources}",
        "n_replicates": sweep.pair.n,
        "verdicts": {name: claim.verdict for name, claim in judge(sweep.pair).items()},
        "points": points(sweep.pair),
    }


def csv_of(findings: Findings) -> str:
    """One line per number: what it is, of which init or sweep, at which fraction, its interval, replicates."""
    numbers = ["value", "low", "high"]
    columns = ["quantity", "of", "percent", *numbers, "n_replicates", "remark"]
    types = dict.fromkeys(numbers, "float") | {"percent": "Int64"}
    table = pd.DataFrame(_lines(findings), columns=columns).astype(types)
    return table.to_csv(index=False, float_format="%.6g", lineterminator="\n")


def _lines(findings: Findings) -> Iterator[tuple[Any, ...]]:
    """Yield the lines of report.csv, each in the order of the columns in `csv_of`."""
    n, of = findings["n_replicates"], "random - pretrained"
    for name, claim in findings["claims"].items():
        values = (claim["effect"], *(claim["interval"] or NO_INTERVAL))
        yield f"claim {name}", "", claim["percent"], *values, claim["n_replicates"], claim["verdict"]
    for name, table in findings["band"].items():
        unit = "log ratio" if SCORES[name].is_loss else ""
        for row in table:
            yield f"difference {name}", of, row["percent"], row["mean"], row["low"], row["high"], n, unit
    for row in findings["effective_data"]:
        remark = "at least" if row["at_least"] else "at most" if row["at_most"] else ""
        values = (row["multiplier"], row["low"], row["high"])
        yield "effective data multiplier", "pretrained", row["percent"], *values, n, remark
    for line in findings["inits"]:
        for name, mean in line["means"].items():
            yield f"mean {name}", line["init"], line["percent"], mean, *NO_INTERVAL, line["n_replicates"], ""
    for control in findings["controls"]:
        yield from _compared(control, f"random - {control['init']}")
    for init, settings in findings["recipes"].items():
        for percent, setting in settings.items():
            remark = str(RecipeChange(**setting))
            yield "recipe learning_rate", init, int(percent), setting["learning_rate"], *NO_INTERVAL, 2, remark
    for other in findings["compared_with"]:
        yield from _compared(other, other["run_id"], other["kind"])


def _compared(compared: dict[str, Any], of: str, remark: str = "") -> Iterator[tuple[Any, ...]]:
    for row in compared["points"]:
        values = (row["mean"], row["low"], row["high"])
        yield "difference loss", of, row["percent"], *values, compared["n_replicates"], remark
