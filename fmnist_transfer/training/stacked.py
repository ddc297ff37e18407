"""Train several networks of one spec as one computation; one small network leaves most of a GPU idle.

Each gets the numbers of `fit` up to rounding, but other dropout masks on CUDA, where a step is a recorded graph.
"""

import copy
import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fmnist_transfer.data.examples import Examples
from fmnist_transfer.errors import Interrupted
from fmnist_transfer.network.cnn2 import CNN2
from fmnist_transfer.network.weights import State
from fmnist_transfer.seeding import Streams
from fmnist_transfer.training.augmentation import augment, normalise
from fmnist_transfer.training.device import autocast, use_precision
from fmnist_transfer.training.evaluation import BATCH_NORM_IMAGES, Scores, evaluation_batch, re_estimate_batch_norm
from fmnist_transfer.training.fit import Diverged, Record, batches, make_optimizer
from fmnist_transfer.training.recipe import Precision, Recipe
from fmnist_transfer.training.score import History, evaluation_points


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
    """Train copies of all groups' networks; return each one's history, or how it diverged, and final weights.

    All have one spec and equally many training images. Arguments as for `fit`, but `on_epoch` gets the epoch's number;
    seconds are shared out among the networks. Raises Interrupted.
    """
    use_precision(precision)
    with torch.cuda.device_of(val.images):  # the graph's device
        stack = Stack(groups, recipe, steps_per_epoch or recipe.steps_per_epoch(len(groups[0].train)), precision)
        records: list[Record | Diverged] = [Record(recipe, stack.steps_per_epoch) for _ in range(stack.k)]
        points = evaluation_points(recipe.epochs)
        for number in range(1, recipe.epochs + 1):
            start = time.perf_counter()
            losses = stack.run_epoch(number, should_stop).cpu()  # waits for the steps
            train_seconds = (time.perf_counter() - start) / stack.k
            start = time.perf_counter()
            scores = stack.evaluate(val) if number in points else []
            seconds = (time.perf_counter() - start) / stack.k
            for k, record in enumerate(records):
                if isinstance(record, Record):
                    try:
                        record.trained(number, losses[:, k], train_seconds)
                        if scores:
                            record.evaluated(scores[k], seconds, functools.partial(stack.state, k))
                    except Diverged as error:
                        records[k] = error
            if scores:
                on_epoch(number)
    outcomes = [record.history() if isinstance(record, Record) else record for record in records]
    return [(outcome, stack.state(k)) for k, outcome in enumerate(outcomes)]


class Stack:
    """Training of all groups' networks, all on the device: a step reads nothing from the host."""

    def __init__(self, groups: Sequence[Group], recipe: Recipe, steps_per_epoch: int, precision: Precision):
        self.groups, self.recipe, self.steps_per_epoch, self.precision = groups, recipe, steps_per_epoch, precision
        self.device = device = groups[0].train.images.device
        self.k = sum(len(group.networks) for group in groups)
        self.masks = [group.streams.generator("dropout", device) for group in groups]
        self.augmentations = [group.streams.generator("augmentation", device) for group in groups]
        self.network = stack_networks(groups, self.masks)
        self.optimizer = make_optimizer(self.network, recipe, recorded=True)
        n_train, total_steps = len(groups[0].train), steps_per_epoch * recipe.epochs
        self.batches = [batches(n_train, recipe.batch_size, g.streams.generator("batches")) for g in groups]
        self.rates = torch.tensor([recipe.learning_rate_at(i, total_steps) for i in range(total_steps)], device=device)
        self.step_number = torch.zeros(1, dtype=torch.int64, device=device)
        shape = (steps_per_epoch, len(groups), min(recipe.batch_size, n_train))
        self.orders = torch.zeros(shape, dtype=torch.int64, device=device)
        self.losses = torch.zeros(steps_per_epoch, self.k, device=device)
        self.graph: torch.cuda.CUDAGraph | None = None

    def state(self, k: int) -> State:
        """Copy network k's weights and buffers to the CPU."""
        tensors = self.network.state_dict().items()
        return {name: (t.chunk(self.k)[k] if t.ndim else t).cpu().clone() for name, t in tensors}

    def run_epoch(self, number: int, should_stop: Callable[[], bool]) -> Tensor:
        """Run the steps of epoch `number` (1-based) and return their losses, [steps_per_epoch, K]."""
        self.network.train()
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
        if number < 3:  # allocates memory and the optimizer's state, on a separate stream as torch requires
            stream = torch.cuda.Stream(self.device)
            stream.wait_stream(current)
            with torch.cuda.stream(stream):
                self._step()
            current.wait_stream(stream)
            return
        if self.graph is None:  # recording does not run the step
            self.graph = torch.cuda.CUDAGraph()
            for generator in self.masks + self.augmentations:
                self.graph.register_generator_state(generator)
            with torch.cuda.graph(self.graph):
                self._step()
        self.graph.replay()

    def _step(self) -> None:
        in_epoch = self.step_number % self.steps_per_epoch
        self.optimizer.param_groups[0]["lr"].copy_(self.rates.index_select(0, self.step_number)[0])
        orders = self.orders.index_select(0, in_epoch)[0]  # [n_groups, batch]
        taken = [group.train.take(order) for group, order in zip(self.groups, orders, strict=True)]
        pairs = zip(taken, self.augmentations, strict=True)
        images = self._per_network([augment(batch.images, self.recipe, generator) for batch, generator in pairs])
        with autocast(self.precision, self.device):
            logits = self.network(normalise(torch.cat(images, dim=1)))  # [n, K, 28, 28]
        loss = self._cross_entropy(logits, [batch.labels for batch in taken])
        self.optimizer.zero_grad()
        loss.sum().backward()
        self.optimizer.step()
        self.losses.index_copy_(0, in_epoch, loss.detach().unsqueeze(0))
        self.step_number += 1

    def _per_network(self, of_groups: Sequence[Tensor]) -> list[Tensor]:
        return [tensor for tensor, group in zip(of_groups, self.groups, strict=True) for _ in group.networks]

    def _cross_entropy(self, logits: Tensor, labels: Sequence[Tensor]) -> Tensor:
        """Mean per network, [K]. logits: [K, n, n_classes]; labels: [n] per group."""
        targets = torch.stack(self._per_network(labels))  # [K, n]
        losses = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="none")
        return losses.view(targets.shape).mean(1)

    @torch.no_grad()
    def evaluate(self, val: Examples) -> list[Scores]:
        """Re-estimate batch-norm statistics, then score each network."""
        images = self._per_network([group.train.images[:BATCH_NORM_IMAGES] for group in self.groups])
        re_estimate_batch_norm(self.network, Examples(torch.cat(images, dim=1), self.groups[0].train.labels))
        self.network.eval()
        parts = val.images.split(evaluation_batch(self.device))
        logits = torch.cat([self.network(normalise(part).expand(-1, self.k, -1, -1)) for part in parts], dim=1)
        losses = self._cross_entropy(logits, [val.labels] * len(self.groups))
        accuracies = (logits.argmax(2) == val.labels).sum(1) / len(val)
        return [Scores(*pair) for pair in zip(losses.tolist(), accuracies.tolist(), strict=True)]


def stack_networks(groups: Sequence[Group], masks: Sequence[torch.Generator]) -> CNN2:
    """Join the K networks of all groups: images [n, K, 28, 28] -> logits [K, n, n_classes].

    Parameters and buffers are joined along their first axis. `masks`: each group's generator of dropout masks.
    """
    networks = [network for group in groups for network in group.networks]
    stack, k = copy.deepcopy(networks[0]), len(networks)
    shared = [(generator, len(group.networks)) for generator, group in zip(masks, groups, strict=True)]
    for name, layer in list(stack.named_modules()):
        if isinstance(layer, nn.Conv2d):
            layer.groups = k
        elif isinstance(layer, nn.Linear):
            stack.set_submodule(name, StackedLinear(k))
        elif isinstance(layer, nn.Dropout):
            stack.set_submodule(name, StackedDropout(layer.p, shared))
    states, parameters = [network.state_dict() for network in networks], dict(networks[0].named_parameters())
    for name, tensor in states[0].items():
        if tensor.ndim:  # the number of batches that a norm has seen is the same for all
            owner, _, attribute = name.rpartition(".")
            joined = torch.stack([state[name] for state in states]).flatten(0, 1)
            setattr(stack.get_submodule(owner), attribute, nn.Parameter(joined) if name in parameters else joined)
    return stack


class StackedLinear(nn.Module):
    """K linear layers: [n, K x n_inputs] or [K, n, n_inputs] -> [K, n, n_outputs]."""

    weight: nn.Parameter  # [K x n_outputs, n_inputs]
    bias: nn.Parameter

    def __init__(self, k: int):
        super().__init__()
        self.k = k

    def forward(self, hidden: Tensor) -> Tensor:
        weight, bias = (tensor.unflatten(0, (self.k, -1)) for tensor in (self.weight, self.bias))
        inputs = hidden.unflatten(1, (self.k, -1)).transpose(0, 1) if hidden.ndim == 2 else hidden
        return torch.baddbmm(bias.unsqueeze(1), inputs, weight.transpose(1, 2))


class StackedDropout(nn.Module):
    """Dropout of units [K, n, n_units]. `masks`: each group's generator, and its number of networks, which share it."""

    def __init__(self, probability: float, masks: Sequence[tuple[torch.Generator, int]]):
        super().__init__()
        self.probability, self.masks = probability, masks

    def forward(self, hidden: Tensor) -> Tensor:
        if not self.training or not self.probability:
            return hidden
        kept, masks = 1 - self.probability, []
        for generator, n in self.masks:
            masks += [torch.empty_like(hidden[:1]).bernoulli_(kept, generator=generator).div_(kept)] * n
        return hidden * torch.cat(masks)
