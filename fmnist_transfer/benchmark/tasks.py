"""Tasks that the benchmark gives to its workers: `fit` of one network, a stack of networks, and a matrix product."""

import dataclasses
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from fmnist_transfer.data.examples import Half
from fmnist_transfer.errors import UserError
from fmnist_transfer.network.cnn2 import CNN2Spec, fresh_network
from fmnist_transfer.seeding import Streams
from fmnist_transfer.training.fit import Diverged, fit
from fmnist_transfer.training.recipe import Precision, Recipe
from fmnist_transfer.training.score import Epoch
from fmnist_transfer.training.stacked import Group, fit_stacked
from fmnist_transfer.workers.run import Workers
from fmnist_transfer.workers.task import Report

STOPPED = "the benchmark was stopped and keeps nothing; run it again"
ShouldStop = Callable[[], bool]


@dataclass(frozen=True)
class Workload:
    spec: CNN2Spec
    recipe: Recipe
    half: Half
    device: str
    data_dir: Path  # of the images of `half`, for the notebook's loop
    precision: Precision = "float32"
    n_threads: int = 1  # of the notebook's loop
    n_networks: int = 6  # of a stack; even

    def training(self, spec: CNN2Spec, recipe: Recipe) -> "Workload":
        """Return this workload with another network and two epochs of another recipe."""
        return dataclasses.replace(self, spec=spec, recipe=dataclasses.replace(recipe, epochs=2))

    def first(self, n_train: int, n_val: int) -> "Workload":
        train, val = self.half.train.first(n_train), self.half.val.first(n_val)
        return dataclasses.replace(self, half=dataclasses.replace(self.half, train=train, val=val))


class Fitted(NamedTuple):
    """One `fit`: its epochs, start and end in seconds by a clock that all processes share."""

    epochs: tuple[Epoch, ...]
    start: float
    end: float


def results(workers: Workers, function: Any, work: Workload, seeds: Iterable[int]) -> list[Any]:
    """Run the function on the workers, once per seed. Raises UserError if one fails or the benchmark is stopped."""
    returned = []
    for outcome in workers.run(function, work, seeds):
        if outcome.status == "failed":
            raise UserError(f"a measurement failed: {outcome.reason}")
        returned.append(outcome.result)
    workers.stop.raise_if_set(STOPPED)
    return returned


def images_per_s(work: Workload, epochs: Sequence[Epoch], n_skipped: int = 0) -> float:
    """Training images per second, without the first `n_skipped` epochs if there are more: they allocate and record."""
    counted, n_train = epochs[n_skipped:] or epochs, len(work.half.train)
    n_images = work.recipe.steps_per_epoch(n_train) * min(work.recipe.batch_size, n_train)
    return len(counted) * n_images / sum(epoch.train_seconds for epoch in counted)


def fit_once(work: Workload, seed: int, report: Report, should_stop: ShouldStop) -> Fitted:
    start, half, streams = time.monotonic(), work.half.to(work.device), Streams(seed)
    network = fresh_network(work.spec, streams).to(work.device)
    options: dict[str, Any] = {"precision": work.precision, "should_stop": should_stop}
    history = fit(network, half.train, half.val, work.recipe, streams, **options)
    return Fitted(history.epochs, start, time.monotonic())


def fit_stack(work: Workload, seed: int, report: Report, should_stop: ShouldStop) -> float:
    """Measure images per second of networks as one computation, two to a replicate, without the first epoch."""
    half, groups = work.half.to(work.device), []
    for replicate in range(work.n_networks // 2):
        networks = [fresh_network(work.spec, Streams(seed + i, replicate)).to(work.device) for i in range(2)]
        groups.append(Group(tuple(networks), half.train, Streams(seed, replicate)))
    options: dict[str, Any] = {"precision": work.precision, "should_stop": should_stop}
    rates = []
    for history, _ in fit_stacked(groups, half.val, work.recipe, **options):
        if isinstance(history, Diverged):
            raise history
        rates.append(images_per_s(work, history.epochs, 1))  # seconds are one network's share
    return statistics.mean(rates)


def matrix_product(work: Workload, seed: int, report: Report, should_stop: ShouldStop) -> float:
    """Measure GFLOP/s of a square matrix product in the precision of `work` for half a second."""
    device = torch.device(work.device)
    side, dtype = 8_192 if device.type == "cuda" else 1_024, torch.bfloat16 if work.precision == "bf16" else None
    generators = (Streams(seed + i).generator("batches") for i in range(2))
    a, b = (torch.randn(side, side, generator=generator).to(device, dtype) for generator in generators)
    out = a @ b
    synchronise = torch.accelerator.synchronize if device.type != "cpu" else time.perf_counter
    synchronise()
    n, start = 0, time.perf_counter()
    while time.perf_counter() - start < 0.5:
        torch.mm(a, b, out=out)
        synchronise()
        n += 1
    return 2 * side**3 * n / (time.perf_counter() - start) / 1e9
