"""Starting networks and trained layers of each init, for CNN2 or any network with a named classifier.

README.md has a table of the inits. A source's buffers are copied with its layers. The classifier is always drawn anew,
and within a replicate it is the same for every init and fraction.
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
from fmnist_transfer.network.weights import check_fit, copy_state
from fmnist_transfer.seeding import Streams
from fmnist_transfer.training.fit import Diverged, fit, fit_classifier
from fmnist_transfer.training.recipe import Recipe
from fmnist_transfer.training.score import Epoch, History, Result, score
from sweeps.grid import PERTURB, PROBING_SHARE, SHRINK, TRAITS, Init

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
    start, device = time.perf_counter(), train.images.device
    options["classifier"] = classifier
    if init == "selffer":  # its first training copies no layer, so the trunk factor is not applied
        own = dataclasses.replace(streams, stage="selffer")
        first = draw(own).to(device)
        try:
            fit(first, train, half.val, dataclasses.replace(recipe, trunk_factor=1.0), own, **options)
        except Diverged as error:
            raise Diverged(f"in its first training, {error}") from error
        source = copy_state(first)
    network = starting_network(init, draw, source, streams, classifier).to(device)
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

    `draw` makes a fresh network with the target's number of classes from the streams alone, on the CPU:
    `partial(fresh_network, spec)` for CNN2, `partial(fresh, build, classifier="fc")` for any other. `source` has the
    weights and buffers of the source network, for `selffer` those of its first training. `classifier` names the module
    that outputs the logits; the source's is not used. Raises ModelError if another layer's name, shape or type differs
    between source and network; UsageError if the network has no such module.
    """
    network = draw(streams)
    find_classifier(network, classifier)
    if init == "random":
        return network
    state = network.state_dict()
    source, trunk = (
        {name: tensor for name, tensor in of.items() if not name.startswith(f"{classifier}.")} for of in (source, state)
    )
    check_fit(source, trunk, "the source's trunk")
    parameters = {name for name, _ in network.named_parameters(remove_duplicate=False)}
    noise = streams.generator("matched")
    for name in trunk:
        state[name] = source[name]
        if init == "shrink-perturb" and name in parameters:
            state[name] = SHRINK * source[name] + PERTURB * trunk[name]
        if init == "matched" and name in parameters:
            state[name] = _matched(source[name], noise)
    network.load_state_dict(state)
    return network


def _matched(weights: Tensor, generator: torch.Generator) -> Tensor:
    """Normal draws with exactly the mean and standard deviation of `weights` (Raghu et al. 2019, "Mean Var")."""
    drawn = torch.randn(weights.shape, generator=generator)
    spread = drawn.std(correction=0)
    if spread > 0:
        drawn = (drawn - drawn.mean()) / spread
    return weights.mean() + weights.std(correction=0) * drawn


def fit_arm(
    network: nn.Module, train: Examples, val: Examples, recipe: Recipe, streams: Streams, *, init: Init, **options: Any
) -> History:
    """Run `fit` on the layers that the init trains. Each of lp-ft's two stages runs the whole schedule."""
    if not TRAITS[init].probes:
        return fit(network, train, val, recipe, streams, **options)
    n_probing = recipe.epochs if init == "frozen" else probing_epochs(recipe.epochs)
    probing = dataclasses.replace(recipe, epochs=n_probing)
    probed = fit_classifier(network, train, val, probing, streams, **options)
    if init == "frozen":
        return probed

    def later(epoch: Epoch) -> Epoch:
        return dataclasses.replace(epoch, epoch=epoch.epoch + n_probing, step=epoch.step + probed.final.step)

    rest = dataclasses.replace(recipe, epochs=recipe.epochs - n_probing)
    if on_epoch := options.get("on_epoch"):
        options["on_epoch"] = lambda epoch: on_epoch(later(epoch))
    fitted = fit(network, train, val, rest, streams, **options)
    epochs = probed.epochs + tuple(later(epoch) for epoch in fitted.epochs)
    if probed.best.val_loss <= fitted.best.val_loss:
        return History(epochs, probed.best_epoch, probed.best_state)
    return History(epochs, fitted.best_epoch + n_probing, fitted.best_state)


def probing_epochs(epochs: int) -> int:
    """Number of lp-ft's epochs that train the classifier alone. Raises UsageError for a single epoch."""
    if epochs < 2:
        raise UsageError("init lp-ft trains the classifier first and then all layers: it needs two epochs or more")
    return max(1, round(PROBING_SHARE * epochs))
