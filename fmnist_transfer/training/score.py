"""Result of one training: its epochs, and the scores of its final and best weights."""

import dataclasses
import math
import time
from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn

from fmnist_transfer.data.examples import Examples, Half
from fmnist_transfer.network.weights import State, copy_state, distances
from fmnist_transfer.training.calibration import Calibration, calibrate_test, calibrate_val
from fmnist_transfer.training.evaluation import Scores, evaluate, predict, scores_of


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
    train_seconds: float = math.nan
    """Part of `seconds` spent in training steps. NaN in studies logged before this was recorded."""

    @property
    def val_seconds(self) -> float:
        """Part of `seconds` spent in evaluation."""
        return self.seconds - self.train_seconds


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
class Diagnosis:
    """Scores of one set of weights. `train` is the training subset in evaluation mode."""

    train: Scores
    val: Scores
    val_calibration: Calibration

    @property
    def gap(self) -> float:
        """Generalisation gap in nats: validation loss minus training loss."""
        return self.val.loss - self.train.loss

    def to_dict(self) -> dict[str, float]:
        """Return train_loss, train_accuracy, val_loss, val_accuracy, val_ece, val_temperature, val_scaled_loss, gap."""
        val = dataclasses.asdict(self.val) | dataclasses.asdict(self.val_calibration)
        flat = {f"train_{key}": value for key, value in dataclasses.asdict(self.train).items()}
        return flat | {f"val_{key}": value for key, value in val.items()} | {"gap": self.gap}


@dataclass(frozen=True)
class Result:
    """A finished training: its epochs, and the scores of the final and the best epoch's weights."""

    epochs: tuple[Epoch, ...]
    best_epoch: int
    final: Diagnosis
    best: Diagnosis
    test: Scores
    """Test scores of the final weights."""
    test_calibration: Calibration
    """Test calibration of the final weights, with the temperature fitted to validation."""
    distances: dict[str, float]
    """L2 distance of each layer's final parameters from their initial values, and of `all` together."""
    final_state: State
    seconds: float

    def cost(self) -> dict[str, float]:
        """Return seconds: total, in training steps, and in validation after each epoch."""
        return {
            "seconds": self.seconds,
            "train_seconds": sum(epoch.train_seconds for epoch in self.epochs),
            "val_seconds": sum(epoch.val_seconds for epoch in self.epochs),
        }

    def to_dict(self) -> dict[str, dict[str, float]]:
        """Return `final`, `best`, `test` and `distance` as plain numbers."""
        calibration = dataclasses.asdict(self.test_calibration)
        del calibration["temperature"]  # equals the final weights' val_temperature
        return {
            "final": self.final.to_dict() | {"epoch": self.epochs[-1].epoch},
            "best": self.best.to_dict() | {"epoch": self.best_epoch},
            "test": dataclasses.asdict(self.test) | calibration,
            "distance": self.distances,
        }


def score(network: nn.Module, history: History, train: Examples, half: Half, initial_state: State) -> Result:
    """Score the network's weights, which are the final ones, and the best; `seconds` covers epochs and scoring."""
    start = time.perf_counter()
    final_state = copy_state(network)
    final = diagnose(network, history.final, train, half.val)
    test_logits = predict(network, half.test)
    test_calibration = calibrate_test(*_arrays(test_logits, half.test), final.val_calibration.temperature)
    best = final
    if history.best_epoch != len(history.epochs):
        network.load_state_dict(history.best_state)
        best = diagnose(network, history.best, train, half.val)
        network.load_state_dict(final_state)
    return Result(
        epochs=history.epochs,
        best_epoch=history.best_epoch,
        final=final,
        best=best,
        test=scores_of(test_logits, half.test.labels),
        test_calibration=test_calibration,
        distances=distances({name: initial_state[name] for name, _ in network.named_parameters()}, final_state),
        final_state=final_state,
        seconds=sum(epoch.seconds for epoch in history.epochs) + time.perf_counter() - start,
    )


def diagnose(network: nn.Module, epoch: Epoch, train: Examples, val: Examples) -> Diagnosis:
    """Score the network's weights, which must be those of `epoch`."""
    calibration = calibrate_val(*_arrays(predict(network, val), val))
    return Diagnosis(evaluate(network, train), Scores(epoch.val_loss, epoch.val_accuracy), calibration)


def _arrays(logits: Tensor, examples: Examples) -> tuple[np.ndarray, np.ndarray]:
    return logits.double().cpu().numpy(), examples.labels.cpu().numpy()
