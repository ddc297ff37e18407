"""The numbers of a report: logged sweeps in, plain data out, as `--json` and `report.csv` have it.

Tables are lists of dicts, one per line; a number that does not exist is NaN, which `--json` writes as null.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from fmnist_transfer.store import roles
from sweeps.analysis.claims import crossover, has_multiplier
from sweeps.analysis.comparison import Comparison
from sweeps.grid import REPORTED
from sweeps.results.read import LoggedSweep
from sweeps.rows import Score, by_replicate, finished_percents

SCORES = {score.name.lower(): score for score in Score}  # by name in `--json`, such as `val_loss`
COMPARED = (
    *("train_loss", "heldout_loss", "val_loss", "test_loss", "test_best_loss", "test_scaled_loss"),
    "heldout_accuracy",
)
Findings = dict[str, Any]
Table = list[dict[str, Any]]


def find(sweep: LoggedSweep, others: Sequence[LoggedSweep] = ()) -> Findings:
    """Collect everything that the logged runs say about a sweep, and summaries of `others` to compare it with."""
    pair, verdicts = sweep.pair, sweep.verdicts
    controls = [sweep.comparison(init) for init in sweep.inits if init not in REPORTED]
    seconds = [row.scores.get(roles.SECONDS, np.nan) for row in pair.rows if row.cell.replicate in pair.replicates]
    return {
        "sweep_run_id": sweep.run_id,
        "n_replicates": pair.n,
        "n_sources": sweep.n_sources,
        "is_complete": sweep.is_complete,
        "claims": {name: dataclasses.asdict(verdict) for name, verdict in verdicts.items()},
        "crossover": crossover(pair) if verdicts["val_loss"].verdict == "holds" else None,
        "differences": {name: table for name in COMPARED if (table := points(pair, SCORES[name]))},
        "seconds_per_replicate": sum(seconds) / pair.n if pair.n else np.nan,
        "effective_data": effective_data(pair),
        "inits": list(_means(sweep)),
        "controls": [
            {"init": control.init, "n_replicates": control.n, "points": points(control, control.loss)}
            for control in controls
            if control.n
        ],
        "recipes": {init: {str(p): vars(change) for p, change in own.items()} for init, own in sweep.chosen.items()},
        "compared_with": [beside(other) for other in others],
        "missing": [f"{row.cell.name} ({row.status})" for row in sweep.rows if row.status != "finished"],
    }


def points(pair: Comparison, score: Score) -> Table:
    """One score at each judged fraction; empty if nothing can be compared or a cell lacks the score."""
    d = pair.difference(score)
    if not pair.n or not d.is_known:
        return []
    own, random = (pair.values[init, score].mean(axis=0) for init in (pair.init, "random"))
    mean, low, high = pair.intervals(score) or (d.mean, np.nan, np.nan)
    # `difference` is of means as logged; `mean` of log ratios or accuracies, with simultaneous limits.
    columns = {pair.init: own, "random": random, "difference": random - own, "mean": mean, "low": low, "high": high}
    columns["image_variance"] = np.nan if d.image_variance is None else d.image_variance
    return pd.DataFrame({"percent": pair.percents} | columns).to_dict("records")


def effective_data(pair: Comparison) -> Table:
    """Effective data at each judged fraction; empty if unknown. Limits hold together where a claim looks at them."""
    if not pair.is_complete or len(pair.percents) < 2 or pair.n < 2 or not pair.difference(pair.loss).is_known:
        return []
    data = pair.curves.effective_data(n_together=max(1, has_multiplier(pair).sum()))
    table = pd.DataFrame({"percent": pair.percents} | vars(data)).rename(columns={"effective": "effective_percent"})
    return table.replace({"low": {0.0: np.nan}, "high": {np.inf: np.nan}}).to_dict("records")


def _means(sweep: LoggedSweep) -> Iterator[dict[str, Any]]:
    """Means over the finished replicates of each init at each fraction."""
    for init in sweep.inits:
        for percent in finished_percents(sweep.rows, init):
            values = {name: by_replicate(sweep.rows, init, score, [percent]) for name, score in SCORES.items()}
            n = int(np.isfinite(values["val_loss"]).sum())
            means = {name: np.nanmean(of_cells) for name, of_cells in values.items() if not np.isnan(of_cells).all()}
            yield {"init": init, "percent": percent, "n_replicates": n, "means": means}


def classes_csv(sweep: LoggedSweep) -> str:
    """Held-out images by class: one line per percent, init, class and predicted class, with the share of the class."""
    names = sweep.target_names
    lines = [
        {"percent": percent, "init": init, "class": names[i], "predicted": names[j], "share": round(float(share), 6)}
        for (percent, init), shares in sorted(sweep.confusions.items())
        for (i, j), share in np.ndenumerate(shares)
    ]
    return pd.DataFrame(lines).to_csv(index=False)


def summary(findings: Findings) -> list[tuple[str, float, int]]:
    """Metrics of the sweep's parent run: random against pretrained with limits, and the multiplier, at both ends."""
    rows, effective = findings["differences"].get("heldout_loss", []), findings["effective_data"]
    metrics = []
    for name, mean, table in (("loss_log_ratio", "mean", rows), ("multiplier", "multiplier", effective)):
        for at in (*table[:1], *table[1:][-1:]):
            keys = {name: mean, f"{name}_low": "low", f"{name}_high": "high"}
            metrics += [(f"answer/{own}_at_{at['percent']}", at[key], 0) for own, key in keys.items()]
    return [metric for metric in metrics if not np.isnan(metric[1])]


def beside(sweep: LoggedSweep) -> dict[str, Any]:
    """One sweep in a comparison of several; `kind` says how it differs from others."""
    params, recipe = sweep.params, sweep.recipe
    recipes = "a recipe for each init" if sweep.is_tuned else "one recipe"
    augmentation = " and ".join(name for name in ("flip", "shift") if getattr(recipe, name)) or "none"
    training = f"budget {params['budget']}, {recipe.epochs} epochs, augmentation {augmentation}, seed {params['seed']}"
    sources = ", a source network for each replicate" if sweep.n_sources > 1 else ""
    return {
        "run_id": sweep.run_id,
        "name": sweep.name,
        "kind": f"split {params['split']}, {recipes}, {training}{sources}",
        "n_replicates": sweep.pair.n,
        "verdicts": {name: claim.verdict for name, claim in sweep.verdicts.items()} if sweep.is_complete else {},
        "points": points(sweep.pair, sweep.pair.loss),
    }


def csv_of(findings: Findings) -> str:
    """`differences` as one table."""
    lines = [{"score": name} | line for name, table in findings["differences"].items() for line in table]
    return pd.DataFrame(lines).to_csv(index=False, float_format="%.6g", lineterminator="\n")
