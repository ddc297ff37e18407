"""Variance of a comparison that is due to the images it was measured on, from the per-image scores of its cells."""

import contextlib
import dataclasses
import functools
from collections import defaultdict
from collections.abc import Callable

import numpy as np

from fmnist_transfer.errors import ModelError
from fmnist_transfer.store.model_format import read_artifact
from fmnist_transfer.store.roles import IMAGE_SCORES_FILE
from fmnist_transfer.store.runs import Store
from fmnist_transfer.training.score import unpack_image_scores
from sweeps.analysis.comparison import Comparison, ImageVariances
from sweeps.analysis.statistics import Array, image_variance
from sweeps.grid import Init
from sweeps.results.read import LoggedSweep
from sweeps.rows import Score

ARRAYS = {  # judged score -> its arrays of images; held-out images are those of validation and test
    Score.VAL_LOSS: ("val_final_loss",),
    Score.TEST_LOSS: ("test_final_loss",),
    Score.TEST_BEST_LOSS: ("test_best_loss",),
    Score.TEST_SCALED_LOSS: ("test_scaled_loss",),
    Score.HELDOUT_LOSS: ("val_final_loss", "test_final_loss"),
    Score.TEST_ACCURACY: ("test_correct",),
    Score.HELDOUT_ACCURACY: ("val_correct", "test_correct"),
}
# Contrasts d(first) - d(second) / 2 of the differences d.
CONTRASTS = (Score.TEST_BEST_LOSS, Score.TEST_LOSS), (Score.TEST_SCALED_LOSS, Score.TEST_LOSS)
PerImage = dict[Score, Array]  # each [n_images]


def with_image_variances(store: Store, sweep: LoggedSweep) -> LoggedSweep:
    """Read the per-image scores of all compared cells, some 90 kB each; an init that lacks a file is left out."""
    read = functools.cache(functools.partial(_read, store))
    variances: dict[Init, ImageVariances] = {}
    for init in sweep.inits:
        if init != "random":
            with contextlib.suppress(ModelError):
                variances[init] = _variances(sweep.comparison(init), read)
    return dataclasses.replace(sweep, image_variances=variances)


def _variances(pair: Comparison, read: Callable[[str], PerImage]) -> ImageVariances:
    """Map scores and contrasts to image variances, [n_fractions]; empty if nothing is compared."""
    run_ids = {(row.cell.percent, row.cell.init, row.cell.replicate): row.run_id for row in pair.rows}

    def means(init: Init, percent: int) -> PerImage:
        of_cells = [read(run_ids[percent, init, replicate]) for replicate in pair.replicates]
        return {score: np.mean([own[score] for own in of_cells], axis=0, dtype=float) for score in ARRAYS}

    columns = defaultdict[Score | tuple[Score, Score], list[float]](list)
    for percent in pair.percents if pair.replicates else ():
        random, own = means("random", percent), means(pair.init, percent)
        for score in ARRAYS:
            columns[score].append(image_variance(random[score], own[score], is_log=score.is_loss))
        for score, of in CONTRASTS:
            half = random[of], own[of]
            columns[score, of].append(image_variance(random[score], own[score], is_log=True, half=half))
    return {key: np.array(column) for key, column in columns.items()}


def _read(store: Store, run_id: str) -> PerImage:
    """Read the losses in nats and correctness, 0 or 1, of each image. Raises ModelError without a sound file."""
    location = str(store.client.get_run(run_id).info.artifact_uri)
    file = unpack_image_scores(read_artifact(store, location, IMAGE_SCORES_FILE, f"run {run_id}"))
    file |= {f"{half}_correct": file[f"{half}_class"] == file[f"{half}_label"] for half in ("val", "test")}
    return {score: np.concatenate([file[name] for name in names]).astype(np.float32) for score, names in ARRAYS.items()}
