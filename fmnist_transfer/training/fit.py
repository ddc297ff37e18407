"""The training loop of one network, on images that are already on its device.

Examples and a `Recipe` in, a `History` out; the network is trained in place and each epoch reported to a callback.
This module knows nothing of MLflow, Optuna or command lines, and leaves the global random state unchanged.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fmnist_transfer.data.examples import Examples, Half, fraction, on_device
from fmnist_transfer.errors import Interrupted
from fmnist_transfer.network.cnn2 import CLASSIFIER, CNN2Spec, find_classifier, fresh_network
from fmnist_transfer.network.weights import State, copy_state
from fmnist_transfer.seeding import Streams
from fmnist_transfer.training.augmentation import augment, normalise
from fmnist_transfer.training.device import autocast, use_precision
from fmnist_transfer.training.evaluation import evaluate, features, re_estimate_batch_norm
from fmnist_transfer.training.optimizer import FACTOR, make_optimizer
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
    classifier: str = CLASSIFIER,
    steps_per_epoch: int | None = None,
    precision: Precision = "float32",
    on_epoch: Callable[[Epoch], None] = lambda epoch: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> History:
    """Train `network` in place.

    Args:
        network: on the training device, like `train` and `val`.
        train: the training subset; its first images re-estimate batch-norm statistics and should be class-balanced.
        streams: batch order, augmentation and dropout each draw from their own stream.
        classifier: name of the module whose learning rate `recipe.trunk_factor` does not scale.
        steps_per_epoch: steps of a nominal epoch, after which validation is scored; default: one pass over `train`.
            A larger number is the *steps* budget.
        precision: `bf16` applies to training steps' forward passes, `tf32` to every product on CUDA, evaluation too.
        on_epoch: called after each nominal epoch; may raise to end the training.
        should_stop: called before each batch; True ends the training.

    Raises:
        Diverged: the loss is NaN or infinite.
        Interrupted: `should_stop` returned True.
        UsageError: `recipe.trunk_factor` is not 1 and there is no module called `classifier`.
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
    """Train only the classifier, in place; other weights stay as they are.

    Batch-norm statistics are re-estimated, then the trunk processes each image once in evaluation mode, without
    augmentation or dropout. Arguments as for `fit`; raises as `fit` and `features`.
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
    """Run `fit`, then score: training subset and validation with the final and best weights, test with the final ones.

    Args:
        half: its validation and test images are scored; on the device of `train`.
        options: passed to `fit`.
    """
    start, initial_state = time.perf_counter(), copy_state(network)
    history = fit(network, train, half.val, recipe, streams, **options)
    result = score(network, history, train, half, initial_state)
    return dataclasses.replace(result, seconds=time.perf_counter() - start)


def train_on_half(spec: CNN2Spec, half: Half, recipe: Recipe, streams: Streams, device: str, **options: Any) -> Result:
    """Run `fit_and_score` with a fresh network on all training images of the half; `options` are passed to `fit`."""
    half = on_device(half, device)
    network = fresh_network(spec, streams).to(device)
    return fit_and_score(network, fraction(half.train, 100, streams), half, recipe, streams, **options)


def batches(n: int, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield the indices of batches without end, from fresh permutations; each permutation's remainder is dropped."""
    while True:
        order = torch.randperm(n, generator=generator)
        full = n - n % batch_size or n
        yield from order[:full].split(batch_size)


def check_finite(losses: Tensor, epoch: int, steps_per_epoch: int) -> None:
    """Raise Diverged at the first non-finite loss of [steps_per_epoch]. Synchronises with the device once per epoch."""
    bad = torch.nonzero(~torch.isfinite(losses)).flatten()
    if len(bad):
        i = int(bad[0])
        raise Diverged(
            f"training loss is {float(losses[i])} at epoch {epoch}, step {(epoch - 1) * steps_per_epoch + i + 1}"
        )
