"""The training loop that people write in a notebook, for comparison."""

import time
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, Subset

from fmnist_transfer.benchmark.tasks import STOPPED, ShouldStop, Workload
from fmnist_transfer.data.examples import PIXEL_MEAN, PIXEL_STD, train_and_val_indices
from fmnist_transfer.data.files import ensure_files
from fmnist_transfer.errors import Interrupted
from fmnist_transfer.network.cnn2 import fresh_network
from fmnist_transfer.seeding import Streams
from fmnist_transfer.training.device import autocast
from fmnist_transfer.workers.task import Report


class NotebookEpoch(NamedTuple):
    train_seconds: float
    val_seconds: float
    val_accuracy: float


def run_notebook(work: Workload, seed: int, report: Report, should_stop: ShouldStop) -> list[NotebookEpoch]:
    """Train as `fit`, without augmentation and `prepare_process`; the precision holds in evaluation too."""
    torch.set_num_threads(work.n_threads)
    recipe, device = work.recipe, torch.device(work.device)
    train, val = notebook_data(work)
    torch.manual_seed(seed)
    network = fresh_network(work.spec, Streams(seed)).to(memory_format=torch.contiguous_format).to(device)
    train_loader = DataLoader(train, batch_size=recipe.batch_size, shuffle=True)
    val_loader = DataLoader(val, batch_size=recipe.batch_size)
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[recipe.optimizer]
    optimizer = kind(network.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    n_steps = recipe.epochs * len(train_loader)
    factors = [recipe.learning_rate_at(step, n_steps) / recipe.learning_rate for step in range(n_steps)]
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: factors[min(step, n_steps - 1)])
    epochs: list[NotebookEpoch] = []
    for _ in range(recipe.epochs):
        start = time.perf_counter()
        network.train()
        running_loss = 0.0
        for batch in train_loader:
            images, labels = (tensor.to(device) for tensor in batch)
            optimizer.zero_grad()
            with autocast(work.precision, device):
                loss = F.cross_entropy(network(images), labels)
            loss.backward()
            optimizer.step()
            scheduler.step()
            running_loss += loss.item()
        trained = time.perf_counter()
        network.eval()
        val_loss, n_correct = 0.0, 0
        with torch.no_grad(), autocast(work.precision, device):
            for batch in val_loader:
                images, labels = (tensor.to(device) for tensor in batch)
                logits = network(images)
                val_loss += F.cross_entropy(logits, labels, reduction="sum").item()
                n_correct += int((logits.argmax(1) == labels).sum().item())
        epochs.append(NotebookEpoch(trained - start, time.perf_counter() - trained, n_correct / len(work.half.val)))
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
