"""Tasks that the benchmark gives to its workers: the loop that people write in a notebook, `fit`, a matrix product."""

import dataclasses
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, Subset

from fmnist_transfer.data.examples import PIXEL_MEAN, PIXEL_STD, Half, train_and_val_indices
from fmnist_transfer.data.files import ensure_files
from fmnist_transfer.errors import Interrupted, UserError
from fmnist_transfer.network.cnn2 import CNN2Spec, fresh_network
from fmnist_transfer.seeding import Streams
from fmnist_transfer.training.device import autocast
from fmnist_transfer.training.fit import fit
from fmnist_transfer.training.recipe import Precision, Recipe
from fmnist_transfer.training.score import Epoch
from fmnist_transfer.workers.run import Workers, available_cores
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

    def training(self, spec: CNN2Spec, recipe: Recipe) -> "Workload":
        """Return this workload with another network and two epochs of another recipe."""
        return dataclasses.replace(self, spec=spec, recipe=dataclasses.replace(recipe, epochs=2))

    def first(self, n_train: int, n_val: int) -> "Workload":
        train, val = self.half.train.first(n_train), self.half.val.first(n_val)
        return dataclasses.replace(self, half=dataclasses.replace(self.half, train=train, val=val))


def results(workers: Workers, function: Any, work: Workload, seeds: Iterable[int]) -> list[Any]:
    """Run the function on the workers, once per seed. Raises UserError if one fails or the benchmark is stopped."""
    returned = []
    for outcome in workers.run(function, work, seeds):
        if outcome.status == "failed":
            raise UserError(f"a measurement failed: {outcome.reason}")
        returned.append(outcome.result)
    workers.stop.raise_if_set(STOPPED)
    return returned


def images_per_s(work: Workload, epochs: Sequence[Epoch]) -> float:
    """Training images per second, without evaluation."""
    n_train = len(work.half.train)
    n_images = work.recipe.steps_per_epoch(n_train) * min(work.recipe.batch_size, n_train)
    return len(epochs) * n_images / sum(epoch.train_seconds for epoch in epochs)


def fit_once(work: Workload, seed: int, report: Report, should_stop: ShouldStop) -> tuple[Epoch, ...]:
    half, streams = work.half.to(work.device), Streams(seed)
    network = fresh_network(work.spec, streams).to(work.device)
    options: dict[str, Any] = {"precision": work.precision, "should_stop": should_stop}
    return fit(network, half.train, half.val, work.recipe, streams, **options).epochs


def matrix_product(work: Workload, seed: int, report: Report, should_stop: ShouldStop) -> float:
    """Measure GFLOP/s of a square matrix product in the precision of `work` for half a second."""
    device = torch.device(work.device)
    side, dtype = 8_192 if device.type == "cuda" else 1_024, torch.bfloat16 if work.precision == "bf16" else None
    generator = Streams(seed).generator("batches")
    a, b = (torch.randn(side, side, generator=generator).to(device, dtype) for _ in range(2))
    out = a @ b
    synchronise = torch.accelerator.synchronize if device.type != "cpu" else time.perf_counter
    synchronise()
    n, start = 0, time.perf_counter()
    while time.perf_counter() - start < 0.5:
        torch.mm(a, b, out=out)
        synchronise()
        n += 1
    return 2 * side**3 * n / (time.perf_counter() - start) / 1e9


def run_notebook(work: Workload, seed: int, report: Report, should_stop: ShouldStop) -> list[Epoch]:
    """Train as `fit`, without augmentation and `prepare_process`; the precision holds in evaluation too."""
    torch.set_num_threads(available_cores())
    recipe, device = work.recipe, torch.device(work.device)
    train, val = notebook_data(work)
    torch.manual_seed(seed)
    network = fresh_network(work.spec, Streams(seed)).to(memory_format=torch.contiguous_format).to(device)
    train_loader = DataLoader(train, batch_size=recipe.batch_size, shuffle=True)
    val_loader = DataLoader(val, batch_size=recipe.batch_size)
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[recipe.optimizer]
    optimizer = kind(network.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    step, n_steps = 0, recipe.epochs * len(train_loader)
    epochs: list[Epoch] = []
    for number in range(1, recipe.epochs + 1):
        start = time.perf_counter()
        network.train()
        running_loss = 0.0
        for batch in train_loader:
            images, labels = (tensor.to(device) for tensor in batch)
            optimizer.param_groups[0]["lr"] = rate = recipe.learning_rate_at(step, n_steps)
            optimizer.zero_grad()
            with autocast(work.precision, device):
                loss = F.cross_entropy(network(images), labels)
            loss.backward()
            optimizer.step()
            step += 1
            running_loss += loss.item()
        train_seconds = time.perf_counter() - start
        network.eval()
        val_loss, n_correct = 0.0, 0
        with torch.no_grad(), autocast(work.precision, device):
            for batch in val_loader:
                images, labels = (tensor.to(device) for tensor in batch)
                logits = network(images)
                val_loss += F.cross_entropy(logits, labels, reduction="sum").item()
                n_correct += int((logits.argmax(1) == labels).sum().item())
        losses = running_loss / len(train_loader), val_loss / len(work.half.val)
        others = n_correct / len(work.half.val), rate, time.perf_counter() - start, train_seconds
        epochs.append(Epoch(number, step, *losses, *others))
        if should_stop():
            raise Interrupted(STOPPED)
    return epochs


def notebook_data(work: Workload) -> tuple[Subset[Any], Subset[Any]]:
    """Return training and validation pairs of an image [1, 28, 28] and its label, split as by `load_half`."""
    from torchvision import transforms
    from torchvision.datasets import FashionMNIST

    ensure_files(work.data_dir)
    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize((PIXEL_MEAN,), (PIXEL_STD,))])
    classes = work.half.classes
    images = FashionMNIST(str(work.data_dir), train=True, transform=transform, target_transform=classes.index)
    train, val = train_and_val_indices(images.targets.numpy(), classes)
    n_train, n_val = len(work.half.train), len(work.half.val)
    return Subset(images, train[:n_train].tolist()), Subset(images, val[:n_val].tolist())
