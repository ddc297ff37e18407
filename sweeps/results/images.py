"""Image variances of a comparison, and results by class, from the per-image scores of its cells."""

import contextlib
import dataclasses
import functools
import io
import itertools
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import pandas as pd

from fmnist_transfer.errors import ModelError
from fmnist_transfer.store.model_format import read_artifact
from fmnist_transfer.store.roles import IMAGE_SCORES_FILE
from fmnist_transfer.store.runs import Store
from fmnist_transfer.training.score import ImageScores, unpack_image_scores
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
NAMES: dict[Score | tuple[Score, Score], str] = {score: score.name.lower() for score in ARRAYS}  # in tables
NAMES |= {(first, of): f"{NAMES[first]} - {NAMES[of]}/2" for first, of in CONTRASTS}
Files = dict[tuple[int, Init], list[ImageScores]]  # by percent and init: a file per replicate


def with_image_scores(store: Store, sweep: LoggedSweep) -> LoggedSweep:
    """Read the files of all compared cells, some 60 kB each; an init that lacks a file is left out."""
    read = functools.cache(functools.partial(_read, store))
    variances, confusions = dict[Init, ImageVariances](), dict[tuple[int, Init], Array]()
    for init in sweep.inits:
        if init != "random":
            with contextlib.suppress(ModelError):
                files = _files(sweep.comparison(init), read)
                variances[init] = _variances(files, init)
                own = {key: each for key, each in files.items() if key[1] == init or init == "pretrained"}
                confusions |= {key: confusion(of_cells) for key, of_cells in own.items()}  # random as pretrained has it
    return dataclasses.replace(sweep, image_variances=variances, confusions=confusions)


def confusion(files: Iterable[ImageScores]) -> Array:
    """Share of each class's held-out images that the cells take for each class: [true, predicted], rows sum to 1."""
    pairs = [(file[f"{part}_label"], file[f"{part}_class"]) for file in files for part in ("val", "test")]
    labels, predicted = (np.concatenate(arrays).astype(int) for arrays in zip(*pairs, strict=True))
    n = int(labels.max()) + 1
    counts = np.bincount(labels * n + predicted, minlength=n * n).reshape(n, n)
    return counts / counts.sum(axis=1, keepdims=True)


def _files(pair: Comparison, read: Callable[[str], ImageScores]) -> Files:
    run_ids = {(row.cell.percent, row.cell.init, row.cell.replicate): row.run_id for row in pair.rows}
    keys = itertools.product(pair.percents if pair.replicates else (), ("random", pair.init))
    return {(percent, init): [read(run_ids[percent, init, i]) for i in pair.replicates] for percent, init in keys}


def _variances(files: Files, init: Init) -> ImageVariances:
    """Map scores and contrasts to image variances, [n_fractions]; empty if nothing is compared."""
    columns = defaultdict[Score | tuple[Score, Score], list[float]](list)
    for percent in sorted({percent for percent, _ in files}):
        random, own = _means(files[percent, "random"]), _means(files[percent, init])
        for score in ARRAYS:
            columns[score].append(image_variance(random[score], own[score], is_log=score.is_loss))
        for score, of in CONTRASTS:
            half = random[of], own[of]
            columns[score, of].append(image_variance(random[score], own[score], is_log=True, half=half))
    return {key: np.array(column) for key, column in columns.items()}


def _means(files: Sequence[ImageScores]) -> dict[Score, Array]:
    """Mean over cells of each image's loss in nats, or of its correctness."""
    means = {}
    for score, names in ARRAYS.items():
        arrays = [np.concatenate([file[name] for name in names]).astype(np.float32) for file in files]
        means[score] = np.mean(arrays, axis=0, dtype=float)
    return means


def _read(store: Store, run_id: str) -> ImageScores:
    """Read a cell's file, with the correctness of each image. Raises ModelError without a sound file."""
    location = str(store.client.get_run(run_id).info.artifact_uri)
    file = unpack_image_scores(read_artifact(store, location, IMAGE_SCORES_FILE, f"run {run_id}"))
    return file | {f"{half}_correct": file[f"{half}_class"] == file[f"{half}_label"] for half in ("val", "test")}


def variances_csv(sweep: LoggedSweep) -> str:
    """The image variances of pretrained as a table."""
    lines = [
        (NAMES[key], percent, variance)
        for key, variances in sweep.image_variances.get("pretrained", {}).items()
        for percent, variance in zip(sweep.judged_grid.judged, variances, strict=True)
    ]
    return pd.DataFrame(lines, columns=["score", "percent", "variance"]).to_csv(index=False)


def variances_from_csv(text: str) -> ImageVariances:
    """Read what `variances_csv` wrote."""
    columns = {name: np.array(own["variance"]) for name, own in pd.read_csv(io.StringIO(text)).groupby("score")}
    return {key: columns[name] for key, name in NAMES.items() if name in columns}
