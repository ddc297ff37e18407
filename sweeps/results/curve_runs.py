"""Curve runs of a sweep, whose metrics MLflow's charts draw against the percent of the training images."""

from collections.abc import Sequence

import numpy as np

from fmnist_transfer.store.roles import NOTE, TRANSFER, Role
from fmnist_transfer.store.runs import Store
from sweeps.rows import Row, Score, by_replicate, finished_percents

CURVES = {  # the UI shows a section per prefix: first the original report's two graphs
    "curve/train_loss": Score.TRAIN_LOSS,
    "curve/val_loss": Score.VAL_LOSS,
    "more/val_accuracy": Score.VAL_ACCURACY,
    "more/best_val_loss": Score.BEST_VAL_LOSS,
    "more/test_accuracy": Score.TEST_ACCURACY,
}


def log_curves(store: Store, sweep_run_id: str, rows: Sequence[Row]) -> None:
    """Log a run per init with the means over replicates at step = percent; comparing them draws the report's graphs.

    Earlier curve runs of the sweep are deleted, because a logged step cannot be replaced.
    """
    for old in store.find(TRANSFER, role=Role.CURVE, parent=sweep_run_id):
        store.client.delete_run(old.info.run_id)
    for init in dict.fromkeys(row.cell.init for row in rows):
        percents = finished_percents(rows, init)
        note = f"Means over the replicates of `{init}`. The step is the percent of the target's training images."
        tags = {"role": Role.CURVE, "parent": sweep_run_id, "init": init, NOTE: note}
        run_id = store.start(TRANSFER, init, parent=sweep_run_id, params={"init": init}, tags=tags)
        for key, score in CURVES.items():
            means = np.nanmean(by_replicate(rows, init, score, percents), axis=0)
            store.log(run_id, metrics=[(key, mean, p) for p, mean in zip(percents, means, strict=True)])
        store.end(run_id)
