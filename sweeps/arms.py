"""How each init makes its starting network, and what it trains.

| init             | layers but the classifier            | trains                                               |
| ---------------- | ------------------------------------ | ---------------------------------------------------- |
| `pretrained`     | the registered ones                  | all                                                  |
| `random`         | drawn anew                           | all                                                  |
| `frozen`         | the registered ones                  | the classifier, on features computed once            |
| `lp-ft`          | the registered ones                  | a fifth of its epochs the classifier, then all       |
| `selffer`        | trained on the same subset before    | all (so its budget is twice that of the others)      |
| `shrink-perturb` | 0.4 x registered + 0.1 x drawn anew  | all                                                  |
| `matched`        | drawn with the registered ones' mean | all                                                  |
|                  | and standard deviation               |                                                      |

The classifier is always drawn anew; within a replicate every init draws the same one, at every fraction. Batch-norm
buffers are the registered ones for `shrink-perturb` and `matched`.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from fmnist_transfer.data import Examples
from fmnist_transfer.errors import UsageError
from fmnist_transfer.evaluation import State, copy_state
from fmnist_transfer.model import CLASSIFIER, CNN2, CNN2Spec, fresh_network
from fmnist_transfer.recipe import Recipe
from fmnist_transfer.seeding import Streams
from fmnist_transfer.training import Diverged, Epoch, History, fit, fit_classifier
from sweeps.grid import PERTURB, PROBING_SHARE, SHRINK, Init

STACKABLE: frozenset[Init] = frozenset({"pretrained", "random", "shrink-perturb", "matched"})  # one `fit` of all layers


def starting_network(init: Init, spec: CNN2Spec, source: Mapping[str, Tensor], streams: Streams) -> CNN2:
    """The network that a cell starts to train, on the CPU.

    Args:
        spec: of the target's network: the registered one's with the target's number of classes.
        source: weights and buffers of the registered network, or for `selffer` what `train_before` gave; its
            classifier is not used.
    """
    network = fresh_network(spec, streams)
    own = network.state_dict()
    parameters = {name for name, _ in network.named_parameters()}
    noise = streams.generator("matched")

    def start(name: str) -> Tensor:
        if init == "random" or name.startswith(f"{CLASSIFIER}."):
            return own[name]
        if init == "shrink-perturb" and name in parameters:
            return SHRINK * source[name] + PERTURB * own[name]
        if init == "matched" and name in parameters:
            return _matched(source[name], noise)
        return source[name]

    network.load_state_dict({name: start(name) for name in own})
    return network


def _matched(weights: Tensor, generator: torch.Generator) -> Tensor:
    """Normal draws with exactly the mean and standard deviation of `weights` (Raghu et al. 2019, "Mean Var")."""
    drawn = torch.randn(weights.shape, generator=generator)
    spread = drawn.std(correction=0)
    if spread > 0:
        drawn = (drawn - drawn.mean()) / spread
    return weights.mean() + weights.std(correction=0) * drawn


def train_before(
    spec: CNN2Spec, train: Examples, val: Examples, recipe: Recipe, streams: Streams, **options: Any
) -> State:
    """What `selffer` starts from: a network trained from random weights on the target subset, with its own draws.

    Nothing is copied yet, so the recipe's factor of the trunk does not count.
    """
    own = dataclasses.replace(streams, stage="selffer")
    network = fresh_network(spec, own).to(train.images.device)
    try:
        fit(network, train, val, dataclasses.replace(recipe, trunk_factor=1.0), own, **options)
    except Diverged as error:
        raise Diverged(f"in its first training, {error}") from error
    return copy_state(network)


def fit_arm(
    network: CNN2, train: Examples, val: Examples, recipe: Recipe, streams: Streams, *, init: Init, **options: Any
) -> History:
    """Train what the init trains; arguments as those of `fit`."""
    if init == "frozen":
        return fit_classifier(network, train, val, recipe, streams, **options)
    if init == "lp-ft":
        return _probe_then_fit(network, train, val, recipe, streams, **options)
    return fit(network, train, val, recipe, streams, **options)


def probing_epochs(epochs: int) -> int:
    """Of lp-ft's epochs, those of the classifier alone. Raises UsageError for a single epoch."""
    if epochs < 2:
        raise UsageError("init lp-ft trains the classifier first and then all layers: it needs two epochs or more")
    return max(1, round(PROBING_SHARE * epochs))


def _probe_then_fit(
    network: CNN2,
    train: Examples,
    val: Examples,
    recipe: Recipe,
    streams: Streams,
    *,
    on_epoch: Callable[[Epoch], None] = lambda epoch: None,
    **options: Any,
) -> History:
    """Both stages run through the whole schedule; the best epoch may be of either."""
    n_probing = probing_epochs(recipe.epochs)
    of_probing = dataclasses.replace(recipe, epochs=n_probing)
    probed = fit_classifier(network, train, val, of_probing, streams, on_epoch=on_epoch, **options)

    def later(epoch: Epoch) -> Epoch:
        return dataclasses.replace(epoch, epoch=epoch.epoch + n_probing, step=epoch.step + probed.final.step)

    rest = dataclasses.replace(recipe, epochs=recipe.epochs - n_probing)
    fitted = fit(network, train, val, rest, streams, on_epoch=lambda epoch: on_epoch(later(epoch)), **options)
    epochs = probed.epochs + tuple(later(epoch) for epoch in fitted.epochs)
    if probed.best.val_loss <= fitted.best.val_loss:
        return History(epochs, probed.best_epoch, probed.best_state)
    return History(epochs, fitted.best_epoch + n_probing, fitted.best_state)
