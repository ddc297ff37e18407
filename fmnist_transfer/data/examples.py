"""Data sets as tensors: class halves with train/val/test, and nested fractions."""

import dataclasses
import functools
import operator
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

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
    train_images, train_labels, test_images, test_labels = map(torch.from_numpy, read_files(data_dir, fetch=fetch))
    train = Examples(train_images.unsqueeze(1), train_labels.long())
    test = Examples(test_images.unsqueeze(1), test_labels.long())
    return dataclasses.replace(half_of(train, test, classes), data_sha256=data_sha256())


def half_of(train: Examples, test: Examples, classes: Iterable[int]) -> Half:
    """Select the images of `classes` from a data set, labels renumbered 0 ... in ascending order of class.

    One in six training images of each class becomes validation, chosen independently of the other classes. Twelve per
    class leave one for each fold of `cross_fitted_losses`. Raises DataError for fewer, or without test images.
    """
    classes = tuple(sorted(set(classes)))
    for c in classes:
        n_train, n_test = (int((examples.labels == c).sum()) for examples in (train, test))
        if n_train < FEWEST_TRAINING_IMAGES or n_test < 1:
            counts = f"{n_train} training and {n_test} test images"
            raise DataError(f"class {c} has {counts}; it needs at least {FEWEST_TRAINING_IMAGES} and 1")
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
    counts = _images_per_class(train.labels)
    if (fewest := int(counts.min())) * percent < 100:
        smallest = -(-100 // fewest)
        raise UsageError(f"--fractions {percent}: leaves no image per class of {fewest}; use {smallest} or more")
    return int((counts * percent // 100).sum())


def nested_order(labels: Tensor, generator: torch.Generator) -> Tensor:
    """Permute each class and spread it evenly over the order, [n], so fractions nest and equal classes alternate."""
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


class ImageSet(Protocol):
    """Pairs of a label and a PIL image, array [h, w] or [h, w, c], or tensor [h, w] or [c, h, w], uint8 or floats."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> tuple[Any, Any]: ...


def examples_of(train_set: ImageSet, *more_sets: ImageSet) -> tuple[Examples, ...]:
    """Convert each set to float32 [n, c, h, w], c 1 or 3; labels stay as they are.

    Each channel is scaled to zero mean and unit variance over the pixels of `train_set`, in all sets. Each image is
    read once, so a random transform would be drawn only once; augment by the recipe instead. Raises DataError.
    """
    examples = [_read(each) for each in (train_set, *more_sets)]
    for each in examples:
        _check_size(each.images[0], examples[0].images[0], "the first image of a further set")
    std, mean = torch.std_mean(examples[0].images, dim=(0, 2, 3), correction=0, keepdim=True)
    std[std == 0] = 1.0
    for each in examples:
        each.images.sub_(mean).div_(std)
    return tuple(examples)


def _read(image_set: ImageSet) -> Examples:
    """Read all images as float32, not yet standardised."""
    if not len(image_set):
        raise DataError("a data set has no images")
    images, labels = [], []
    for i in range(len(image_set)):
        image, label = image_set[i]
        images.append(_pixels(image, f"image {i}"))
        try:
            labels.append(operator.index(label))
        except TypeError:
            labels.append(-1)
        if labels[i] < 0:
            raise DataError(f"label {label!r} of image {i} is not a whole number from 0")
        _check_size(images[i], images[0], f"image {i}")
    return Examples(torch.stack(images).float(), torch.tensor(labels))


def _pixels(image: Any, name: str) -> Tensor:
    """Return the pixels, [c, h, w]."""
    from torchvision.transforms.v2.functional import to_image  # imported here: only other data sets need it

    mode = getattr(image, "mode", "RGB")  # palette indices would be mistaken for brightness
    pixels = to_image(image).as_subclass(Tensor)
    known = pixels.dtype == torch.uint8 or (pixels.is_floating_point() and bool(pixels.isfinite().all()))
    if mode == "P" or pixels.ndim != 3 or pixels.shape[0] not in (1, 3) or not known:
        kind = f"{_size(pixels)} of {pixels.dtype}, mode {mode}"
        raise DataError(f"{name} is {kind}; it must have one or three channels of uint8 or finite floats")
    return pixels


def _check_size(image: Tensor, first: Tensor, name: str) -> None:
    if image.shape != first.shape:
        raise DataError(f"{name} is {_size(image)}, earlier ones are {_size(first)}; resize or crop them")


def _size(image: Tensor) -> str:
    return " x ".join(map(str, image.shape))
