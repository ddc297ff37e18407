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
from fmnist_transfer.training.score import Epoch, History, Result, evaluation_points, score


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
    """Train `network` in place, on the device of it, `train` and `val`. Raises Diverged for a NaN or infinite loss.

    train: classes mixed, as by `fraction`, since its first images give the batch-norm statistics.
    steps_per_epoch: default: one pass over `train`. The *steps* budget gives more.
    precision: `bf16` applies to training steps' forward passes, `tf32` to every product on CUDA, evaluation too.
    on_epoch: called after each validation, at `evaluation_points`; may raise.
    should_stop: called before each batch; True raises Interrupted.
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
        for epoch in range(1, recipe.epochs + 1):
            start = time.perf_counter()
            network.train()
            losses = torch.empty(steps_per_epoch, device=device)
            indices = torch.stack([next(index_batches) for _ in range(steps_per_epoch)]).to(device)  # [steps, batch]
            for i in range(steps_per_epoch):
                if should_stop():
                    raise Interrupted("training was interrupted")
                step = (epoch - 1) * steps_per_epoch + i
                optimizer.param_groups[0]["lr"] = recipe.learning_rate_at(step, total_steps)
                batch = train.take(indices[i])
                with autocast(precision, device):
                    logits = network(normalise(augment(batch.images, recipe, augmentation)))
                loss = F.cross_entropy(logits.float(), batch.labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses[i] = loss.detach()
            losses = losses.cpu()  # waits for the steps
            record.trained(epoch, losses, time.perf_counter() - start)
            if epoch in evaluation_points(recipe.epochs):
                start = time.perf_counter()
                re_estimate_batch_norm(network, train)
                scores = evaluate(network, val)
                record.evaluated(scores, time.perf_counter() - start, lambda: copy_state(network))
                on_epoch(record.epochs[-1])
    return record.history()


class Record:
    """Evaluated epochs of one network so far, and the weights of the best."""

    def __init__(self, recipe: Recipe, steps_per_epoch: int):
        self.recipe, self.steps_per_epoch = recipe, steps_per_epoch
        self.epochs: list[Epoch] = []
        self.best_epoch, self.best_state = 0, State()
        self._epoch, self._train_loss, self._seconds = 0, math.nan, 0.0  # seconds since the previous evaluation

    def trained(self, epoch: int, losses: Tensor, seconds: float) -> None:
        """Record epoch `epoch` with the losses [steps_per_epoch] of its steps. Raises Diverged if one is not finite."""
        if bad := torch.nonzero(~torch.isfinite(losses)).flatten().tolist():
            step = (epoch - 1) * self.steps_per_epoch + bad[0] + 1
            raise Diverged(f"training loss is {float(losses[bad[0]])} at epoch {epoch}, step {step}")
        self._epoch, self._train_loss, self._seconds = epoch, float(losses.mean()), self._seconds + seconds

    def evaluated(self, val: Scores, seconds: float, copy: Callable[[], State]) -> None:
        """Add the epoch just trained, evaluated in `seconds`. `copy` returns the weights. Raises Diverged."""
        step = self._epoch * self.steps_per_epoch
        if not math.isfinite(val.loss):
            raise Diverged(f"validation loss is {val.loss} after epoch {self._epoch}, step {step}")
        if val.loss < min((epoch.val_loss for epoch in self.epochs), default=math.inf):
            self.best_epoch, self.best_state = self._epoch, copy()
        rate = self.recipe.learning_rate_at(step - 1, self.recipe.epochs * self.steps_per_epoch)
        times, self._seconds = (self._seconds + seconds, self._seconds), 0.0
        self.epochs.append(Epoch(self._epoch, step, self._train_loss, val.loss, val.accuracy, rate, *times))

    def history(self) -> History:
        return History(tuple(self.epochs), self.best_epoch, self.best_state)


def make_optimizer(network: nn.Module, recipe: Recipe, *, recorded: bool = False) -> torch.optim.Optimizer:
    """Make the recipe's optimizer; `recorded`: with its rate in a tensor on the device, for steps in a CUDA graph."""
    parameters = list(network.parameters())
    device = parameters[0].device
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[recipe.optimizer]
    rate = torch.tensor(recipe.learning_rate, device=device) if recorded else recipe.learning_rate
    capturable = recorded and device.type == "cuda"
    return kind(parameters, rate, weight_decay=recipe.weight_decay, fused=True, capturable=capturable)


def batches(n: int, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield indices [batch_size] endlessly, from fresh permutations without their remainder; all n if fewer."""
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
