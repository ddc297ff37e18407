"""Halves of a data set, and fractions that nest."""

import math
from pathlib import Path

import pytest
import torch

from fmnist_transfer.data.examples import Examples, Half, fraction, half_of, load_half, n_train, nested_order
from fmnist_transfer.errors import DataError, UsageError
from fmnist_transfer.network.cnn2 import CNN2Spec, fresh_network
from fmnist_transfer.seeding import Streams
from fmnist_transfer.training.fit import fit_and_score
from fmnist_transfer.training.recipe import Recipe


def test_halves_are_disjoint_equal_and_relabelled(data_dir: Path) -> None:
    source = load_half(data_dir, (0, 1, 2, 3, 4))
    target = load_half(data_dir, (5, 6, 7, 8, 9))
    assert len(source.train) == len(target.train) == 250
    assert len(source.val) == len(target.val) == 50
    assert len(source.test) == len(target.test) == 100
    for half in (source, target):
        for examples, per_class in ((half.train, 50), (half.val, 10), (half.test, 20)):
            assert torch.bincount(examples.labels).tolist() == [per_class] * 5
            assert examples.images.dtype == torch.uint8
            assert examples.images.shape[1:] == (1, 28, 28)
    images = torch.cat([part.images for half in (source, target) for part in (half.train, half.val, half.test)])
    assert len(images.flatten(1).unique(dim=0)) == 800  # no image is in two parts


def test_validation_does_not_depend_on_the_split(data_dir: Path) -> None:
    one = load_half(data_dir, (0, 1, 2, 3, 4))
    other = load_half(data_dir, (2, 5, 6, 7, 8))
    of_class_2 = one.val.images[one.val.labels == 2]
    assert torch.equal(of_class_2, other.val.images[other.val.labels == 0])


def test_fractions_are_nested_and_balanced(half: Half) -> None:
    order = nested_order(half.train.labels, Streams(0).generator("subset"))
    assert sorted(order.tolist()) == list(range(250))
    for percent in (2, 10, 50, 100):
        n = n_train(half.train, percent)
        assert n == 5 * (50 * percent // 100)
        assert torch.bincount(half.train.labels[order[:n]]).tolist() == [n // 5] * 5


def test_fraction_without_an_image_per_class_names_the_smallest(half: Half) -> None:
    with pytest.raises(UsageError, match=r"\b2\b"):
        n_train(half.train, 1)
    assert n_train(half.train, 2) == 5


def test_balanced_classes_take_turns() -> None:
    labels = torch.arange(5).repeat(30)[torch.randperm(150, generator=torch.Generator().manual_seed(1))]
    generator = torch.Generator().manual_seed(2)
    permuted = []
    for c in range(5):
        of_class = torch.nonzero(labels == c).flatten()
        permuted.append(of_class[torch.randperm(30, generator=generator)])
    turns = torch.stack(permuted, dim=1).flatten()
    assert torch.equal(nested_order(labels, torch.Generator().manual_seed(2)), turns)


@pytest.mark.parametrize("counts", [(250, 250, 250), (7, 1_000, 33), (1, 2, 3, 4), (999, 1, 500, 333), (21, 21, 3, 7)])
def test_every_fraction_holds_its_share_of_unbalanced_classes(counts: tuple[int, ...]) -> None:
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))]
    train = Examples(torch.arange(len(labels)), labels)
    before: set[int] = set()
    for percent in range(-(-100 // min(counts)), 101):
        part = fraction(train, percent, Streams(4))
        assert torch.bincount(part.labels).tolist() == [n * percent // 100 for n in counts]
        assert len(part) == n_train(train, percent)
        assert before <= set(part.images.tolist())
        before = set(part.images.tolist())
    assert len(before) == sum(counts)


def test_the_rarest_class_decides_what_is_too_little() -> None:
    train = Examples(torch.zeros(33), torch.tensor([0] * 30 + [1] * 3))
    with pytest.raises(UsageError, match=r"\b33\b.*\b34\b"):
        n_train(train, 33)
    assert n_train(train, 34) == 11


def test_a_half_of_an_unbalanced_set_holds_out_a_sixth_of_each_class() -> None:
    labels = torch.tensor([3] * 12 + [7] * 31 + [9] * 60)
    whole = Examples(torch.arange(103), labels)
    half = half_of(whole, whole, (9, 3))
    assert half.classes == (3, 9)
    assert [torch.bincount(part.labels).tolist() for part in (half.train, half.val, half.test)] == [
        [10, 50],
        [2, 10],
        [12, 60],
    ]
    assert sorted(half.train.images.tolist() + half.val.images.tolist()) == half.test.images.tolist()
    alone = half_of(whole, whole, (3,))
    assert torch.equal(alone.val.images, half.val.images[half.val.labels == 0])
    with pytest.raises(DataError, match="class 4"):
        half_of(whole, whole, (3, 4))


def whole_of(per_class: int) -> Examples:
    """Random images of five classes, `per_class` of each."""
    labels = torch.arange(5).repeat(per_class)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (len(labels), 1, 28, 28), dtype=torch.uint8, generator=generator)
    return Examples(images, labels)


def test_a_class_of_eleven_images_is_refused_before_anything_is_trained() -> None:
    with pytest.raises(DataError, match=r"\bclass 0\b.*\b11\b.*\b12\b"):
        half_of(whole_of(11), whole_of(11), range(5))


def test_classes_of_twelve_images_are_trained_and_scored() -> None:
    """Each class has two validation images: one for each fold of the temperature."""
    half = half_of(whole_of(12), whole_of(12), range(5))
    assert torch.bincount(half.val.labels).tolist() == [2] * 5
    spec, recipe = CNN2Spec((3, 4), fc1=8, fc2=6), Recipe(epochs=1, batch_size=16)
    result = fit_and_score(fresh_network(spec, Streams(0)), half.train, half, recipe, Streams(0))
    assert [epoch.step for epoch in result.epochs] == [3]  # 50 images, batches of 16
    assert math.isfinite(result.calibration["val_scaled_loss"])
