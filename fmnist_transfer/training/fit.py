"""The training loop of one network, on images that are already on its device. It leaves global random state alone."""

import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fmnist_transfer.data.examples import Examples, Half, fraction, on_device
from fmnist_transfer.errors import Interrupted
from fmnist_transfer.network.cnn2 import CNN2Spec, fresh_network
from fmnist_transfer.network.weights import State, copy_state
from fmnist_transfer.seeding import Streams
from fmnist_transfer.training.augmentation import augment, normalise
from fmnist_transfer.training.device import autocast, use_precision
from fmnist_transfer.training.evaluation import Scores, evaluate, re_estimate_batch_norm
from fmnist_transfer.training.recipe import Precision, Recipe
from fmnist_transfer.training.score import Epoch, History, Result, score


class Diverged(Exception):
    """The loss became NaN or infinite. The message gives the epoch and step."""


def fit(
    network: nn.Module,
    train: Examples,
    val: Examples,
    recipe: Recipe,
    streams: Streams,
    *,
    steps_per_epoch: int | None = None,
    precision: Precision = "float32",
    on_epoch: Callable[[Epoch], None] = lambda epoch: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> History:
    """Train `network` in place. It, `train` and `val` are on one device; losses are in nats.

    train: classes mixed, as by `fraction`, since its first images give the batch-norm statistics.
    steps_per_epoch: steps between validations; default: one pass over `train`. The *steps* budget gives more.
    precision: `bf16` applies to training steps' forward passes, `tf32` to every product on CUDA, evaluation too.
    on_epoch: called after each validation; may raise. should_stop: called before each batch; True raises Interrupted.

    Raises Diverged for a NaN or infinite loss.
    """
    device = train.images.device
    use_precision(precision)
    optimizer = make_optimizer(network, recipe)
    steps_per_epoch = steps_per_epoch or recipe.steps_per_epoch(len(train))
    total_steps = steps_per_epoch * recipe.epochs
    index_batches = batches(len(train), recipe.batch_size, streams.generator("batches"))
    augmentation = streams.generator("augmentation", device)
    record = Record(recipe, steps_per_epoch)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(streams.seed("dropout"))
        for first_step in range(0, total_steps, steps_per_epoch):
            start = time.perf_counter()
            network.train()
            losses = torch.empty(steps_per_epoch, device=device)
            indices = torch.stack([next(index_batches) for _ in range(steps_per_epoch)]).to(device)  # [steps, batch]
            for i in range(steps_per_epoch):
                if should_stop():
                    raise Interrupted("training was interrupted")
                for group in optimizer.param_groups:
                    group["lr"] = recipe.learning_rate_at(first_step + i, total_steps)
                batch = train.take(indices[i])
                with autocast(precision, device):
                    logits = network(normalise(augment(batch.images, recipe, augmentation)))
                loss = F.cross_entropy(logits.float(), batch.labels, label_smoothing=recipe.label_smoothing)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses[i] = loss.detach()
            record.check_finite(losses)
            train_seconds = time.perf_counter() - start
            re_estimate_batch_norm(network, train)
            scores = evaluate(network, val)
            record.add(losses, scores, time.perf_counter() - start, train_seconds, lambda: copy_state(network))
            on_epoch(record.epochs[-1])
    return record.history()


class Record:
    """Epochs of one network so far, and the weights of the best."""

    def __init__(self, recipe: Recipe, steps_per_epoch: int):
        self.recipe, self.steps_per_epoch = recipe, steps_per_epoch
        self.epochs: list[Epoch] = []
        self.best_epoch, self.best_state = 0, State()

    def check_finite(self, losses: Tensor) -> None:
        """Raise Diverged if a loss [steps_per_epoch] of the epoch just trained is not finite. Waits for the device."""
        bad = torch.nonzero(~torch.isfinite(losses)).flatten()
        if len(bad):
            i, n_epochs = int(bad[0]), len(self.epochs)
            step = n_epochs * self.steps_per_epoch + i + 1
            raise Diverged(f"training loss is {float(losses[i])} at epoch {n_epochs + 1}, step {step}")

    def add(self, losses: Tensor, val: Scores, seconds: float, train_seconds: float, copy: Callable[[], State]) -> None:
        """Add an epoch with these losses of its steps. `copy` returns the weights. Raises Diverged."""
        number = len(self.epochs) + 1
        step = number * self.steps_per_epoch
        if not math.isfinite(val.loss):
            raise Diverged(f"validation loss is {val.loss} after epoch {number}, step {step}")
        rate = self.recipe.learning_rate_at(step - 1, self.recipe.epochs * self.steps_per_epoch)
        if not self.epochs or val.loss < self.epochs[self.best_epoch - 1].val_loss:
            self.best_epoch, self.best_state = number, copy()
        train_loss = float(losses.mean())
        self.epochs.append(Epoch(number, step, train_loss, val.loss, val.accuracy, rate, seconds, train_seconds))

    def history(self) -> History:
        return History(tuple(self.epochs), self.best_epoch, self.best_state)


def make_optimizer(network: nn.Module, recipe: Recipe, *, recorded: bool = False) -> torch.optim.Optimizer:
    """Make the recipe's optimizer; `recorded`: with rates in tensors on the device, for steps in a CUDA graph."""
    parameters, rate, decay = list(network.parameters()), recipe.learning_rate, recipe.weight_decay
    device = parameters[0].device
    if recipe.optimizer == "sgd":
        optimizer = torch.optim.SGD(parameters, rate, momentum=0.9, nesterov=True, weight_decay=decay, fused=True)
    else:
        kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[recipe.optimizer]
        capturable = recorded and device.type == "cuda"
        optimizer = kind(parameters, rate, weight_decay=decay, fused=True, capturable=capturable)
    if recorded:
        optimizer.param_groups[0]["lr"] = torch.tensor(rate, device=device)
    return optimizer


def batches(n: int, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield indices [batch_size] endlessly, from fresh permutations of n; the remainder of each is dropped.

    If n is below batch_size, each batch is all n.
    """
    n_used = n - n % batch_size if n >= batch_size else n
    while True:
        yield from torch.randperm(n, generator=generator)[:n_used].split(batch_size)


def fit_and_score(
    network: nn.Module, train: Examples, half: Half, recipe: Recipe, streams: Streams, **options: Any
) -> Result:
    """Run `fit`, then `score`, on the device of `train`."""
    initial_state = copy_state(network)
    history = fit(network, train, half.val, recipe, streams, **options)
    return score(network, history, train, half, initial_state)


def train_on_half(spec: CNN2Spec, half: Half, recipe: Recipe, streams: Streams, device: str, **options: Any) -> Result:
    """Run `fit_and_score` with a fresh network on all training images of the half, on `device`."""
    half = on_device(half, device)
    network = fresh_network(spec, streams).to(device)
    return fit_and_score(network, fraction(half.train, 100, streams), half, recipe, streams, **options)
