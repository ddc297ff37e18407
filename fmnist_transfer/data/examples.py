"""Data sets as tensors: class halves with train/val/test, and nested fractions."""

import dataclasses
import functools
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from fmnist_transfer.data.files import read_files
from fmnist_transfer.errors import DataError, UsageError
from fmnist_transfer.seeding import Streams

PIXEL_MEAN, PIXEL_STD = 0.2860, 0.3530  # over all 60,000 training images, pixels scaled to [0, 1]
VALIDATION_SEED = 20_170_825  # constant: validation images depend on no flag and no split


@dataclass(frozen=True)
class Examples:
    """Images, uint8 [n, 1, 28, 28] or standardised float32 [n, c, h, w]; labels, int64 [n], 0 ... n_classes - 1."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Tensor) -> Self:
        return type(self)(self.images.index_select(0, indices), self.labels.index_select(0, indices))

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
    """Load Fashion-MNIST's images of `classes`; pixels stay uint8 until a batch is on its device. Raises DataError."""
    arrays, data_sha256 = read_files(data_dir, fetch=fetch)
    train_images, train_labels, test_images, test_labels = map(torch.from_numpy, arrays)
    train = Examples(train_images.unsqueeze(1), train_labels.long())
    test = Examples(test_images.unsqueeze(1), test_labels.long())
    return dataclasses.replace(half_of(train, test, classes), data_sha256=data_sha256)


def half_of(train: Examples, test: Examples, classes: Iterable[int]) -> Half:
    """Select the images of `classes` from a data set, labels renumbered 0 ... in ascending order of class.

    One in six training images of each class becomes validation, chosen independently of the other classes. Raises
    DataError if a class has fewer than twelve training images or no test image.
    """
    classes = tuple(sorted(set(classes)))
    for c in classes:
        n_train, n_test = (int((examples.labels == c).sum()) for examples in (train, test))
        if n_train < 12 or n_test < 1:  # one validation image in each fold of `cross_fitted_losses`
            raise DataError(f"class {c} has {n_train} training and {n_test} test images; it needs at least 12 and 1")
    kept = torch.tensor(classes)
    train_indices, val_indices = map(torch.from_numpy, train_and_val_indices(train.labels.numpy(), classes))
    parts = train.take(train_indices), train.take(val_indices), test.take(torch.isin(test.labels, kept).nonzero()[:, 0])
    train, val, test = (Examples(part.images, torch.searchsorted(kept, part.labels)) for part in parts)
    return Half(classes, train, val, test)


def train_and_val_indices(labels: np.ndarray, classes: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices of the training and of the validation images of `classes`; labels: [n], of all images."""
    shuffled = [np.random.default_rng([VALIDATION_SEED, c]).permutation(np.flatnonzero(labels == c)) for c in classes]
    train, val = [s[len(s) // 6 :] for s in shuffled], [s[: len(s) // 6] for s in shuffled]
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
    """Count the training images at `percent` of each class, rounded down. Raises UsageError if a class gets none."""
    counts = torch.bincount(train.labels)
    if (fewest := int(counts.min())) * percent < 100:
        smallest = -(-100 // fewest)
        raise UsageError(f"--fractions {percent}: leaves no image per class of {fewest}; use {smallest} or more")
    return int((counts * percent // 100).sum())


def nested_order(labels: Tensor, generator: torch.Generator) -> Tensor:
    """Permute each class and spread it evenly over the order, [n], so fractions nest and equal classes alternate."""
    indices, shares = [], []
    for c, n in enumerate(torch.bincount(labels).tolist()):
        indices.append(torch.nonzero(labels == c).flatten()[torch.randperm(n, generator=generator)])
        shares.append(torch.arange(1, n + 1, dtype=torch.float64) / n)  # of the class, up to and including each image
    return torch.cat(indices)[torch.cat(shares).argsort(stable=True)]


def examples_of(train_set: Iterable[tuple[Any, int]], *more_sets: Iterable[tuple[Any, int]]) -> tuple[Examples, ...]:
    """Convert sets of images (PIL, array [h, w] or [h, w, c], tensor [c, h, w]; of one size) and labels to float32.

    In all sets each channel is scaled to zero mean and unit variance over the pixels of `train_set`. Each image is read
    once, so a random transform would be drawn only once; augment by the recipe instead.
    """
    from torchvision.transforms.v2.functional import to_image  # imported here: only other data sets need it

    examples = []
    for pairs in (train_set, *more_sets):
        images, labels = zip(*pairs, strict=True)
        pixels = torch.stack([to_image(image).as_subclass(Tensor) for image in images])
        examples.append(Examples(pixels.float(), torch.tensor(labels)))
    std, mean = torch.std_mean(examples[0].images, dim=(0, 2, 3), correction=0, keepdim=True)
    std[std == 0] = 1.0
    for each in examples:
        each.images.sub_(mean).div_(std)
    return tuple(examples)
