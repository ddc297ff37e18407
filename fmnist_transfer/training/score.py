"""Result of one training: its epochs, and the scores of final and best weights, also of each image."""

import io
import math
import time
import zipfile
import zlib
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fmnist_transfer.data.examples import Examples, Half
from fmnist_transfer.errors import ModelError
from fmnist_transfer.network.weights import State, copy_state, distances
from fmnist_transfer.training.calibration import Logits, cross_entropies, cross_fitted_losses, fit_temperature
from fmnist_transfer.training.device import use_precision
from fmnist_transfer.training.evaluation import Scores, evaluate, predict

MOST_EVALUATIONS = 20  # per training
# Scores of each image, [n] per key, in the order of `Half.val` and `Half.test`. `*_loss` (float16, nats): of the final
# weights, of the best epoch's, and of the final ones scaled by a temperature; `*_class` (uint8): the final ones choose.
ImageScores = dict[str, NDArray[Any]]
KINDS = ("final_loss", "best_loss", "scaled_loss", "class", "label")
IMAGE_SCORES = [f"{part}_{kind}" for part in ("val", "test") for kind in KINDS]


def evaluation_points(epochs: int) -> tuple[int, ...]:
    """Return the epochs, 1-based, after which a training of `epochs` is evaluated: all of 20, else 20 spread evenly."""
    n = min(epochs, MOST_EVALUATIONS)
    return tuple(round(i * epochs / n) for i in range(1, n + 1))


@dataclass(frozen=True)
class Epoch:
    """A nominal epoch, 1-based, after which the network was evaluated; seconds count from the previous evaluation."""

    epoch: int
    step: int
    train_loss: float  # mean over the epoch's batches, during training
    val_loss: float
    val_accuracy: float
    learning_rate: float
    seconds: float
    train_seconds: float = math.nan  # part of `seconds` in training steps; NaN in studies logged before it was recorded


@dataclass(frozen=True)
class History:
    """Evaluated epochs of one `fit`, after which the network holds the final weights."""

    epochs: tuple[Epoch, ...]
    best_epoch: int
    best_state: State  # weights of the lowest validation loss

    @property
    def final(self) -> Epoch:
        return self.epochs[-1]


@dataclass(frozen=True)
class Result:
    """A finished training: its epochs, and the scores of the final and the best epoch's weights."""

    epochs: tuple[Epoch, ...]
    best_epoch: int
    train: Scores  # of the final weights on the training subset, in evaluation mode
    val: Scores  # of the final weights, as all but `best`
    test: Scores
    heldout: Scores  # validation and test images together
    best: Scores  # of the best epoch's weights on validation images
    best_test_loss: float
    scaled_test_loss: float  # of the final weights, with the temperature fitted to validation
    calibration: dict[str, float]  # of the final weights: val_temperature, val_scaled_loss (cross-fitted)
    image_scores: ImageScores
    distances: dict[str, float]  # `weights.distances` from the initial to the final parameters
    final_state: State
    seconds: float

    def cost(self) -> dict[str, float]:
        """Return seconds: total, in training steps, and in validation after epochs."""
        train, epochs = sum(epoch.train_seconds for epoch in self.epochs), sum(epoch.seconds for epoch in self.epochs)
        return {"seconds": self.seconds, "train_seconds": train, "val_seconds": epochs - train}

    def to_dict(self) -> dict[str, dict[str, float]]:
        train, val, best = self.train, self.val, self.best
        final = {"train_loss": train.loss, "train_accuracy": train.accuracy, "gap": val.loss - train.loss}
        final |= {"val_loss": val.loss, "val_accuracy": val.accuracy, "epoch": self.epochs[-1].epoch}
        return {
            "final": final | self.calibration,
            "best": {"val_loss": best.loss, "val_accuracy": best.accuracy, "epoch": self.best_epoch},
            "test": asdict(self.test) | {"best_loss": self.best_test_loss, "scaled_loss": self.scaled_test_loss},
            "heldout": asdict(self.heldout),
            "distance": self.distances,
        }


def score(network: nn.Module, history: History, train: Examples, half: Half, initial_state: State) -> Result:
    """Score the network's weights, which are the final ones, and those of the best epoch, in float32.

    Test images select nothing; the temperature by which their losses are scaled is fitted to validation.
    """
    use_precision("float32")  # the training may have allowed TF32 in this process
    start, final_state = time.perf_counter(), copy_state(network)
    train_scores, logits = evaluate(network, train), _logits(network, half)
    best_logits = logits
    if history.best_epoch != history.final.epoch:
        network.load_state_dict(history.best_state)
        best_logits = _logits(network, half)
        network.load_state_dict(final_state)
    labels = torch.cat([half.val.labels, half.test.labels]).cpu().numpy()
    val, test = slice(0, len(half.val)), slice(len(half.val), None)
    temperature = fit_temperature(logits[val], labels[val])
    losses = {"final": cross_entropies(logits, labels), "best": cross_entropies(best_logits, labels)}
    losses["scaled"] = cross_entropies(logits / temperature, labels)
    losses["scaled"][val] = cross_fitted_losses(logits[val], labels[val])
    classes = {"final": logits.argmax(1), "best": best_logits.argmax(1)}

    def scores(kind: str, part: slice) -> Scores:
        is_correct = classes[kind][part] == labels[part]
        return Scores(float(losses[kind][part].mean()), float(is_correct.mean()))

    arrays: list[NDArray[Any]] = [losses[kind].astype(np.float16) for kind in losses]
    arrays += [classes["final"].astype(np.uint8), labels.astype(np.uint8)]
    return Result(
        epochs=history.epochs,
        best_epoch=history.best_epoch,
        train=train_scores,
        val=scores("final", val),
        test=scores("final", test),
        heldout=scores("final", slice(None)),
        best=scores("best", val),
        best_test_loss=float(losses["best"][test].mean()),
        scaled_test_loss=float(losses["scaled"][test].mean()),
        calibration={"val_temperature": temperature, "val_scaled_loss": float(losses["scaled"][val].mean())},
        image_scores=dict(zip(IMAGE_SCORES, [array[part] for part in (val, test) for array in arrays], strict=True)),
        distances=distances({name: initial_state[name] for name, _ in network.named_parameters()}, final_state),
        final_state=final_state,
        seconds=sum(epoch.seconds for epoch in history.epochs) + time.perf_counter() - start,
    )


def _logits(network: nn.Module, half: Half) -> Logits:
    """Return the logits of the validation and then of the test images."""
    return torch.cat([predict(network, examples) for examples in (half.val, half.test)]).double().cpu().numpy()


def pack_image_scores(result: Result) -> bytes:
    """Return the result's `image_scores` as a compressed npz file: 8 bytes per image before compression."""
    file = io.BytesIO()
    np.savez_compressed(file, allow_pickle=False, **result.image_scores)
    return file.getvalue()


def unpack_image_scores(content: bytes) -> ImageScores:
    """Undo `pack_image_scores`. Raises ModelError for a damaged file."""
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            return {key: file[key] for key in IMAGE_SCORES}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ModelError(f"the scores of a cell's images are damaged ({error})") from error
