"""One network, trained on resident images: the hot loop.

Examples and a `Recipe` in, a `History` out, the network trained in place; each epoch is reported to a callback. Knows
nothing of MLflow, Optuna or command lines, and uses no global random state.
"""

import contextlib
import ctypes
import dataclasses
import gc
import math
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fmnist_transfer.augmentation import augment, normalise
from fmnist_transfer.calibration import Calibration, calibrate_test, calibrate_val
from fmnist_transfer.data import Examples, Half, fraction, on_device
from fmnist_transfer.errors import Interrupted, UsageError
from fmnist_transfer.evaluation import (
    Scores,
    State,
    copy_state,
    evaluate,
    features,
    predict,
    re_estimate_batch_norm,
    scores_of,
)
from fmnist_transfer.model import CLASSIFIER, CNN2Spec, find_classifier, fresh_network
from fmnist_transfer.recipe import Precision, Recipe
from fmnist_transfer.seeding import Streams

NUMERICS_VERSION = 4  # by hand, when results may change: trainings of before are then not reused
FACTOR = "learning_rate_factor"  # of a parameter group
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
MOST_BYTES_KEPT, MOST_BYTES_KEPT_BY_OLD_GLIBC = 2**30, 2**25


class Diverged(Exception):
    """The loss became NaN or infinite. `str` says at which epoch and step."""


@dataclass(frozen=True)
class Epoch:
    """One nominal epoch, 1-based. `train_loss` is the mean over its batches while they trained."""

    epoch: int
    step: int
    train_loss: float
    val_loss: float
    val_accuracy: float
    learning_rate: float
    seconds: float
    train_seconds: float = math.nan
    """Of `seconds`, those of the training steps; NaN in studies of before it was measured."""

    @property
    def val_seconds(self) -> float:
        """Of `seconds`, those of the evaluation."""
        return self.seconds - self.train_seconds


@dataclass(frozen=True)
class History:
    """What `fit` saw. The network itself holds the final weights; `best_state` those of the lowest validation loss."""

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
    """What one set of weights is like. `train` is of the training subset in evaluation mode."""

    train: Scores
    val: Scores
    val_calibration: Calibration

    @property
    def gap(self) -> float:
        """Generalisation gap in nats: validation loss minus training loss."""
        return self.val.loss - self.train.loss

    def to_dict(self) -> dict[str, float]:
        """train_loss, train_accuracy, val_loss, val_accuracy, val_ece, val_temperature, val_scaled_loss, gap."""
        val = dataclasses.asdict(self.val) | dataclasses.asdict(self.val_calibration)
        flat = {f"train_{key}": value for key, value in dataclasses.asdict(self.train).items()}
        return flat | {f"val_{key}": value for key, value in val.items()} | {"gap": self.gap}


@dataclass(frozen=True)
class Result:
    """A finished training: its history, and what the final and the best epoch's weights are like."""

    epochs: tuple[Epoch, ...]
    best_epoch: int
    final: Diagnosis
    best: Diagnosis
    test: Scores
    """Of the final weights."""
    test_calibration: Calibration
    """By the temperature of the final weights, which validation images chose."""
    distances: dict[str, float]
    """L2 distance of each layer's final parameters from where they started, and `all` of them together."""
    final_state: State
    seconds: float

    def cost(self) -> dict[str, float]:
        """Seconds: all, those of the training steps, those of the validation after each epoch."""
        return {
            "seconds": self.seconds,
            "train_seconds": sum(epoch.train_seconds for epoch in self.epochs),
            "val_seconds": sum(epoch.val_seconds for epoch in self.epochs),
        }

    def to_dict(self) -> dict[str, dict[str, float]]:
        """`final`, `best`, `test` and `distance` as plain numbers."""
        calibration = dataclasses.asdict(self.test_calibration)
        del calibration["temperature"]  # it is the final one of validation
        return {
            "final": self.final.to_dict() | {"epoch": self.epochs[-1].epoch},
            "best": self.best.to_dict() | {"epoch": self.best_epoch},
            "test": dataclasses.asdict(self.test) | calibration,
            "distance": self.distances,
        }


def choose_device(name: str = "auto", precision: Precision = "float32") -> torch.device:
    """`auto` is CUDA, else MPS, else the CPU.

    Raises UsageError for a device that is not there, or that does not know the precision.
    """
    device = _find_device(name)
    if precision == "tf32" and device.type != "cuda":
        raise UsageError(f"--precision tf32: {device.type} has none; use float32 or bf16")
    return device


def _find_device(name: str) -> torch.device:
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(kind for kind, found in there.items() if found))
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"--device {name}: use auto, cpu, cuda, cuda:N or mps") from error
    if not there.get(device.type, False) or (
        device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count()
    ):
        raise UsageError(f"--device {name}: not on this machine; --device auto takes what there is")
    return device


def prepare_process() -> None:
    """One torch thread for each training task, so that results do not depend on the number of workers."""
    torch.set_num_threads(1)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    _keep_freed_memory()


def numerics() -> dict[str, str]:
    """What results depend on besides settings and data: torch, its threads, the CPU's kind; and the host."""
    return {
        "trained_on": socket.gethostname(),
        "torch_build": torch.__version__,
        "torch_threads": str(torch.get_num_threads()),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
    }


def free_memory() -> None:
    """Give back what a failed task held, so that the next one has it."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _keep_freed_memory() -> None:
    """Let glibc keep what a step frees for the next one; elsewhere do nothing.

    Given back to the system, activations of 32 channels and 256 images came back as 17,000 page faults a step, which
    cost a third of the images per second.
    """
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        # Old versions refuse more than 32 MiB; either setting alone would switch off glibc's own adaptation.
        if mallopt(M_MMAP_THRESHOLD, MOST_BYTES_KEPT) or mallopt(M_MMAP_THRESHOLD, MOST_BYTES_KEPT_BY_OLD_GLIBC):
            mallopt(M_TRIM_THRESHOLD, MOST_BYTES_KEPT)


def fit(
    network: nn.Module,
    train: Examples,
    val: Examples,
    recipe: Recipe,
    streams: Streams,
    *,
    classifier: str = CLASSIFIER,
    steps_per_epoch: int | None = None,
    precision: Precision = "float32",
    on_epoch: Callable[[Epoch], None] = lambda epoch: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> History:
    """Train `network` in place.

    Args:
        network: on the device to train on, where `train` and `val` must be as well.
        train: the training subset; class-balanced prefixes of it serve to re-estimate batch-norm statistics.
        streams: batch order, augmentation and dropout each draw from their own.
        classifier: name of the module whose learning rate the recipe's `trunk_factor` does not scale.
        steps_per_epoch: steps of a nominal epoch, after which validation is scored; default: one pass over `train`.
            A larger number is the *steps* budget.
        precision: `bf16` is of the training steps' forward passes, `tf32` of every product on CUDA, evaluation too.
        on_epoch: called after each nominal epoch; may raise to end the training.
        should_stop: asked before each batch; True raises Interrupted.

    Raises:
        Diverged: the loss is NaN or infinite.
        UsageError: the trunk has a learning rate of its own, and there is no module called `classifier`.
    """
    device = train.images.device
    use_precision(precision)
    if recipe.trunk_factor != 1:
        find_classifier(network, classifier)
    optimizer = make_optimizer(network, recipe, f"{classifier}.")
    steps_per_epoch = steps_per_epoch or recipe.steps_per_epoch(len(train))
    total_steps = steps_per_epoch * recipe.epochs
    order = batches(len(train), recipe.batch_size, streams.generator("batches"))
    augmentation = streams.generator("augmentation", device)
    epochs: list[Epoch] = []
    best_epoch, best_state = 0, State()
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(streams.seed("dropout"))
        for number in range(1, recipe.epochs + 1):
            start = time.perf_counter()
            network.train()
            losses = torch.empty(steps_per_epoch, device=device)
            orders = torch.stack([next(order) for _ in range(steps_per_epoch)]).to(device)
            for i in range(steps_per_epoch):
                if should_stop():
                    raise Interrupted("training was interrupted")
                step = (number - 1) * steps_per_epoch + i
                for group in optimizer.param_groups:
                    group["lr"] = recipe.learning_rate_at(step, total_steps) * group[FACTOR]
                batch = train.take(orders[i])
                with autocast(precision, device):
                    logits = network(normalise(augment(batch.images, recipe, augmentation)))
                loss = F.cross_entropy(logits.float(), batch.labels, label_smoothing=recipe.label_smoothing)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses[i] = loss.detach()
            check_finite(losses, number, steps_per_epoch)
            train_seconds = time.perf_counter() - start
            re_estimate_batch_norm(network, train)
            scores = evaluate(network, val)
            if not math.isfinite(scores.loss):
                raise Diverged(f"validation loss is {scores.loss} after epoch {number}, step {step + 1}")
            epochs.append(
                Epoch(
                    epoch=number,
                    step=step + 1,
                    train_loss=float(losses.mean()),
                    val_loss=scores.loss,
                    val_accuracy=scores.accuracy,
                    learning_rate=recipe.learning_rate_at(step, total_steps),
                    seconds=time.perf_counter() - start,
                    train_seconds=train_seconds,
                )
            )
            if not best_epoch or scores.loss < epochs[best_epoch - 1].val_loss:
                best_epoch, best_state = number, copy_state(network)
            on_epoch(epochs[-1])
    return History(tuple(epochs), best_epoch, best_state)


def fit_classifier(
    network: nn.Module,
    train: Examples,
    val: Examples,
    recipe: Recipe,
    streams: Streams,
    *,
    classifier: str = CLASSIFIER,
    **options: Any,
) -> History:
    """Train the classifier alone, in place; the other weights stay as they are.

    The trunk is in evaluation mode and sees every image once, as it is: batch-norm statistics are re-estimated before
    that, and there is neither augmentation nor dropout. Arguments as those of `fit`, errors as those of `features`.
    """
    re_estimate_batch_norm(network, train)
    plain = dataclasses.replace(recipe, flip=False, shift=0, erase=0.0, trunk_factor=1.0)
    seen, seen_of_val = (features(network, examples, classifier) for examples in (train, val))
    history = fit(find_classifier(network, classifier), seen, seen_of_val, plain, streams, **options)
    best_classifier = {f"{classifier}.{name}": tensor for name, tensor in history.best_state.items()}
    return dataclasses.replace(history, best_state=copy_state(network) | best_classifier)


def fit_and_score(
    network: nn.Module, train: Examples, half: Half, recipe: Recipe, streams: Streams, **options: Any
) -> Result:
    """`fit` on the device of `train`, then score once: training subset and validation at both epochs, test at the end.

    Args:
        half: whose validation and test images are scored; on the same device.
        options: those of `fit`.
    """
    start, initial_state = time.perf_counter(), copy_state(network)
    history = fit(network, train, half.val, recipe, streams, **options)
    result = score(network, history, train, half, initial_state)
    return dataclasses.replace(result, seconds=time.perf_counter() - start)


def train_on_half(spec: CNN2Spec, half: Half, recipe: Recipe, streams: Streams, device: str, **options: Any) -> Result:
    """`fit_and_score` of a fresh network on all training images of the half; `options` are those of `fit`."""
    half = on_device(half, device)
    network = fresh_network(spec, streams).to(device)
    return fit_and_score(network, fraction(half.train, 100, streams), half, recipe, streams, **options)


def score(network: nn.Module, history: History, train: Examples, half: Half, initial_state: State) -> Result:
    """Score the final weights, which the network holds, and the best; `seconds` are those of the epochs and of this."""
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
    """Of the weights that the network holds, which are those of `epoch`."""
    calibration = calibrate_val(*_arrays(predict(network, val), val))
    return Diagnosis(evaluate(network, train), Scores(epoch.val_loss, epoch.val_accuracy), calibration)


def _arrays(logits: Tensor, examples: Examples) -> tuple[np.ndarray, np.ndarray]:
    return logits.double().cpu().numpy(), examples.labels.cpu().numpy()


def distances(start: State, end: State) -> dict[str, float]:
    """L2 distance of each layer's parameters (`blocks.0.0`, `fc1` ...) from `start`, and of `all` together."""
    squares: dict[str, float] = {}
    for name in start:
        layer = name.rpartition(".")[0] or name
        square = float((end[name].double() - start[name].double()).square().sum())
        squares[layer] = squares.get(layer, 0.0) + square
    return {layer: math.sqrt(square) for layer, square in (squares | {"all": sum(squares.values())}).items()}


def make_optimizer(
    network: nn.Module, recipe: Recipe, classifier: str, *, recorded: bool = False
) -> torch.optim.Optimizer:
    """The recipe's optimizer.

    Args:
        classifier: how the names of the classifier's parameters begin.
        recorded: for steps in a CUDA graph, the learning rate a tensor on the device.
    """
    parameters = _parameter_groups(network, recipe.trunk_factor, classifier)
    device = next(network.parameters()).device
    learning_rate: float | Tensor = recipe.learning_rate
    if recorded:
        learning_rate = torch.tensor(recipe.learning_rate, device=device)
        parameters = [group | {"lr": learning_rate.clone()} for group in parameters]  # each is written by itself
    weight_decay = recipe.weight_decay
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(
            parameters, learning_rate, momentum=0.9, nesterov=True, weight_decay=weight_decay, fused=True
        )
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[recipe.optimizer]
    capturable = recorded and device.type == "cuda"
    return kind(parameters, learning_rate, weight_decay=weight_decay, fused=True, capturable=capturable)


def _parameter_groups(network: nn.Module, trunk_factor: float, classifier: str) -> list[dict[str, Any]]:
    """One group with factor 1, or the classifier's and the trunk's."""
    if trunk_factor == 1:
        return [{"params": list(network.parameters()), FACTOR: 1.0}]
    groups: dict[float, list[nn.Parameter]] = {1.0: [], trunk_factor: []}
    for name, parameter in network.named_parameters():
        groups[1.0 if name.startswith(classifier) else trunk_factor].append(parameter)
    return [{"params": group, FACTOR: factor} for factor, group in groups.items()]


def use_precision(precision: Precision) -> None:
    """Whether this process's float32 products on CUDA may be rounded to TF32."""
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = precision == "tf32"


def autocast(precision: Precision, device: torch.device) -> torch.autocast:
    """bfloat16 in the forward pass, if asked for; without its cache, which would be stale in a recorded step."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16", cache_enabled=False)


def batches(n: int, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Indices of one batch after another, without end: fresh permutations, each one's remainder dropped."""
    while True:
        order = torch.randperm(n, generator=generator)
        full = n - n % batch_size or n
        yield from order[:full].split(batch_size)


def check_finite(losses: Tensor, epoch: int, steps_per_epoch: int) -> None:
    """One synchronisation an epoch. losses: [steps_per_epoch]."""
    bad = torch.nonzero(~torch.isfinite(losses)).flatten()
    if len(bad):
        i = int(bad[0])
        raise Diverged(
            f"training loss is {float(losses[i])} at epoch {epoch}, step {(epoch - 1) * steps_per_epoch + i + 1}"
        )
