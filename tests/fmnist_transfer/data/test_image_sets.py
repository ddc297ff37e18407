"""Other data sets than Fashion-MNIST: what is read, how it is standardised."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import FakeData
from torchvision.transforms.v2.functional import pil_to_tensor

from fmnist_transfer.data.examples import examples_of, half_of

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (12, 6, 5, 3), dtype=np.uint8)


def test_a_torchvision_set_becomes_standardised_floats() -> None:
    train_set = FakeData(size=40, image_size=(3, 8, 10), num_classes=4)
    test_set = FakeData(size=20, image_size=(3, 8, 10), num_classes=4, random_offset=40)
    train, test = examples_of(train_set, test_set)
    assert train.images.shape == (40, 3, 8, 10)
    assert test.images.shape == (20, 3, 8, 10)
    assert train.images.dtype == test.images.dtype == torch.float32
    assert train.labels.tolist() == [label for _, label in (train_set[i] for i in range(40))]
    std, mean = torch.std_mean(train.images, dim=(0, 2, 3), correction=0)
    assert torch.allclose(mean, torch.zeros(3), atol=1e-5)
    assert torch.allclose(std, torch.ones(3), atol=1e-5)


def test_only_the_first_set_decides_how_pixels_are_standardised() -> None:
    first = [(np.full((2, 2, 3), value, np.uint8), 0) for value in (10, 30)]
    dark, bright = ([(np.full((2, 2, 3), value, np.uint8), 1)] for value in (0, 200))
    (one, _), (two, other) = examples_of(first, dark), examples_of(first, bright)
    assert torch.equal(one.images, two.images)
    assert one.images.unique().tolist() == [-1.0, 1.0]  # mean 20, deviation 10
    assert other.images.unique().tolist() == [18.0]


@pytest.mark.parametrize(
    "form",
    [
        Image.fromarray,
        lambda pixels: torch.from_numpy(pixels).permute(2, 0, 1),
        lambda pixels: pixels / 255,
        lambda pixels: torch.from_numpy(pixels).permute(2, 0, 1).double() / 255,
        lambda pixels: pil_to_tensor(Image.fromarray(pixels)),
    ],
)
def test_the_same_image_in_another_form_gives_the_same_numbers(form: Any) -> None:
    (plain,) = examples_of([(pixels, i % 3) for i, pixels in enumerate(PIXELS)])
    (other,) = examples_of([(form(pixels), np.int64(i % 3)) for i, pixels in enumerate(PIXELS)])
    assert plain.images.shape == (12, 3, 6, 5)
    assert torch.allclose(plain.images, other.images, atol=1e-5)
    assert torch.equal(plain.labels, other.labels)


@pytest.mark.parametrize("form", [np.asarray, torch.from_numpy, Image.fromarray])
def test_grey_images_have_one_channel(form: Any) -> None:
    (examples,) = examples_of([(form(pixels[:, :, 0].copy()), torch.tensor(1)) for pixels in PIXELS])
    assert examples.images.shape == (12, 1, 6, 5)
    assert examples.labels.tolist() == [1] * 12


def test_a_channel_without_contrast_is_zero() -> None:
    (examples,) = examples_of([(np.full((2, 2), 7, np.uint8), 0)])
    assert examples.images.unique().tolist() == [0.0]


def test_halves_share_one_standard_and_renumber_their_labels() -> None:
    train, test = examples_of(
        [(pixels, i // 12 + 4) for i, pixels in enumerate([*PIXELS, *(255 - PIXELS)])], [(PIXELS[0], 4), (PIXELS[1], 5)]
    )
    half = half_of(train, test, [5])
    assert half.train.labels.tolist() + half.val.labels.tolist() == [0] * 12
    assert torch.equal(half.test.images, train.images[1:2])
