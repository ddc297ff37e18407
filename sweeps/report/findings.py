"""The numbers of a report: logged sweeps in, plain data out, as `--json` and `report.csv` have it.

Tables are lists of dicts, one per line; a number that does not exist is NaN, which `--json` writes as null.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from sweeps.analysis.claims import judge
from sweeps.analysis.comparison import Comparison
from sweeps.analysis.statistics import Crossover
from sweeps.grid import REPORTED, RecipeChange
from sweeps.results.read import LoggedSweep
from sweeps.rows import Score, by_replicate

SCORES = {score.name.lower(): score for score in Score}  # by name in `--json`, such as `val_loss`
COMPARED = ("train_loss", "val_loss", "best_val_loss", "scaled_val_loss", "val_accuracy")
NO_INTERVAL = (np.nan, np.nan)
Findings = dict[str, Any]
Table = list[dict[str, Any]]


def find(sweep: LoggedSweep, others: Sequence[LoggedSweep] = ()) -> Findings:
    """Collect everything that the logged runs say about a sweep, and summaries of `others` to compare it with."""
    pair = sweep.pair
    band = {name: table for name in COMPARED if (table := points(pair, SCORES[name]))}
    flips = {name: pair.difference(SCORES[name]).flips for name in band}
    controls = [sweep.comparison(init) for init in sweep.inits if init not in REPORTED]
    crossover = pair.difference(Score.VAL_LOSS).crossover if pair.n else Crossover(None, np.nan, 0)
    return {
        "sweep_run_id": sweep.run_id,
        "n_replicates": pair.n,
        "claims": {name: dataclasses.asdict(claim) for name, claim in judge(pair).items()},
        "crossover_percent": crossover.percent,
        "crossover": {
            "percent": crossover.percent,
            "never_share": crossover.never,
            "claimable": crossover.is_claimable,
            "fractions_with_0_in_the_band": [row["percent"] for row in points(pair) if row["low"] <= 0 <= row["high"]],
        },
        "effective_data": _effective_data(pair),
        "band": band,
        "family_p": {name: flip.family for name, flip in flips.items() if flip},
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


def points(pair: Comparison, score: Score = Score.VAL_LOSS) -> Table:
    """random - init of one score at each fraction; empty if nothing can be compared or a cell lacks the score.

    `t_low` and `t_high` limit the paired 95 % t-interval of the fraction alone, `low` and `high` the simultaneous band
    (below six replicates the t-interval). `p` is by sign flips, adjusted for all fractions.
    """
    d = pair.difference(score)
    if not d.n or not d.is_known:
        return []
    p = d.flips.each if d.flips else np.full(len(pair.percents), np.nan)
    lines = [
        (percent, d.at(i), *(d.t_interval(i) or NO_INTERVAL), *(d.interval(i) or NO_INTERVAL), p[i])
        for i, percent in enumerate(pair.percents)
    ]
    columns = ["percent", "mean", "t_low", "t_high", "low", "high", "p"]
    return pd.DataFrame(lines, columns=columns).to_dict("records")


def _effective_data(pair: Comparison) -> Table:
    if len(pair.percents) < 2 or not pair.n:
        return []
    data, percents = pair.effective_data, np.array(pair.percents)
    columns = {"percent": percents, "effective_percent": data.effective, "transferred_percent": data.transferred}
    columns |= {
        "multiplier": data.multiplier,
        "low": np.where(np.isfinite(data.low), data.low, percents[-1] / percents),
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
    """One line per number: what it is, of which init or sweep, at which fraction, its interval, p, replicates."""
    numbers = ["value", "low", "high", "p"]
    columns = ["quantity", "of", "percent", *numbers, "n_replicates", "remark"]
    types = dict.fromkeys(numbers, "float") | {"percent": "Int64"}
    table = pd.DataFrame(_lines(findings), columns=columns).astype(types)
    return table.to_csv(index=False, float_format="%.6g", lineterminator="\n")


def _lines(findings: Findings) -> Iterator[tuple[Any, ...]]:
    """Yield the lines of report.csv, each in the order of the columns in `csv_of`."""
    n, of = findings["n_replicates"], "random - pretrained"
    for name, claim in findings["claims"].items():
        values = (claim["effect"], *(claim["interval"] or NO_INTERVAL), None)
        yield f"claim {name}", "", claim["percent"], *values, claim["n_replicates"], claim["verdict"]
    for name, table in findings["band"].items():
        for row in table:
            difference = (f"difference {name}", of, row["percent"], row["mean"])
            yield *difference, row["low"], row["high"], row["p"], n, "band"
            yield *difference, row["t_low"], row["t_high"], None, n, "t-interval"
        if name in findings["family_p"]:
            yield f"difference {name}", of, None, None, *NO_INTERVAL, findings["family_p"][name], n, "all fractions"
    if n:
        remark = f"none in {findings['crossover']['never_share']:.3f} of the resamples"
        yield "crossover percent", of, None, findings["crossover"]["percent"], *NO_INTERVAL, None, n, remark
    for row in findings["effective_data"]:
        remark = "at least" if row["at_least"] else "at most" if row["at_most"] else ""
        values = (row["multiplier"], row["low"], row["high"], None)
        yield "effective data multiplier", "pretrained", row["percent"], *values, n, remark
    for line in findings["inits"]:
        for name, mean in line["means"].items():
            yield f"mean {name}", line["init"], line["percent"], mean, *NO_INTERVAL, None, line["n_replicates"], ""
    for control in findings["controls"]:
        yield from _compared(control, f"random - {control['init']}")
    for init, settings in findings["recipes"].items():
        for percent, setting in settings.items():
            remark = str(RecipeChange(**setting))
            yield "recipe learning_rate", init, int(percent), setting["learning_rate"], *NO_INTERVAL, None, 2, remark
    for other in findings["compared_with"]:
        yield from _compared(other, other["run_id"], other["kind"])


def _compared(compared: dict[str, Any], of: str, remark: str = "") -> Iterator[tuple[Any, ...]]:
    for row in compared["points"]:
        values = (row["mean"], row["low"], row["high"], row["p"])
        yield "difference val_loss", of, row["percent"], *values, compared["n_replicates"], remark
