"""Starting networks and trained layers of each init, for CNN2 or any network with a named classifier.

| init             | layers but the classifier            | trains                                               |
| ---------------- | ------------------------------------ | ---------------------------------------------------- |
| `pretrained`     | the source's                         | all                                                  |
| `random`         | drawn anew                           | all                                                  |
| `frozen`         | the source's                         | the classifier, on features computed once            |
| `lp-ft`          | the source's                         | the classifier for a fifth of the epochs, then all   |
| `selffer`        | first trained on the same subset     | all (so its budget is twice that of the others)      |
| `shrink-perturb` | 0.4 x source + 0.1 x drawn anew      | all                                                  |
| `matched`        | drawn with the source's mean and     | all                                                  |
|                  | standard deviation                   |                                                      |

The source is the registered network or, with `--pretrain-replicates`, the replicate's own. The classifier is always
drawn anew; within a replicate it is the same for every init and fraction. `shrink-perturb` and `matched` copy the
source's buffers.

A function `draw` makes a fresh network from the streams: `partial(fresh_network, spec)` for CNN2,
`partial(fresh, build, classifier="fc")` for any other network.
"""

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from fmnist_transfer.data.examples import Examples, Half
from fmnist_transfer.errors import UsageError
from fmnist_transfer.network.cnn2 import CLASSIFIER, find_classifier
from fmnist_transfer.network.weights import State, check_fit, copy_state
from fmnist_transfer.seeding import Streams
from fmnist_transfer.training.fit import Diverged, fit, fit_classifier
from fmnist_transfer.training.recipe import Recipe
from fmnist_transfer.training.score import Epoch, History, Result, score
from sweeps.grid import PERTURB, PROBING_SHARE, SHRINK, Init

Network = TypeVar("Network", bound=nn.Module)


def train_arm(
    draw: Callable[[Streams], nn.Module],
    train: Examples,
    half: Half,
    recipe: Recipe,
    streams: Streams,
    *,
    init: Init,
    source: Mapping[str, Tensor],
    classifier: str = CLASSIFIER,
    on_epoch: Callable[[Epoch], None] = lambda epoch: None,
    **options: Any,
) -> Result:
    """Make the init's starting network, train it and score it on the half, all on the device of `train`.

    Arguments and errors are those of `starting_network` and `fit`.
    """
    start = time.perf_counter()
    options["classifier"] = classifier
    if init == "selffer":
        source = train_before(draw, train, half.val, recipe, streams, **options)
    network = starting_network(init, draw, source, streams, classifier).to(train.images.device)
    initial_state = copy_state(network)
    history = fit_arm(network, train, half.val, recipe, streams, init=init, on_epoch=on_epoch, **options)
    result = score(network, history, train, half, initial_state)
    return dataclasses.replace(result, seconds=time.perf_counter() - start)


def starting_network(
    init: Init,
    draw: Callable[[Streams], Network],
    source: Mapping[str, Tensor],
    streams: Streams,
    classifier: str = CLASSIFIER,
) -> Network:
    """Make the network that training starts from, on the CPU.

    Args:
        draw: makes a fresh network with the target's number of classes, on the CPU, from the streams alone.
        source: weights and buffers of the source network, or for `selffer` those from `train_before`. Its classifier is
            not used; `random` uses none of it.
        classifier: name of the module that outputs the logits.

    Raises:
        ModelError: outside the classifier, a name, shape or type differs between source and network.
        UsageError: the network has no module of that name.
    """
    network = draw(streams)
    find_classifier(network, classifier)
    own = network.state_dict()
    parameters = {name for name, _ in network.named_parameters(remove_duplicate=False)}
    noise = streams.generator("matched")

    def trunk(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: tensor for name, tensor in state.items() if not name.startswith(f"{classifier}.")}

    if init != "random":
        check_fit(trunk(source), trunk(own), "the source's trunk")

    def start(name: str) -> Tensor:
        if init == "random" or name.startswith(f"{classifier}."):
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
    draw: Callable[[Streams], nn.Module],
    train: Examples,
    val: Examples,
    recipe: Recipe,
    streams: Streams,
    **options: Any,
) -> State:
    """Train what `selffer` starts from: a network with random weights, on the target subset, with its own draws.

    No layer is copied yet, so the recipe's trunk factor is not applied. Arguments are those of `starting_network` and
    `fit`. Raises Diverged.
    """
    own = dataclasses.replace(streams, stage="selffer")
    network = draw(own).to(train.images.device)
    try:
        fit(network, train, val, dataclasses.replace(recipe, trunk_factor=1.0), own, **options)
    except Diverged as error:
        raise Diverged(f"in its first training, {error}") from error
    return copy_state(network)


def fit_arm(
    network: nn.Module, train: Examples, val: Examples, recipe: Recipe, streams: Streams, *, init: Init, **options: Any
) -> History:
    """Train the layers that the init trains; arguments are those of `fit`."""
    if init == "frozen":
        return fit_classifier(network, train, val, recipe, streams, **options)
    if init == "lp-ft":
        return _probe_then_fit(network, train, val, recipe, streams, **options)
    return fit(network, train, val, recipe, streams, **options)


def probing_epochs(epochs: int) -> int:
    """Number of lp-ft's epochs that train the classifier alone. Raises UsageError for a single epoch."""
    if epochs < 2:
        raise UsageError("init lp-ft trains the classifier first and then all layers: it needs two epochs or more")
    return max(1, round(PROBING_SHARE * epochs))


def _probe_then_fit(
    network: nn.Module,
    train: Examples,
    val: Examples,
    recipe: Recipe,
    streams: Streams,
    *,
    on_epoch: Callable[[Epoch], None] = lambda epoch: None,
    **options: Any,
) -> History:
    """Train the classifier, then all layers. Each stage runs the whole schedule; the best epoch may be in either."""
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
