"""Each image of a batch gets its own draws."""

import pytest
import torch

from fmnist_transfer.data.examples import PIXEL_MEAN, PIXEL_STD
from fmnist_transfer.training.augmentation import augment, normalise
from fmnist_transfer.training.recipe import Recipe

BATCH = torch.arange(1, 28 * 28 + 1).remainder(200).add(20).to(torch.uint8).view(1, 1, 28, 28).repeat(400, 1, 1, 1)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_normalised_pixels_have_the_published_moments() -> None:
    pixels = normalise(torch.tensor([0, 255], dtype=torch.uint8))
    expected = torch.tensor([-PIXEL_MEAN / PIXEL_STD, (1 - PIXEL_MEAN) / PIXEL_STD])
    assert torch.allclose(pixels, expected, atol=1e-5)


def test_nothing_asked_nothing_changed() -> None:
    assert augment(BATCH, Recipe(), generator()) is BATCH


def test_flip_mirrors_about_half_of_the_images() -> None:
    flipped = augment(BATCH, Recipe(flip=True), generator())
    mirrored = (flipped == BATCH.flip(-1)).flatten(1).all(dim=1)
    unchanged = (flipped == BATCH).flatten(1).all(dim=1)
    assert bool((mirrored ^ unchanged).all())
    assert 160 < int(mirrored.sum()) < 240


def test_shift_moves_each_image_by_its_own_offset_onto_background() -> None:
    shifted = augment(BATCH, Recipe(shift=2), generator())
    padded = torch.nn.functional.pad(BATCH[0, 0], (2, 2, 2, 2))
    windows = torch.stack([padded[y : y + 28, x : x + 28] for y in range(5) for x in range(5)])
    matches = (shifted[:, 0, None] == windows[None]).flatten(2).all(dim=2)
    assert bool((matches.sum(dim=1) == 1).all())
    assert len(matches.int().argmax(dim=1).unique()) == 25


@pytest.mark.parametrize("recipe", [Recipe(flip=True), Recipe(shift=2), Recipe(flip=True, shift=3)])
def test_every_channel_moves_as_one_alone_would(recipe: Recipe) -> None:
    rgb = torch.randint(0, 256, (50, 3, 10, 12), dtype=torch.uint8, generator=generator())
    together = augment(rgb, recipe, generator())
    alone = [augment(rgb[:, c : c + 1], recipe, generator()) for c in range(3)]
    assert together.shape == rgb.shape
    assert torch.equal(together, torch.cat(alone, dim=1))


def test_one_gather_is_indexing_by_image_row_and_column() -> None:
    draws = generator()
    flipped = torch.rand(400, 1, generator=draws) < 0.5
    offsets = torch.randint(0, 5, (2, 400, 1), generator=draws)
    columns = torch.where(flipped, 27 - torch.arange(28), torch.arange(28)) + offsets[1]
    rows = torch.arange(28) + offsets[0]
    padded = torch.nn.functional.pad(BATCH[:, 0], (2, 2, 2, 2))
    expected = padded[torch.arange(400)[:, None, None], rows[:, :, None], columns[:, None, :]].unsqueeze(1)
    assert torch.equal(augment(BATCH, Recipe(flip=True, shift=2), generator()), expected)


def test_standardised_images_are_shifted_onto_their_mean() -> None:
    images = torch.full((400, 3, 8, 8), 5.0)
    assert augment(images, Recipe(shift=2), generator()).unique().tolist() == [0.0, 5.0]
    assert normalise(images) is images
