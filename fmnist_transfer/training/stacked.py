"""Train several networks of one spec as one computation; one small network leaves most of a GPU idle.

Convolutions become grouped ones, batch norm sees the channels of all networks, linear layers become batched products.
Each network gets the numbers that `training.fit` would give it, up to rounding. On CUDA a step is recorded once as a
graph and replayed; dropout masks then differ from those of `fit`, which uses another kernel.
"""

import contextlib
import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fmnist_transfer.data.examples import Examples
from fmnist_transfer.errors import Interrupted
from fmnist_transfer.network.cnn2 import CLASSIFIER, CNN2
from fmnist_transfer.network.weights import State
from fmnist_transfer.seeding import Streams
from fmnist_transfer.training.augmentation import augment, normalise
from fmnist_transfer.training.device import autocast, use_precision
from fmnist_transfer.training.evaluation import Scores, batch_norm_chunks, evaluation_batch
from fmnist_transfer.training.fit import FACTOR, Diverged, Record, batches, make_optimizer
from fmnist_transfer.training.recipe import Precision, Recipe
from fmnist_transfer.training.score import History

STEPS_BEFORE_RECORDING = 3  # on CUDA: these allocate memory and the optimizer's state


@dataclass(frozen=True)
class Group:
    """Networks that share images, batch order, augmentation and dropout: the inits of a replicate."""

    networks: tuple[CNN2, ...]
    train: Examples
    streams: Streams


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
    of an epoch are divided by the number of networks. A network that diverges does not affect the others. Raises
    ValueError if the groups differ in spec or number of training images, Interrupted if `should_stop` returns True.
    """
    if len({network.spec for group in groups for network in group.networks}) != 1:
        raise ValueError("networks of different specs cannot be stacked")
    if len({len(group.train) for group in groups}) != 1:
        raise ValueError("groups of different numbers of training images cannot be stacked")
    use_precision(precision)
    device = val.images.device
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():  # the graph's device
        stack = Stack(groups, recipe, steps_per_epoch or recipe.steps_per_epoch(len(groups[0].train)), precision)
        records: list[Record | Diverged] = [Record(recipe, stack.steps_per_epoch) for _ in range(stack.network.k)]
        for number in range(1, recipe.epochs + 1):
            start = time.perf_counter()
            losses = stack.run_epoch(number, should_stop).cpu()  # waits for the steps
            train_seconds = (time.perf_counter() - start) / len(records)
            scores = stack.evaluate(val)
            seconds = (time.perf_counter() - start) / len(records)
            for k, record in enumerate(records):
                if isinstance(record, Record):
                    try:
                        record.check_finite(losses[:, k])
                        copy = functools.partial(stack.network.state, k)
                        record.add(losses[:, k], scores[k], seconds, train_seconds, copy)
                    except Diverged as error:
                        records[k] = error
            on_epoch(number)
    outcomes = [record.history() if isinstance(record, Record) else record for record in records]
    return [(outcome, stack.network.state(k)) for k, outcome in enumerate(outcomes)]


class Stack:
    """Training of all groups' networks, all on the device: a step reads nothing from the host."""

    def __init__(self, groups: Sequence[Group], recipe: Recipe, steps_per_epoch: int, precision: Precision):
        self.groups, self.recipe, self.steps_per_epoch, self.precision = groups, recipe, steps_per_epoch, precision
        self.device = device = groups[0].train.images.device
        # These are seeded as `fit` seeds dropout, one generator per group.
        masks = [torch.Generator(device).manual_seed(group.streams.seed("dropout")) for group in groups]
        self.network = StackedCNN2(groups, masks)
        self.augmentations = [group.streams.generator("augmentation", device) for group in groups]
        self.generators = masks + self.augmentations
        self.optimizer = make_optimizer(self.network.parameters, recipe, CLASSIFIER, recorded=True)
        n_train, total_steps = len(groups[0].train), steps_per_epoch * recipe.epochs
        self.batches = [batches(n_train, recipe.batch_size, g.streams.generator("batches")) for g in groups]
        rates = [recipe.learning_rate_at(step, total_steps) for step in range(total_steps)]
        self.rates = torch.tensor(rates, device=device)
        self.step_number = torch.zeros(1, dtype=torch.int64, device=device)
        shape = (steps_per_epoch, len(groups), min(recipe.batch_size, n_train))
        self.orders = torch.zeros(shape, dtype=torch.int64, device=device)
        self.losses = torch.zeros(steps_per_epoch, self.network.k, device=device)
        self.graph: torch.cuda.CUDAGraph | None = None

    def run_epoch(self, number: int, should_stop: Callable[[], bool]) -> Tensor:
        """Run the steps of epoch `number` (1-based) and return their losses, [steps_per_epoch, K]."""
        for g, order in enumerate(self.batches):
            self.orders[:, g].copy_(torch.stack([next(order) for _ in range(self.steps_per_epoch)]))
        for i in range(self.steps_per_epoch):
            if should_stop():
                raise Interrupted("training was interrupted")
            if self.device.type == "cuda":
                self._step_on_cuda((number - 1) * self.steps_per_epoch + i)
            else:
                self._step()
        return self.losses

    def _step_on_cuda(self, number: int) -> None:
        current = torch.cuda.current_stream(self.device)
        if number < STEPS_BEFORE_RECORDING:  # on a separate stream, as torch requires before recording
            stream = torch.cuda.Stream(self.device)
            stream.wait_stream(current)
            with torch.cuda.stream(stream):
                self._step()
            current.wait_stream(stream)
            return
        if self.graph is None:  # recording does not run the step
            self.graph = torch.cuda.CUDAGraph()
            for generator in self.generators:
                self.graph.register_generator_state(generator)
            with torch.cuda.graph(self.graph):
                self._step()
        self.graph.replay()

    def _step(self) -> None:
        """Run one step of every network; the step's number is read on the device."""
        in_epoch = self.step_number % self.steps_per_epoch
        for group in self.optimizer.param_groups:
            group["lr"].copy_(self.rates.index_select(0, self.step_number)[0] * group[FACTOR])
        orders = self.orders.index_select(0, in_epoch)[0]  # [n_groups, batch]
        taken = [group.train.take(order) for group, order in zip(self.groups, orders, strict=True)]
        pairs = zip(taken, self.augmentations, strict=True)
        images = [augment(batch.images, self.recipe, generator) for batch, generator in pairs]
        with autocast(self.precision, self.device):
            logits = self.network(self._inputs(images), training=True)
        loss = self._cross_entropy(logits, [batch.labels for batch in taken], self.recipe.label_smoothing)
        self.optimizer.zero_grad()
        loss.sum().backward()
        self.optimizer.step()
        self.losses.index_copy_(0, in_epoch, loss.detach().unsqueeze(0))
        self.step_number += 1

    def _inputs(self, images: Sequence[Tensor]) -> Tensor:
        """Normalise and stack: uint8 [n, 1, 28, 28] per group -> float32 [n, K, 28, 28]."""
        pairs = zip(images, self.network.sizes, strict=True)
        return torch.cat([normalise(pixels).expand(-1, size, -1, -1) for pixels, size in pairs], dim=1)

    def _cross_entropy(self, logits: Tensor, labels: Sequence[Tensor], label_smoothing: float) -> Tensor:
        """Mean per network, [K]. logits: [K, n, n_classes]; labels: [n] per group."""
        pairs = zip(labels, self.network.sizes, strict=True)
        targets = torch.cat([group_labels.expand(size, -1) for group_labels, size in pairs])
        logits = logits.flatten(0, 1).float()
        losses = F.cross_entropy(logits, targets.flatten(), label_smoothing=label_smoothing, reduction="none")
        return losses.view(targets.shape).mean(1)

    @torch.no_grad()
    def evaluate(self, val: Examples) -> list[Scores]:
        """Re-estimate batch-norm statistics as `evaluation.re_estimate_batch_norm` does, then score each network."""
        chunks = [batch_norm_chunks(group.train.images) for group in self.groups]
        self.network.re_estimate_batch_norm([self._inputs(images) for images in zip(*chunks, strict=True)])
        batches_of_val = val.images.split(evaluation_batch(self.device))
        parts = [self.network(normalise(images).expand(-1, self.network.k, -1, -1)) for images in batches_of_val]
        logits = torch.cat(parts, dim=1)
        losses = self._cross_entropy(logits, [val.labels] * len(self.groups), 0.0)
        accuracies = (logits.argmax(2) == val.labels).sum(1) / len(val)
        return [Scores(*pair) for pair in zip(losses.tolist(), accuracies.tolist(), strict=True)]


class StackedCNN2:
    """The networks of all groups, parameters and buffers stacked along a new first axis of length K.

    `masks`: per group, the generator of its dropout masks, on the networks' device.
    """

    def __init__(self, groups: Sequence[Group], masks: Sequence[torch.Generator]):
        networks = [network for group in groups for network in group.networks]
        self.one, self.k = networks[0], len(networks)
        self.sizes, self.masks = [len(group.networks) for group in groups], masks
        self.parameters = {
            name: nn.Parameter(torch.stack([network.get_parameter(name).detach() for network in networks]))
            for name, _ in self.one.named_parameters()
        }
        self.buffers = {
            name: torch.stack([network.get_buffer(name) for network in networks])
            for name, _ in self.one.named_buffers()
        }

    def state(self, k: int) -> State:
        """Copy network k's weights and buffers to the CPU, named as in a `CNN2`."""
        tensors = self.parameters | self.buffers
        return {name: tensor[k].detach().cpu().clone() for name, tensor in tensors.items()}

    def __call__(self, images: Tensor, *, training: bool = False, momentum: float | None = None) -> Tensor:
        """[n, K, 28, 28], one image per network -> logits [K, n, n_classes].

        `training` drops units; it, and a `momentum`, normalise by batch statistics and update the running ones.
        """
        n, hidden = len(images), images
        for name, layer in self.one.blocks.named_modules(prefix="blocks"):
            if isinstance(layer, nn.Conv2d):
                weight, bias = self.parameters[f"{name}.weight"].flatten(0, 1), self.parameters[f"{name}.bias"]
                hidden = F.conv2d(hidden, weight, bias.flatten(), padding=layer.padding, groups=self.k)
            elif isinstance(layer, nn.BatchNorm2d):
                hidden = self._batch_norm(name, hidden, layer.momentum if training else momentum)
            elif isinstance(layer, nn.Dropout2d):
                if training:
                    channels = hidden.shape[1] // self.k
                    mask = self._mask((n, channels, 1, 1), layer.p, hidden)  # [K, n, channels, 1, 1]
                    hidden = hidden * mask.transpose(0, 1).reshape(n, -1, 1, 1)
            elif not isinstance(layer, nn.Sequential):
                hidden = layer(hidden)
        hidden = hidden.reshape(n, self.k, -1).transpose(0, 1)  # [K, n, features]
        for name in ("fc1", "fc2"):
            hidden = torch.relu(self._linear(name, hidden))
            if training and self.one.dropout.p:
                hidden = hidden * self._mask(tuple(hidden.shape[1:]), self.one.dropout.p, hidden)
        return self._linear("fc3", hidden)

    def _linear(self, name: str, hidden: Tensor) -> Tensor:
        weight, bias = self.parameters[f"{name}.weight"], self.parameters[f"{name}.bias"]
        return torch.baddbmm(bias.unsqueeze(1), hidden, weight.transpose(1, 2))

    def _batch_norm(self, name: str, hidden: Tensor, momentum: float | None) -> Tensor:
        mean, variance = (self.buffers[f"{name}.{part}"].flatten() for part in ("running_mean", "running_var"))
        weight, bias = (self.parameters[f"{name}.{part}"].flatten() for part in ("weight", "bias"))
        return F.batch_norm(hidden, mean, variance, weight, bias, momentum is not None, momentum or 0.0)

    def re_estimate_batch_norm(self, chunks: Sequence[Tensor]) -> None:
        """Average batch-norm statistics over chunks of training images, float32 [n, K, 28, 28]."""
        if self.buffers:
            for i, chunk in enumerate(chunks):
                self(chunk, momentum=1 / (1 + i))
        for name, tensor in self.buffers.items():
            if name.endswith("num_batches_tracked"):
                tensor.fill_(len(chunks))

    def _mask(self, shape: tuple[int, ...], probability: float, like: Tensor) -> Tensor:
        """Draw [K, *shape] of zeros and 1/(1 - p); the networks of a group share a mask."""
        masks = []
        for generator, size in zip(self.masks, self.sizes, strict=True):
            mask = torch.empty(shape, device=like.device, dtype=like.dtype)
            mask.bernoulli_(1 - probability, generator=generator).div_(1 - probability)
            masks.append(mask.expand(size, *shape))
        return torch.cat(masks)
