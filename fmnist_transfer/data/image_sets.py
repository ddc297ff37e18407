"""Convert any classification set of torchvision's kind to `Examples`; `examples.half_of` cuts them into halves."""

import operator
from typing import Any, Protocol

import torch
from torch import Tensor
from torchvision.transforms.v2.functional import to_image

from fmnist_transfer.data.examples import Examples
from fmnist_transfer.errors import DataError


class ImageSet(Protocol):
    """Image and label at each index. An image is a PIL image, array [h, w] or [h, w, c], or tensor [h, w] or [c, h, w].

    Pixels are uint8 or floats on any scale.
    """

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> tuple[Any, Any]: ...


def examples_of(train_set: ImageSet, *more_sets: ImageSet) -> tuple[Examples, ...]:
    """Convert each set to float32 [n, c, h, w], c 1 or 3; labels stay as they are.

    Each channel is scaled to zero mean and unit variance over the pixels of `train_set`, in all sets. Each image is
    read once, so a random transform would be drawn only once; augment by the recipe instead. Raises DataError for an
    empty set, images of several sizes, pixels that are neither uint8 nor finite floats, and labels that are not whole
    numbers from 0.
    """
    examples = [_read(each) for each in (train_set, *more_sets)]
    first = examples[0].images
    for each in examples:
        if each.images.shape[1:] != first.shape[1:]:
            raise DataError(f"image sizes differ: {_size(each.images[0])} and {_size(first[0])}")
    std, mean = torch.std_mean(first, dim=(0, 2, 3), correction=0, keepdim=True)
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
        images.append(_pixels(image, i))
        labels.append(_whole_number(label, i))
        if images[i].shape != images[0].shape:
            sizes = f"{_size(images[i])}, earlier ones are {_size(images[0])}"
            raise DataError(f"image {i} is {sizes}; resize or crop them in the set's transform")
    return Examples(torch.stack(images).float(), torch.tensor(labels))


def _pixels(image: Any, i: int) -> Tensor:
    """Return the pixels, [c, h, w]."""
    mode = getattr(image, "mode", "RGB")  # palette indices would be mistaken for brightness
    pixels = to_image(image).as_subclass(Tensor)
    known = pixels.dtype == torch.uint8 or (pixels.is_floating_point() and bool(pixels.isfinite().all()))
    if mode == "P" or pixels.ndim != 3 or pixels.shape[0] not in (1, 3) or not known:
        kind = f"{_size(pixels)} of {pixels.dtype}, mode {mode}"
        raise DataError(f"image {i} is {kind}; it must have one or three channels of uint8 or finite floats")
    return pixels


def _whole_number(label: Any, i: int) -> int:
    try:
        number = operator.index(label)
    except TypeError:
        number = -1
    if number < 0:
        raise DataError(f"label {label!r} of image {i} is not a whole number from 0")
    return number


def _size(image: Tensor) -> str:
    return " x ".join(map(str, image.shape))
