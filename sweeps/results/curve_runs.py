"""Curve runs of a sweep, and the saved view in which MLflow's UI draws them as lines with bands."""

import hashlib
import json
import math
import time
from typing import Any

import numpy as np

from fmnist_transfer.store.links import curves_view, line_chart
from fmnist_transfer.store.roles import TRANSFER, VIEW_TAG, MetricRow, Role
from fmnist_transfer.store.runs import Store
from sweeps.grid import REPORTED
from sweeps.results.read import LoggedSweep
from sweeps.rows import Score

DIFFERENCE = "random - pretrained"
INTERVAL = f"{DIFFERENCE}, 95 % interval"  # name of a line; charts have room for two in their legends, in order of name
IMAGES = "training images"  # metric: another x axis for the charts
MOST_RUNS = 100  # on a page of MLflow's UI, which averages what it has loaded
DIGEST = "digest"  # tag: sha256 of all that a curve run shows
CurveRun = tuple[dict[str, Any], list[MetricRow]]  # params, metrics


def log_curves(store: Store, sweep: LoggedSweep) -> None:
    """Log the sweep's curve runs and their view. Runs that show the same as before stay, all others are deleted.

    A run whose numbers changed is logged anew, because a logged step cannot be replaced.
    """
    runs = curve_runs(sweep)
    missing = {hashlib.sha256(json.dumps([name, run]).encode()).hexdigest(): name for name, run in runs.items()}
    for old in store.find(TRANSFER, role=Role.CURVE, parent=sweep.run_id):
        if missing.pop(old.data.tags.get(DIGEST, ""), None) is None:
            store.client.delete_run(old.info.run_id)
    for digest, name in missing.items():
        params, metrics = runs[name]
        run_id = store.start(TRANSFER, name, parent=sweep.run_id, tags={"role": Role.CURVE, "parent": sweep.run_id})
        store.log(run_id, metrics=metrics, params=params, tags={DIGEST: digest})
        store.end(run_id)
    experiment_id, key = store.experiment(TRANSFER), f"{VIEW_TAG}{sweep.run_id}"
    if runs and key not in store.client.get_experiment(experiment_id).tags:  # a view that a user changed stays
        store.client.set_experiment_tag(experiment_id, key, _view(sweep))


def curve_runs(sweep: LoggedSweep) -> dict[str, CurveRun]:
    """Return name -> run: one per init and replicate, and the simultaneous interval of the difference as three.

    The step is the percent of the target's training images. MLflow draws runs with the same param `curve` as their mean
    in a band from the lowest to the highest. Without a complete plan there is no interval.
    """
    runs, pair = dict[str, CurveRun](), sweep.pair
    n_replicates = 1 + max((row.cell.replicate for row in sweep.rows), default=0)
    inits = sorted(sweep.inits, key=REPORTED.__contains__, reverse=True)[: (MOST_RUNS - 3) // n_replicates]
    for row in sweep.rows:
        if row.status == "finished" and (init := row.cell.init) in inits:
            params = {"curve": init, "init": init, "replicate": row.cell.replicate}
            _, metrics = runs.setdefault(f"{init} r{row.cell.replicate}", (params, []))
            scores = [score for score in (Score.TRAIN_LOSS, pair.loss, pair.accuracy) if score.key in row.scores]
            metrics += [(score.label, row.scores[score.key], row.cell.percent) for score in scores]
            metrics.append((IMAGES, row.n_train, row.cell.percent))
    intervals = pair.intervals(pair.loss) if pair.difference(pair.loss).is_known else None
    is_shown = np.isfinite(intervals.low) if intervals else np.array([])
    for limit, values in intervals._asdict().items() if intervals and is_shown.any() else ():
        points = zip(pair.percents, values, is_shown, strict=True)
        metrics = [(_difference(pair.loss), value, percent) for percent, value, shown in points if shown]
        runs[f"{DIFFERENCE} {limit}"] = {"curve": INTERVAL, "limit": limit}, metrics
    # On a log axis MLflow (3.17 and 3.18) draws no lower edge at the first step, so a step that the axis cannot show
    # comes before it.
    for _, metrics in runs.values():
        first = min(step for _, _, step in metrics)
        metrics += [(key, value, 0) for key, value, step in metrics if step == first and key != IMAGES]
    return runs


def _view(sweep: LoggedSweep) -> str:
    loss, accuracy = sweep.pair.loss, sweep.pair.accuracy
    lowest = min((row.scores.get(accuracy.key, 1.0) for row in sweep.rows if row.scores), default=0.0)
    charts = [
        line_chart(Score.TRAIN_LOSS.label),
        line_chart(loss.label),
        line_chart(accuracy.label, bottom=math.floor(20 * lowest) / 20),
        line_chart(_difference(loss)),
        line_chart(loss.label, by=IMAGES),
    ]
    title = f"Curves of {sweep.name}, sweep {sweep.run_id[:8]}"
    return curves_view(title, sweep.run_id, charts, int(time.time() * 1_000))


def _difference(loss: Score) -> str:
    return f"{DIFFERENCE}: log {loss.label}"
