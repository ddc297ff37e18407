"""Forecast how long trainings take by timing a few steps. Takes specs and recipes, returns seconds.

The unit of work, a pass, is the forward pass of one image; a training step counts as three passes per image.
"""

import dataclasses

import torch

from fmnist_transfer.data.examples import Examples
from fmnist_transfer.network.cnn2 import IMAGE_SIZE, CNN2Spec, fresh_network
from fmnist_transfer.seeding import Streams
from fmnist_transfer.training.device import prepare_process
from fmnist_transfer.training.fit import Diverged, fit
from fmnist_transfer.training.recipe import Precision, Recipe

STEP_PASSES = 3  # forward, gradients of the weights, gradients of the inputs
WARM_UP_STEPS, TIMED_STEPS = 1, 4


def training_passes(recipe: Recipe, n_train: int, n_val: int, steps_per_epoch: int | None = None) -> float:
    """Count the passes of a training: its epochs with validation, and the final scores (test is as large as val)."""
    steps = (steps_per_epoch or recipe.steps_per_epoch(n_train)) * recipe.epochs
    return STEP_PASSES * steps * min(recipe.batch_size, n_train) + (recipe.epochs + 2) * n_val + n_train


def seconds_per_pass(spec: CNN2Spec, recipe: Recipe, device: str, precision: Precision = "float32") -> float | None:
    """Measure the seconds per pass on one CPU thread of this machine, in a fraction of a second.

    Returns None for another device, and for a recipe that diverges at once (its trainings will report that).
    """
    if device != "cpu":
        return None
    prepare_process()
    streams, one_epoch = Streams(0), dataclasses.replace(recipe, epochs=1)
    network, n = fresh_network(spec, streams), TIMED_STEPS * recipe.batch_size
    images = torch.randint(
        0, 256, (n, 1, IMAGE_SIZE, IMAGE_SIZE), dtype=torch.uint8, generator=streams.generator("subset")
    )
    noise = Examples(images, torch.arange(n) % spec.n_classes)
    few = noise.first(recipe.batch_size)
    try:
        fit(network, few, few, one_epoch, streams, steps_per_epoch=WARM_UP_STEPS, precision=precision)
        timed = fit(network, noise, few, one_epoch, streams, precision=precision).final
    except Diverged:
        return None
    return timed.train_seconds / (STEP_PASSES * n)
