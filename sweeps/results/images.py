"""Variance of a comparison that is due to the images it was measured on, from the per-image scores of its cells."""

import dataclasses
import functools
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
# Contrasts d(first) - d(second) / 2 of the differences d.
CONTRASTS = (Score.TEST_BEST_LOSS, Score.TEST_LOSS), (Score.TEST_SCALED_LOSS, Score.TEST_LOSS)
Key = Score | tuple[Score, Score]
KEYS: tuple[Key, ...] = (*LOSSES, *ACCURACIES, *CONTRASTS)
Variances = dict[Key, Array]
PerImage = dict[Score, Array]  # each [n_images]


def with_image_variances(store: Store, sweep: LoggedSweep) -> LoggedSweep:
    """Read the per-image scores of all compared cells, some 90 kB each; an init that lacks a file is left out."""
    read = functools.cache(functools.partial(_read, store))
    variances: dict[Init, Variances] = {}
    for init in sweep.inits:
        if init != "random" and (own := _variances(sweep.comparison(init), read)):
            variances[init] = own
    return dataclasses.replace(sweep, image_variances=variances)


def _variances(pair: Comparison, read: Callable[[str], PerImage]) -> Variances:
    """Map scores and contrasts to image variances, [n_fractions]; empty if a file is missing or nothing is compared."""
    run_ids = {(row.cell.percent, row.cell.init, row.cell.replicate): row.run_id for row in pair.rows}
    columns: dict[Key, list[float]] = {}
    for percent in pair.percents if pair.replicates else ():
        random, own = (
            _means([read(run_ids[percent, init, replicate]) for replicate in pair.replicates])
            for init in ("random", pair.init)
        )
        for key in KEYS if random and own else ():
            score, half = (key[0], (random[key[1]], own[key[1]])) if isinstance(key, tuple) else (key, None)
            variance = image_variance(random[score], own[score], is_log=score in LOSSES, half=half)
            columns.setdefault(key, []).append(variance)
    return {key: np.array(column) for key, column in columns.items() if len(column) == len(pair.percents)}


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
    except ModelError:
        return {}
    parts = {score: [file[name] for name in names] for score, names in LOSSES.items()}
    for score, names in ACCURACIES.items():
        parts[score] = [file[f"{name}_class"] == file[f"{name}_label"] for name in names]
    return {score: np.concatenate(arrays).astype(np.float32) for score, arrays in parts.items()}
