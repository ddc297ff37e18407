"""The loop that people write in a notebook, as a fair baseline for `training.fit`.

It uses torchvision's data set with `ToTensor` and `Normalize`, a shuffling `DataLoader`, the default memory layout and
`.item()` at each step. Network, recipe and images are those of `fit`; augmentation is left out.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset

from fmnist_transfer.data.examples import PIXEL_MEAN, PIXEL_STD, train_and_val_indices
from fmnist_transfer.data.files import ensure_files
from fmnist_transfer.errors import Interrupted
from fmnist_transfer.network.cnn2 import REFERENCE_SPEC, CNN2Spec, fresh_network
from fmnist_transfer.seeding import Streams
from fmnist_transfer.training.recipe import REFERENCE_RECIPE, Recipe

Pairs = Dataset[Any]  # an image [1, 28, 28] and its label


@dataclass(frozen=True)
class NotebookEpoch:
    n_images: int
    train_seconds: float
    val_seconds: float
    val_accuracy: float


@dataclass(frozen=True)
class NotebookPlan:
    """Training of the loop, and when it stops."""

    data_dir: Path
    classes: tuple[int, ...]
    n_train: int
    n_val: int
    device: str
    n_threads: int
    spec: CNN2Spec = REFERENCE_SPEC
    recipe: Recipe = REFERENCE_RECIPE
    goal: float = math.inf
    """Validation accuracy at which training stops."""
    max_epochs: int | None = None


def notebook_data(data_dir: Path, classes: tuple[int, ...], n_train: int, n_val: int) -> tuple[Pairs, Pairs]:
    """Return the first training and validation images of `classes`, split as by `load_half`."""
    from torchvision import transforms
    from torchvision.datasets import FashionMNIST

    ensure_files(data_dir)
    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize((PIXEL_MEAN,), (PIXEL_STD,))])
    images = FashionMNIST(str(data_dir), train=True, transform=transform, target_transform=classes.index)
    train, val = train_and_val_indices(images.targets.numpy(), classes)
    return Subset(images, train[:n_train].tolist()), Subset(images, val[:n_val].tolist())


def notebook_epochs(
    spec: CNN2Spec, recipe: Recipe, train: Pairs, val: Pairs, *, device: torch.device, seed: int
) -> Iterator[NotebookEpoch]:
    """Train a fresh network and yield each epoch; stop iterating to stop early."""
    torch.manual_seed(seed)
    network = fresh_network(spec, Streams(seed)).to(memory_format=torch.contiguous_format).to(device)
    train_loader = DataLoader(train, batch_size=recipe.batch_size, shuffle=True)
    val_loader = DataLoader(val, batch_size=recipe.batch_size)
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[recipe.optimizer]
    optimizer = kind(network.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    total_steps = recipe.epochs * len(train_loader)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: recipe.learning_rate_at(min(step, total_steps - 1), total_steps) / recipe.learning_rate
    )
    for _ in range(recipe.epochs):
        start = time.perf_counter()
        network.train()
        running_loss = 0.0
        for batch in train_loader:
            images, labels = (tensor.to(device) for tensor in batch)
            optimizer.zero_grad()
            loss = F.cross_entropy(network(images), labels, label_smoothing=recipe.label_smoothing)
            loss.backward()
            optimizer.step()
            scheduler.step()
            running_loss += loss.item()
        trained = time.perf_counter()
        accuracy = _validate(network, val_loader, device)
        yield NotebookEpoch(
            len(train_loader.dataset),  # type: ignore[arg-type]  # a Subset has a length
            trained - start,
            time.perf_counter() - trained,
            accuracy,
        )


def run_notebook(
    plan: NotebookPlan, seed: int, report: Callable[[Any], None], should_stop: Callable[[], bool]
) -> list[NotebookEpoch]:
    """Train in a worker with torch's defaults, as in a notebook, without the settings of `prepare_process`."""
    torch.set_num_threads(plan.n_threads)
    data = notebook_data(plan.data_dir, plan.classes, plan.n_train, plan.n_val)
    epochs = []
    for epoch in notebook_epochs(plan.spec, plan.recipe, *data, device=torch.device(plan.device), seed=seed):
        epochs.append(epoch)
        if should_stop():
            raise Interrupted("the benchmark was stopped")
        if epoch.val_accuracy >= plan.goal or len(epochs) == plan.max_epochs:
            break
    return epochs


def _validate(network: nn.Module, loader: DataLoader[Any], device: torch.device) -> float:
    network.eval()
    val_loss, n_correct, n = 0.0, 0, 0
    with torch.no_grad():
        for batch in loader:
            images, labels = (tensor.to(device) for tensor in batch)
            logits = network(images)
            val_loss += F.cross_entropy(logits, labels, reduction="sum").item()
            n_correct += (logits.argmax(1) == labels).sum().item()
            n += len(labels)
    return n_correct / n
