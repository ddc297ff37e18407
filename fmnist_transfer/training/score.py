"""Result of one training: its epochs, and the scores and calibration (Guo et al. 2017) of final and best weights."""

import dataclasses
import io
import math
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax
from torch import Tensor, nn

from fmnist_transfer.data.examples import Examples, Half
from fmnist_transfer.network.weights import State, copy_state, distances
from fmnist_transfer.training.evaluation import Scores, evaluate, predict, scores_of

N_BINS = 15  # of equal width, as in Guo et al.
Logits = NDArray[np.float64]  # [n, n_classes]
Labels = NDArray[np.int64]  # [n], 0 ... n_classes - 1


@dataclass(frozen=True)
class Epoch:
    """One nominal epoch, 1-based. `train_loss` is the mean over its batches during training."""

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
    """Epochs of one `fit`. The network holds the final weights, `best_state` those of the lowest validation loss."""

    epochs: tuple[Epoch, ...]
    best_epoch: int
    best_state: State

    @property
    def final(self) -> Epoch:
        return self.epochs[-1]

    @property
    def best(self) -> Epoch:
        return self.epochs[self.best_epoch - 1]


@dataclass(frozen=True)
class Calibration:
    """Calibration of one network on one set of images."""

    ece: float  # expected calibration error of the unscaled logits, in [0, 1]
    temperature: float  # divisor of the logits; above 1 if the network is over-confident
    scaled_loss: float  # mean cross-entropy in nats after dividing


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
    test_calibration: Calibration  # of the final weights, with the temperature fitted to validation
    distances: dict[str, float]  # `weights.distances` from the initial to the final parameters
    final_state: State
    seconds: float
    image_scores: dict[str, NDArray[Any]] = dataclasses.field(default_factory=dict)

    def cost(self) -> dict[str, float]:
        """Return seconds: total, in training steps, and in validation after each epoch."""
        train, epochs = sum(epoch.train_seconds for epoch in self.epochs), sum(epoch.seconds for epoch in self.epochs)
        return {"seconds": self.seconds, "train_seconds": train, "val_seconds": epochs - train}

    def to_dict(self) -> dict[str, dict[str, float]]:
        calibration = dataclasses.asdict(self.test_calibration)
        del calibration["temperature"]  # equals the final weights' val_temperature
        return {
            "final": self.final.to_dict() | {"epoch": self.epochs[-1].epoch},
            "best": self.best.to_dict() | {"epoch": self.best_epoch},
            "test": dataclasses.asdict(self.test) | calibration,
            "distance": self.distances,
        }


def score(network: nn.Module, history: History, train: Examples, half: Half, initial_state: State) -> Result:
    """Score the network's weights, which are the final ones, and the best, on test images the final ones alone."""
    start = time.perf_counter()
    final_state = copy_state(network)
    final = best = _diagnose(network, history.final, train, half.val)
    test_logits, val_logits = predict(network, half.test), predict(network, half.val)
    image_scores: dict[str, NDArray[Any]] = {}
    for part, logits, examples in (("val", val_logits, half.val), ("test", test_logits, half.test)):
        losses = torch.nn.functional.cross_entropy(logits, examples.labels, reduction="none").cpu().numpy()
        image_scores |= {f"{part}_{kind}_loss": losses.astype(np.float16) for kind in ("final", "best", "scaled")}
        image_scores[f"{part}_class"] = logits.argmax(1).cpu().numpy().astype(np.uint8)
    if history.best_epoch != len(history.epochs):
        network.load_state_dict(history.best_state)
        best = _diagnose(network, history.best, train, half.val)
        network.load_state_dict(final_state)
    return Result(
        epochs=history.epochs,
        best_epoch=history.best_epoch,
        final=final,
        best=best,
        test=scores_of(test_logits, half.test.labels),
        test_calibration=calibrate(*_arrays(test_logits, half.test), final.val_calibration.temperature),
        distances=distances({name: initial_state[name] for name, _ in network.named_parameters()}, final_state),
        final_state=final_state,
        seconds=sum(epoch.seconds for epoch in history.epochs) + time.perf_counter() - start,
        image_scores=image_scores,
    )


def pack_image_scores(result: Result) -> bytes:
    """Write the image scores as a compressed npz file."""
    file = io.BytesIO()
    np.savez_compressed(file, **result.image_scores)  # type: ignore[arg-type]
    return file.getvalue()


def unpack_image_scores(content: bytes) -> dict[str, NDArray[Any]]:
    """Inverse of `pack_image_scores`."""
    with np.load(io.BytesIO(content)) as file:
        return dict(file)


def _diagnose(network: nn.Module, epoch: Epoch, train: Examples, val: Examples) -> Diagnosis:
    """Score the network's weights, which must be those of `epoch`."""
    calibration = calibrate(*_arrays(predict(network, val), val))
    return Diagnosis(evaluate(network, train), Scores(epoch.val_loss, epoch.val_accuracy), calibration)


def _arrays(logits: Tensor, examples: Examples) -> tuple[Logits, Labels]:
    return logits.double().cpu().numpy(), examples.labels.cpu().numpy()


def calibrate(logits: Logits, labels: Labels, temperature: float | None = None) -> Calibration:
    """Calibrate with a temperature of other images; without one, fit it to all of these and cross-fit the loss."""
    ece = expected_calibration_error(logits, labels)
    if temperature is None:
        return Calibration(ece, fit_temperature(logits, labels), cross_fitted_loss(logits, labels))
    return Calibration(ece, temperature, cross_entropy(logits / temperature, labels))


def expected_calibration_error(logits: Logits, labels: Labels) -> float:
    """Mean over images of |accuracy - confidence| of the image's bin; bins have equal width in the confidence."""
    probabilities = softmax(logits.astype(np.float64), axis=1)
    confidence, correct = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    bins = np.minimum((confidence * N_BINS).astype(int), N_BINS - 1)
    gaps = np.bincount(bins, weights=correct - confidence, minlength=N_BINS)
    return float(np.abs(gaps).sum() / len(labels))


def cross_entropy(logits: Logits, labels: Labels) -> float:
    """Mean cross-entropy over images, in nats."""
    return float(-log_softmax(logits.astype(np.float64), axis=1)[np.arange(len(labels)), labels].mean())


def fit_temperature(logits: Logits, labels: Labels) -> float:
    """Return the temperature in [0.05, 20] with the lowest cross-entropy, which is convex in 1 / temperature."""

    def loss(log_temperature: float) -> float:
        return cross_entropy(logits * math.exp(-log_temperature), labels)

    bounds = math.log(0.05), math.log(20.0)
    return math.exp(minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-5}).x)


def cross_fitted_loss(logits: Logits, labels: Labels) -> float:
    """Mean cross-entropy in nats after scaling each half of the images by the temperature fitted to the other half.

    The halves are class-balanced: images of each class alternate. Raises ValueError if a half is empty.
    """
    fold = np.zeros(len(labels), dtype=int)
    for label in np.unique(labels):
        fold[labels == label] = np.arange((labels == label).sum()) % 2
    total = 0.0
    for fitted, scored in ((fold == 1, fold == 0), (fold == 0, fold == 1)):
        if not fitted.any() or not scored.any():
            raise ValueError(f"{len(labels)} images cannot be cut into two folds")
        temperature = fit_temperature(logits[fitted], labels[fitted])
        total += scored.sum() * cross_entropy(logits[scored] / temperature, labels[scored])
    return float(total / len(labels))
