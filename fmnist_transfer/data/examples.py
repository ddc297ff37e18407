"""Turn verified Fashion-MNIST files into uint8 tensors: class halves, train/val/test, and nested fractions.

Pixels stay uint8 until a batch is on its device. For other data sets use `image_sets.examples_of`, then `half_of`.
"""

import dataclasses
import functools
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor

from fmnist_transfer.data.files import data_sha256, read_files
from fmnist_transfer.errors import DataError, UsageError
from fmnist_transfer.seeding import Streams

PIXEL_MEAN, PIXEL_STD = 0.2860, 0.3530  # over all 60,000 training images, pixels scaled to [0, 1]
FEWEST_TRAINING_IMAGES = 12  # per class
VALIDATION_SEED = 20_170_825  # constant: validation images depend on no flag and no split


@dataclass(frozen=True)
class Examples:
    """Images, uint8 [n, 1, 28, 28] or standardised float32 [n, c, h, w]; labels, int64 [n], 0 ... n_classes - 1."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Tensor) -> Self:
        return type(self)(self.images[indices], self.labels[indices])

    def first(self, n: int) -> Self:
        return type(self)(self.images[:n], self.labels[:n])

    def to(self, device: torch.device | str) -> Self:
        return type(self)(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True)
class Half:
    """Some classes of a data set. Fashion-MNIST has 5,000 train, 1,000 val and 1,000 test images per class."""

    classes: tuple[int, ...]
    train: Examples
    val: Examples
    test: Examples
    data_sha256: str = ""  # digest of Fashion-MNIST's four files; empty for other data sets

    def to(self, device: torch.device | str) -> Self:
        train, val, test = (examples.to(device) for examples in (self.train, self.val, self.test))
        return dataclasses.replace(self, train=train, val=val, test=test)

    def share_memory(self) -> None:
        """Move the tensors to memory that worker processes read without a copy."""
        for examples in (self.train, self.val, self.test):
            examples.images.share_memory_()
            examples.labels.share_memory_()


def load_half(data_dir: Path, classes: tuple[int, ...], *, fetch: bool = True) -> Half:
    """Load Fashion-MNIST's images of `classes`. Raises DataError as `ensure_files` and `half_of`."""
    train_images, train_labels, test_images, test_labels = map(torch.from_numpy, read_files(data_dir, fetch=fetch))
    train = Examples(train_images.unsqueeze(1), train_labels.long())
    test = Examples(test_images.unsqueeze(1), test_labels.long())
    return dataclasses.replace(half_of(train, test, classes), data_sha256=data_sha256())


def half_of(train: Examples, test: Examples, classes: Iterable[int]) -> Half:
    """Select the images of `classes` from a data set, labels renumbered 0 ... in ascending order of class.

    One in six training images of each class becomes validation, chosen independently of the other classes. Raises
    DataError for a class without test images, or with fewer than twelve training images: these give two for validation,
    one for each fold of `score.cross_fitted_loss`.
    """
    classes = tuple(sorted(set(classes)))
    for c in classes:
        n_train, n_test = (int((examples.labels == c).sum()) for examples in (train, test))
        if n_train < FEWEST_TRAINING_IMAGES or n_test < 1:
            counts = f"{n_train} training and {n_test} test images"
            raise DataError(f"class {c} has {counts}; it needs at least {FEWEST_TRAINING_IMAGES} and 1")
    kept = torch.tensor(classes)

    def cut(examples: Examples, indices: Tensor) -> Examples:
        return Examples(examples.images[indices], torch.searchsorted(kept, examples.labels[indices]))

    trains, validates = map(torch.from_numpy, train_and_val_indices(train.labels.numpy(), classes))
    return Half(classes, cut(train, trains), cut(train, validates), cut(test, torch.isin(test.labels, kept)))


def train_and_val_indices(labels: np.ndarray, classes: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices of the training and of the validation images of `classes`; labels: [n], of all images."""
    train, val = [], []
    for c in classes:
        shuffled = np.random.default_rng([VALIDATION_SEED, c]).permutation(np.flatnonzero(labels == c))
        n_val = len(shuffled) // 6
        val.append(shuffled[:n_val])
        train.append(shuffled[n_val:])
    return np.sort(np.concatenate(train)), np.sort(np.concatenate(val))


@functools.lru_cache(maxsize=1)
def on_device(half: Half, device: str) -> Half:
    """Copy the half to `device`; the last copy is cached for later tasks."""
    return half.to(device)


def fraction(train: Examples, percent: int, streams: Streams) -> Examples:
    """Take `percent` of each class, chosen by the stream `subset`. A smaller fraction is a prefix of a larger one."""
    order = nested_order(train.labels.cpu(), streams.generator("subset"))
    return train.take(order[: n_train(train, percent)].to(train.labels.device))


def n_train(train: Examples, percent: int) -> int:
    """Return the number of training images at `percent` of each class, rounded down per class.

    Raises UsageError, naming the smallest percent that works, if a class would get none.
    """
    counts = _images_per_class(train.labels)
    fewest = int(counts.min())
    if fewest * percent < 100:
        smallest = -(-100 // fewest)
        raise UsageError(f"--fractions {percent}: leaves no image per class of {fewest}; use {smallest} or more")
    return int((counts * percent // 100).sum())


def nested_order(labels: Tensor, generator: torch.Generator) -> Tensor:
    """Return indices [n] whose first `n_train` at any percent hold that percent of each class, so fractions nest.

    Each class is permuted, then spread evenly over the order, so classes of equal size alternate.
    """
    indices, shares = [], []
    for c, n in enumerate(_images_per_class(labels).tolist()):
        indices.append(torch.nonzero(labels == c).flatten()[torch.randperm(n, generator=generator)])
        shares.append(torch.arange(1, n + 1, dtype=torch.float64) / n)  # of the class, up to and including each image
    return torch.cat(indices)[torch.cat(shares).argsort(stable=True)]


def _images_per_class(labels: Tensor) -> Tensor:
    counts = torch.bincount(labels)
    if not bool(counts.all()):
        raise DataError(f"a class has no image; images per class: {counts.tolist()}")
    return counts
