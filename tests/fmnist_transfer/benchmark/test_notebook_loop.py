"""The notebook's loop trains the same network on the same images."""

from pathlib import Path

import torch

from fmnist_transfer.benchmark.notebook_loop import notebook_data, notebook_epochs
from fmnist_transfer.data.examples import load_half
from fmnist_transfer.network.cnn2 import CNN2Spec
from fmnist_transfer.training.augmentation import normalise
from fmnist_transfer.training.recipe import Recipe

SPEC = CNN2Spec(channels=(3, 4), fc1=8, fc2=6)


def test_the_notebook_sees_the_same_images(data_dir: Path) -> None:
    classes = (0, 2, 4, 6, 8)
    half = load_half(data_dir, classes)
    train, val = notebook_data(data_dir, classes, 30, 20)
    for pairs, examples in ((train, half.train), (val, half.val)):
        images = torch.stack([pairs[i][0] for i in range(len(pairs))])  # type: ignore[arg-type]
        torch.testing.assert_close(images, normalise(examples.images[: len(images)]), rtol=1e-4, atol=1e-5)
        assert [pairs[i][1] for i in range(len(images))] == examples.labels[: len(images)].tolist()
    assert (len(train), len(val)) == (30, 20)  # type: ignore[arg-type]


def test_the_notebook_learns(data_dir: Path) -> None:
    data = notebook_data(data_dir, (5, 6, 7, 8, 9), 250, 50)
    recipe = Recipe(batch_size=32, epochs=12, learning_rate=1e-2)
    epochs = list(notebook_epochs(SPEC, recipe, *data, device=torch.device("cpu"), seed=0))
    assert [epoch.n_images for epoch in epochs] == [250] * 12
    assert epochs[-1].val_accuracy > 0.5  # of five classes
