"""Variance of a comparison that is due to the images it was measured on, from the per-image scores of its cells."""

import dataclasses
import functools
import zipfile
import zlib
from collections.abc import Callable, Sequence

import numpy as np

from fmnist_transfer.errors import ModelError
from fmnist_transfer.store.model_format import read_artifact
from fmnist_transfer.store.roles import IMAGE_SCORES_FILE
from fmnist_transfer.store.runs import Store
from fmnist_transfer.training.score import unpack_image_scores
from sweeps.analysis.comparison import Comparison
from sweeps.analysis.statistics import Array, image_variance
from sweeps.grid import Init
from sweeps.results.read import LoggedSweep
from sweeps.rows import Score

LOSSES = {  # score -> its per-image losses in the file; held-out images are those of validation and test
    Score.VAL_LOSS: ("val_final_loss",),
    Score.BEST_VAL_LOSS: ("val_best_loss",),
    Score.SCALED_VAL_LOSS: ("val_scaled_loss",),
    Score.TEST_LOSS: ("test_final_loss",),
    Score.TEST_BEST_LOSS: ("test_best_loss",),
    Score.TEST_SCALED_LOSS: ("test_scaled_loss",),
    Score.HELDOUT_LOSS: ("val_final_loss", "test_final_loss"),
}
ACCURACIES = {
    Score.VAL_ACCURACY: ("val",),
    Score.TEST_ACCURACY: ("test",),
    Score.HELDOUT_ACCURACY: ("val", "test"),
}
PerImage = dict[Score, Array]  # each [n_images]


def with_image_variances(store: Store, sweep: LoggedSweep) -> LoggedSweep:
    """Read the per-image scores of all compared cells, some 90 kB each; an init that lacks a file is left out."""
    read = functools.cache(functools.partial(_read, store))
    variances: dict[Init, dict[Score, Array]] = {}
    for init in sweep.inits:
        if init != "random" and (own := _variances(sweep.comparison(init), read)):
            variances[init] = own
    return dataclasses.replace(sweep, image_variances=variances)


def _variances(pair: Comparison, read: Callable[[str], PerImage]) -> dict[Score, Array]:
    """Map each score to its image variances, [n_fractions]; empty if a file is missing or nothing is compared."""
    run_ids = {(row.cell.percent, row.cell.init, row.cell.replicate): row.run_id for row in pair.rows}
    columns: dict[Score, list[float]] = {}
    for percent in pair.percents if pair.replicates else ():
        random, own = (
            _means([read(run_ids[percent, init, replicate]) for replicate in pair.replicates])
            for init in ("random", pair.init)
        )
        for score in (*LOSSES, *ACCURACIES) if random and own else ():
            variance = image_variance(random[score], own[score], is_log=score in LOSSES)
            columns.setdefault(score, []).append(variance)
    return {score: np.array(column) for score, column in columns.items() if len(column) == len(pair.percents)}


def _means(of_cells: Sequence[PerImage]) -> PerImage:
    """Means over replicates; empty if one of them is."""
    return (
        {score: np.mean([own[score] for own in of_cells], axis=0, dtype=float) for score in of_cells[0]}
        if all(of_cells)
        else {}
    )


def _read(store: Store, run_id: str) -> PerImage:
    """Read the losses in nats and correctness, 0 or 1, of each image; empty if the file is missing or damaged."""
    try:
        location = str(store.client.get_run(run_id).info.artifact_uri)
        file = unpack_image_scores(read_artifact(store, location, IMAGE_SCORES_FILE, f"run {run_id}"))
        parts = {key: [file[name] for name in names] for key, names in LOSSES.items()}
        for key, names in ACCURACIES.items():
            parts[key] = [file[f"{name}_class"] == file[f"{name}_label"] for name in names]
    except (ModelError, KeyError, ValueError, EOFError, zipfile.BadZipFile, zlib.error):
        return {}
    return {score: np.concatenate(arrays).astype(np.float32) for score, arrays in parts.items()}
