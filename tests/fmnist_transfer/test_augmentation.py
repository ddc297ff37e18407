"""Each image of a batch gets its own draws."""

import torch

from fmnist_transfer.augmentation import augment, normalise
from fmnist_transfer.data import PIXEL_MEAN, PIXEL_STD
from fmnist_transfer.recipe import Recipe

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


def test_erasing_blanks_one_rectangle_of_the_stated_share_of_images() -> None:
    erased = augment(BATCH, Recipe(erase=0.5), generator()) != BATCH
    touched = erased.flatten(1).any(dim=1)
    assert 160 < int(touched.sum()) < 240
    for mask in erased[touched][:50, 0]:
        rows, columns = mask.any(dim=1).sum(), mask.any(dim=0).sum()
        assert 0.01 * 784 < rows * columns < 0.40 * 784
