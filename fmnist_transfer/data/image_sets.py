"""Convert any classification set of torchvision's kind to `Examples`; `examples.half_of` cuts them into halves."""

import operator
from typing import Any, Protocol

import torch
from torch import Tensor
from torchvision.transforms.v2.functional import to_image

from fmnist_transfer.data.examples import Examples
from fmnist_transfer.errors import DataError


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
        labels.append(_whole_number(label, i))
        _check_size(images[i], images[0], f"image {i}")
    return Examples(torch.stack(images).float(), torch.tensor(labels))


def _pixels(image: Any, name: str) -> Tensor:
    """Return the pixels, [c, h, w]."""
    mode = getattr(image, "mode", "RGB")  # palette indices would be mistaken for brightness
    pixels = to_image(image).as_subclass(Tensor)
    known = pixels.dtype == torch.uint8 or (pixels.is_floating_point() and bool(pixels.isfinite().all()))
    if mode == "P" or pixels.ndim != 3 or pixels.shape[0] not in (1, 3) or not known:
        kind = f"{_size(pixels)} of {pixels.dtype}, mode {mode}"
        raise DataError(f"{name} is {kind}; it must have one or three channels of uint8 or finite floats")
    return pixels


def _whole_number(label: Any, i: int) -> int:
    try:
        number = operator.index(label)
    except TypeError:
        number = -1
    if number < 0:
        raise DataError(f"label {label!r} of image {i} is not a whole number from 0")
    return number


def _check_size(image: Tensor, first: Tensor, name: str) -> None:
    if image.shape != first.shape:
        raise DataError(f"{name} is {_size(image)}, earlier ones are {_size(first)}; resize or crop them")


def _size(image: Tensor) -> str:
    return " x ".join(map(str, image.shape))
