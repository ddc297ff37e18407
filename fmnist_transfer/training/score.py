"""Result of one training: its epochs, and the scores of final and best weights, also of each image."""

import dataclasses
import io
import math
import time
import zipfile
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from fmnist_transfer.data.examples import Examples, Half
from fmnist_transfer.errors import ModelError
from fmnist_transfer.network.weights import State, copy_state, distances
from fmnist_transfer.training.calibration import Calibration, Labels, Logits, calibrate, cross_entropies
from fmnist_transfer.training.device import use_precision
from fmnist_transfer.training.evaluation import Scores, evaluate, predict

MOST_EVALUATIONS = 20  # per training
# Scores of each image, [n] per key, in the order of `Half.val` and `Half.test`. `*_loss` (float16, nats): of the final
# weights, of the best epoch's, and of the final ones scaled by a temperature; `*_class` (uint8): the final ones choose.
ImageScores = dict[str, NDArray[Any]]
IMAGE_SCORES = {f"{part}_{kind}_loss" for part in ("val", "test") for kind in ("final", "best", "scaled")}
IMAGE_SCORES |= {f"{part}_{kind}" for part in ("val", "test") for kind in ("class", "label")}


def evaluation_points(epochs: int) -> tuple[int, ...]:
    """Return the epochs, 1-based, after which a training of `epochs` is evaluated: all of 20, else 20 spread evenly."""
    n = min(epochs, MOST_EVALUATIONS)
    return tuple(round(i * epochs / n) for i in range(1, n + 1))


@dataclass(frozen=True)
class Epoch:
    """A nominal epoch, 1-based, after which the network was evaluated.

    `train_loss` is the mean over its batches during training; seconds count from the previous evaluation.
    """

    epoch: int
    step: int
    train_loss: float
    val_loss: float
    val_accuracy: float
    learning_rate: float
    seconds: float
    train_seconds: float = math.nan  # part of `seconds` in training steps; NaN in studies logged before it was recorded


@dataclass(frozen=True)
class History:
    """Evaluated epochs of one `fit`, after which the network holds the final weights.

    `best_state` has the weights of the lowest validation loss.
    """

    epochs: tuple[Epoch, ...]
    best_epoch: int
    best_state: State

    @property
    def final(self) -> Epoch:
        return self.epochs[-1]

    @property
    def best(self) -> Epoch:
        return next(epoch for epoch in self.epochs if epoch.epoch == self.best_epoch)


@dataclass(frozen=True)
class Diagnosis:
    """Scores of one set of weights; `train` is the training subset in evaluation mode."""

    train: Scores
    val: Scores
    val_calibration: Calibration

    def to_dict(self) -> dict[str, float]:
        """Return train_loss, train_accuracy, val_loss, val_accuracy, val_ece, val_temperature, val_scaled_loss, gap."""
        val = dataclasses.asdict(self.val) | dataclasses.asdict(self.val_calibration)
        flat = {f"train_{key}": value for key, value in dataclasses.asdict(self.train).items()}
        flat |= {f"val_{key}": value for key, value in val.items()}
        return flat | {"gap": flat["val_loss"] - flat["train_loss"]}


@dataclass(frozen=True)
class Result:
    """A finished training: its epochs, and the scores of the final and the best epoch's weights."""

    epochs: tuple[Epoch, ...]
    best_epoch: int
    final: Diagnosis
    best: Diagnosis
    test: Scores  # of the final weights
    test_best_loss: float  # of the best epoch's weights
    test_calibration: Calibration  # of the final weights, with the temperature fitted to validation
    heldout: Scores  # of the final weights on validation and test images together
    image_scores: ImageScores
    distances: dict[str, float]  # `weights.distances` from the initial to the final parameters
    final_state: State
    seconds: float

    def cost(self) -> dict[str, float]:
        """Return seconds: total, in training steps, and in validation after epochs."""
        train, epochs = sum(epoch.train_seconds for epoch in self.epochs), sum(epoch.seconds for epoch in self.epochs)
        return {"seconds": self.seconds, "train_seconds": train, "val_seconds": epochs - train}

    def to_dict(self) -> dict[str, dict[str, float]]:
        calibration = dataclasses.asdict(self.test_calibration)
        del calibration["temperature"]  # equals the final weights' val_temperature
        return {
            "final": self.final.to_dict() | {"epoch": self.epochs[-1].epoch},
            "best": self.best.to_dict() | {"epoch": self.best_epoch},
            "test": dataclasses.asdict(self.test) | calibration | {"best_loss": self.test_best_loss},
            "heldout": dataclasses.asdict(self.heldout),
            "distance": self.distances,
        }


def score(network: nn.Module, history: History, train: Examples, half: Half, initial_state: State) -> Result:
    """Score the network's weights, which are the final ones, and those of the best epoch, in float32.

    Test images select nothing; the temperature by which their losses are scaled is fitted to validation.
    """
    use_precision("float32")  # the training may have allowed TF32 in this process
    start, final_state = time.perf_counter(), copy_state(network)
    val_labels, test_labels = (examples.labels.cpu().numpy() for examples in (half.val, half.test))
    final_train, val, test = best_train, best_val, best_test = _predict(network, train, half)
    if history.best_epoch != history.final.epoch:
        network.load_state_dict(history.best_state)
        best_train, best_val, best_test = _predict(network, train, half)
        network.load_state_dict(final_state)
    calibration, val_scaled = calibrate(val, val_labels)
    test_calibration, test_scaled = calibrate(test, test_labels, calibration.temperature)
    losses = {
        "val_final_loss": cross_entropies(val, val_labels),
        "val_best_loss": cross_entropies(best_val, val_labels),
        "val_scaled_loss": val_scaled,
        "test_final_loss": cross_entropies(test, test_labels),
        "test_best_loss": cross_entropies(best_test, test_labels),
        "test_scaled_loss": test_scaled,
    }
    classes = {"val_class": val.argmax(1), "test_class": test.argmax(1)}
    classes |= {"val_label": val_labels, "test_label": test_labels}
    rounded = {key: array.astype(np.float16) for key, array in losses.items()}
    return Result(
        epochs=history.epochs,
        best_epoch=history.best_epoch,
        final=Diagnosis(final_train, scores_of(val, val_labels), calibration),
        best=Diagnosis(best_train, scores_of(best_val, val_labels), calibrate(best_val, val_labels)[0]),
        test=scores_of(test, test_labels),
        test_best_loss=float(losses["test_best_loss"].mean()),
        test_calibration=test_calibration,
        heldout=scores_of(np.concatenate([val, test]), np.concatenate([val_labels, test_labels])),
        image_scores=rounded | {key: array.astype(np.uint8) for key, array in classes.items()},
        distances=distances({name: initial_state[name] for name, _ in network.named_parameters()}, final_state),
        final_state=final_state,
        seconds=sum(epoch.seconds for epoch in history.epochs) + time.perf_counter() - start,
    )


def _predict(network: nn.Module, train: Examples, half: Half) -> tuple[Scores, Logits, Logits]:
    """Return the scores on `train`, and the logits of the validation and test images."""
    val, test = (predict(network, examples).double().cpu().numpy() for examples in (half.val, half.test))
    return evaluate(network, train), val, test


def scores_of(logits: Logits, labels: Labels) -> Scores:
    return Scores(float(cross_entropies(logits, labels).mean()), float((logits.argmax(1) == labels).mean()))


def pack_image_scores(result: Result) -> bytes:
    """Return the result's `image_scores` as a compressed npz file: 8 bytes per image before compression."""
    file = io.BytesIO()
    np.savez_compressed(file, allow_pickle=False, **result.image_scores)
    return file.getvalue()


def unpack_image_scores(content: bytes) -> ImageScores:
    """Undo `pack_image_scores`. Raises ModelError for a damaged file."""
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            scores = {key: file[key] for key in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ModelError(f"the scores of a cell's images are damaged ({error})") from error
    lengths = {(key.partition("_")[0], len(array)) for key, array in scores.items()}
    if set(scores) != IMAGE_SCORES or len(lengths) != 2:
        raise ModelError(f"the scores of a cell's images are incomplete: {sorted(scores)}")
    return scores
