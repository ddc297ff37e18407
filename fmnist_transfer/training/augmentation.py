"""Augment batches image by image on their device, and normalise them. docs/speed.md says why not with a library."""

import torch
from torch import Tensor

from fmnist_transfer.data.examples import PIXEL_MEAN, PIXEL_STD
from fmnist_transfer.training.recipe import Recipe


def normalise(images: Tensor) -> Tensor:
    """uint8 -> float32 with zero mean and unit variance over Fashion-MNIST's training pixels; floats stay."""
    if images.is_floating_point():
        return images
    return images.float().sub_(255 * PIXEL_MEAN).mul_(1 / (255 * PIXEL_STD))


def augment(images: Tensor, recipe: Recipe, generator: torch.Generator) -> Tensor:
    """Flip and shift each image of [n, c, h, w] with its own draws from `generator` (on the same device).

    Every pixel is gathered from its source row and column; those from outside the image are 0.
    """
    if not (recipe.flip or recipe.shift):
        return images
    n, channels, height, width = images.shape
    device, s = images.device, recipe.shift
    rows, columns = (torch.arange(side, device=device).expand(n, side) for side in (height, width))
    if recipe.flip:
        flipped = torch.rand(n, 1, generator=generator, device=device) < 0.5
        columns = torch.where(flipped, width - 1 - columns, columns)
    if s:
        images = torch.nn.functional.pad(images, (s, s, s, s))
        offsets = torch.randint(0, 2 * s + 1, (2, n, 1), generator=generator, device=device)
        rows, columns = rows + offsets[0], columns + offsets[1]
    sources = rows[:, :, None] * images.shape[-1] + columns[:, None, :]  # positions in a flat image
    gathered = images.flatten(2).gather(2, sources.flatten(1)[:, None].expand(-1, channels, -1))
    return gathered.view(n, channels, height, width)
