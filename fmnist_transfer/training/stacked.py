"""Train several networks of one spec as one computation; one small network leaves most of a GPU idle.

Convolutions become grouped ones, batch norm sees the channels of all networks, linear layers become batched products.
Each network gets the numbers that `training.fit` would give it, up to rounding. On CUDA a step is recorded once as a
graph and replayed; dropout masks then differ from those of `fit`, which uses another kernel.
"""

import contextlib
import math
import time
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fmnist_transfer.data.examples import Examples
from fmnist_transfer.errors import Interrupted
from fmnist_transfer.network.cnn2 import CLASSIFIER
from fmnist_transfer.network.weights import State
from fmnist_transfer.training.augmentation import augment, normalise
from fmnist_transfer.training.device import autocast, use_precision
from fmnist_transfer.training.evaluation import BATCH_NORM_IMAGES, evaluation_batch
from fmnist_transfer.training.fit import Diverged, batches, check_finite
from fmnist_transfer.training.optimizer import FACTOR, make_optimizer
from fmnist_transfer.training.recipe import Precision, Recipe
from fmnist_transfer.training.score import Epoch, History
from fmnist_transfer.training.stacked_network import Group, StackedCNN2, _key

STEPS_BEFORE_RECORDING = 3  # on CUDA: these allocate memory and the optimizer's state


def fit_stacked(
    groups: Sequence[Group],
    val: Examples,
    recipe: Recipe,
    *,
    steps_per_epoch: int | None = None,
    precision: Precision = "float32",
    on_epoch: Callable[[int], None] = lambda epoch: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> list[tuple[History | Diverged, State]]:
    """Train the networks of all groups. Return each one's history (or how it diverged) and final weights, in order.

    The given networks stay unchanged. Arguments as for `training.fit`, but `on_epoch` gets the epoch's number. Seconds
    of an epoch are divided by the number of networks. A network that diverges does not affect the others.

    Raises:
        ValueError: the groups differ in spec or number of training images.
        Interrupted: `should_stop` returned True.
    """
    if len({network.spec for group in groups for network in group.networks}) != 1:
        raise ValueError("networks of different specs cannot be stacked")
    if len({len(group.train) for group in groups}) != 1:
        raise ValueError("groups of different numbers of training images cannot be stacked")
    use_precision(precision)
    device = val.images.device
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():  # the graph's device
        return _StackedFit(groups, val, recipe, steps_per_epoch, precision).run(on_epoch, should_stop)


class _StackedFit:
    """State of one `fit_stacked`, all on the device: a step reads nothing from the host."""

    def __init__(
        self, groups: Sequence[Group], val: Examples, recipe: Recipe, steps_per_epoch: int | None, precision: Precision
    ):
        self.groups, self.val, self.recipe, self.precision = groups, val, recipe, precision
        self.device = val.images.device
        n_train = len(groups[0].train)
        self.steps_per_epoch = steps_per_epoch or recipe.steps_per_epoch(n_train)
        self.total_steps = self.steps_per_epoch * recipe.epochs
        # These are seeded as `fit` seeds dropout, one generator per group.
        masks = [torch.Generator(self.device).manual_seed(group.streams.seed("dropout")) for group in groups]
        self.network = StackedCNN2(groups, masks)
        self.augmentations = [group.streams.generator("augmentation", self.device) for group in groups]
        self.generators = masks + self.augmentations
        self.optimizer = make_optimizer(self.network, recipe, _key(f"{CLASSIFIER}."), recorded=True)
        self.batches = [batches(n_train, recipe.batch_size, g.streams.generator("batches")) for g in groups]
        rates = [recipe.learning_rate_at(step, self.total_steps) for step in range(self.total_steps)]
        self.rates = torch.tensor(rates, device=self.device)
        self.step_number = torch.zeros(1, dtype=torch.int64, device=self.device)
        batch_size = min(recipe.batch_size, n_train)
        shape = (self.steps_per_epoch, len(groups), batch_size)
        self.orders = torch.zeros(shape, dtype=torch.int64, device=self.device)
        self.losses = torch.zeros(self.steps_per_epoch, self.network.k, device=self.device)
        self.graph: torch.cuda.CUDAGraph | None = None

    def run(
        self, on_epoch: Callable[[int], None], should_stop: Callable[[], bool]
    ) -> list[tuple[History | Diverged, State]]:
        records = [_Record() for _ in range(self.network.k)]
        for number in range(1, self.recipe.epochs + 1):
            start = time.perf_counter()
            self._draw_orders()
            self.network.train()
            for i in range(self.steps_per_epoch):
                if should_stop():
                    raise Interrupted("training was interrupted")
                self._run_step((number - 1) * self.steps_per_epoch + i)
            losses = self.losses.cpu()  # waits for the epoch's steps
            train_seconds = time.perf_counter() - start
            self.network.re_estimate_batch_norm(self._inputs([g.train.images[:BATCH_NORM_IMAGES] for g in self.groups]))
            val_losses, val_accuracies = self._evaluate()
            seconds = time.perf_counter() - start
            for k, record in enumerate(records):
                epoch = Epoch(
                    epoch=number,
                    step=number * self.steps_per_epoch,
                    train_loss=float(losses[:, k].mean()),
                    val_loss=val_losses[k],
                    val_accuracy=val_accuracies[k],
                    learning_rate=self.recipe.learning_rate_at(number * self.steps_per_epoch - 1, self.total_steps),
                    seconds=seconds / self.network.k,
                    train_seconds=train_seconds / self.network.k,
                )
                record.add(epoch, losses[:, k], lambda k=k: self.network.state(k))  # type: ignore[misc]
            on_epoch(number)
        return [(record.outcome(), self.network.state(k)) for k, record in enumerate(records)]

    def _draw_orders(self) -> None:
        for g, order in enumerate(self.batches):
            self.orders[:, g].copy_(torch.stack([next(order) for _ in range(self.steps_per_epoch)]))

    def _run_step(self, number: int) -> None:
        if self.device.type != "cuda":
            self._step()
        elif number < STEPS_BEFORE_RECORDING:
            self._step_aside()
        else:
            if self.graph is None:
                self.graph = self._record()
            self.graph.replay()

    def _step_aside(self) -> None:
        """Run a step on a separate stream, as torch requires before recording."""
        stream = torch.cuda.Stream(self.device)
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):
            self._step()
        torch.cuda.current_stream(self.device).wait_stream(stream)

    def _record(self) -> torch.cuda.CUDAGraph:
        """Record a step without running it."""
        graph = torch.cuda.CUDAGraph()
        for generator in self.generators:
            graph.register_generator_state(generator)
        with torch.cuda.graph(graph):
            self._step()
        return graph

    def _step(self) -> None:
        """Run one step of every network; the step's number is read on the device."""
        in_epoch = self.step_number % self.steps_per_epoch
        for group in self.optimizer.param_groups:
            group["lr"].copy_(self.rates.index_select(0, self.step_number)[0] * group[FACTOR])
        orders = self.orders.index_select(0, in_epoch)[0]  # [n_groups, batch]
        taken = [group.train.take(orders[g]) for g, group in enumerate(self.groups)]
        images = [
            augment(batch.images, self.recipe, generator)
            for batch, generator in zip(taken, self.augmentations, strict=True)
        ]
        with autocast(self.precision, self.device):
            logits = self.network(self._inputs(images))
        loss = self._cross_entropy(logits, [batch.labels for batch in taken], self.recipe.label_smoothing)
        self.optimizer.zero_grad()
        loss.sum().backward()
        self.optimizer.step()
        self.losses.index_copy_(0, in_epoch, loss.detach().unsqueeze(0))
        self.step_number += 1

    def _inputs(self, images: Sequence[Tensor]) -> Tensor:
        """Normalise and stack: uint8 [n, 1, 28, 28] per group -> float32 [n, K, 28, 28]."""
        sizes = [len(group.networks) for group in self.groups]
        each = [normalise(pixels).expand(-1, size, -1, -1) for pixels, size in zip(images, sizes, strict=True)]
        return torch.cat(each, dim=1)

    def _cross_entropy(self, logits: Tensor, labels: Sequence[Tensor], label_smoothing: float) -> Tensor:
        """Mean per network, [K]. logits: [K, n, n_classes]; labels: [n] per group."""
        sizes = [len(group.networks) for group in self.groups]
        targets = torch.cat([group_labels.expand(size, -1) for group_labels, size in zip(labels, sizes, strict=True)])
        losses = F.cross_entropy(
            logits.flatten(0, 1).float(), targets.flatten(), label_smoothing=label_smoothing, reduction="none"
        )
        return losses.view(targets.shape).mean(1)

    @torch.no_grad()
    def _evaluate(self) -> tuple[list[float], list[float]]:
        """Return mean cross-entropy and accuracy on the validation images, per network."""
        self.network.eval()
        parts = [
            self.network(normalise(images).expand(-1, self.network.k, -1, -1))
            for images in self.val.images.split(evaluation_batch(self.device))
        ]
        logits = torch.cat(parts, dim=1)
        losses = self._cross_entropy(logits, [self.val.labels] * len(self.groups), 0.0)
        n_correct = (logits.argmax(2) == self.val.labels).sum(1)
        return losses.tolist(), (n_correct / len(self.val)).tolist()


class _Record:
    """Epochs and best weights of one network so far, or how it diverged."""

    def __init__(self) -> None:
        self.epochs: list[Epoch] = []
        self.best_epoch, self.best_state = 0, State()
        self.diverged: Diverged | None = None

    def add(self, epoch: Epoch, losses: Tensor, state: Callable[[], State]) -> None:
        if self.diverged:
            return
        try:
            check_finite(losses, epoch.epoch, len(losses))
            if not math.isfinite(epoch.val_loss):
                raise Diverged(f"validation loss is {epoch.val_loss} after epoch {epoch.epoch}, step {epoch.step}")
        except Diverged as error:
            self.diverged = error
            return
        if not self.best_epoch or epoch.val_loss < self.epochs[self.best_epoch - 1].val_loss:
            self.best_epoch, self.best_state = epoch.epoch, state()
        self.epochs.append(epoch)

    def outcome(self) -> History | Diverged:
        return self.diverged or History(tuple(self.epochs), self.best_epoch, self.best_state)
