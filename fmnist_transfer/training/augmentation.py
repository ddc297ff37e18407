"""Augment batches image by image on their device, and normalise them. docs/speed.md says why not with a library."""

import torch
from torch import Tensor

from fmnist_transfer.data.examples import PIXEL_MEAN, PIXEL_STD
from fmnist_transfer.training.recipe import Recipe

ERASED_AREA, ERASED_RATIO = (0.02, 0.33), (0.3, 1 / 0.3)  # share of the image; height / width (Zhong et al. 2017)


def normalise(images: Tensor) -> Tensor:
    """uint8 -> float32 with zero mean and unit variance over Fashion-MNIST's training pixels; floats stay."""
    if images.is_floating_point():
        return images
    return images.float().sub_(255 * PIXEL_MEAN).mul_(1 / (255 * PIXEL_STD))


def augment(images: Tensor, recipe: Recipe, generator: torch.Generator) -> Tensor:
    """Flip, shift and erase each image of [n, c, h, w] with its own draws from `generator` (on the same device)."""
    if recipe.flip or recipe.shift:
        images = _flip_and_shift(images, recipe, generator)
    if recipe.erase:
        images = _erase(images, recipe.erase, generator)
    return images


def _flip_and_shift(images: Tensor, recipe: Recipe, generator: torch.Generator) -> Tensor:
    """Gather every pixel from its source row and column; those from outside the image are 0."""
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


def _erase(images: Tensor, probability: float, generator: torch.Generator) -> Tensor:
    n, _, height, width = images.shape
    u = torch.rand(5, n, 1, generator=generator, device=images.device)
    area = (ERASED_AREA[0] + (ERASED_AREA[1] - ERASED_AREA[0]) * u[0]) * height * width
    ratio = ERASED_RATIO[0] * (ERASED_RATIO[1] / ERASED_RATIO[0]) ** u[1]
    h = (area * ratio).sqrt().round().clamp(1, height)
    w = (area / ratio).sqrt().round().clamp(1, width)
    top, left = (u[2] * (height - h + 1)).floor(), (u[3] * (width - w + 1)).floor()
    rows, columns = (torch.arange(side, device=images.device) for side in (height, width))
    inside_rows = (rows >= top) & (rows < top + h)  # [n, height]
    inside_columns = (columns >= left) & (columns < left + w)
    erased = inside_rows[:, :, None] & inside_columns[:, None, :] & (u[4] < probability)[:, :, None]
    mean = 0.0 if images.is_floating_point() else round(255 * PIXEL_MEAN)
    return images.masked_fill(erased.unsqueeze(1), mean)
