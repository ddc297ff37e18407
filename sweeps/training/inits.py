"""Start and train each init, for CNN2 or any network with a named classifier. README.md lists the inits.

A source's buffers are copied with its layers. The classifier is always drawn anew, within a replicate the same one.
"""

import dataclasses
import itertools
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
from fmnist_transfer.training.fit import fit
from fmnist_transfer.training.recipe import Recipe
from fmnist_transfer.training.score import Epoch, Result, score
from sweeps.grid import PERTURB, SHRINK, Init, n_copied_layers, traits
from sweeps.training.probe import fit_probe

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
    """Make the init's starting network, train and score it; arguments as of `starting_network`, `fit_probe`, `fit`."""
    start, device = time.perf_counter(), train.images.device
    if init == "selffer":
        own = dataclasses.replace(streams, stage="selffer")
        first = draw(own).to(device)
        fit(first, train, half.val, recipe, own, **options)
        source = copy_state(first)
    network = starting_network(init, draw, source, streams, classifier).to(device)
    initial_state = copy_state(network)
    if traits(init).probes:
        precision = options.get("precision", "float32")
        history = fit_probe(network, train, half.val, precision=precision, classifier=classifier)
    if init == "frozen":
        on_epoch(history.final)
    else:  # best and final epoch are those of this training alone
        recipe = dataclasses.replace(recipe, epochs=recipe.epochs * traits(init).lengthens)
        history = fit(network, train, half.val, recipe, streams, on_epoch=on_epoch, **options)
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
    weights and buffers to copy from. `classifier` names the module that outputs the logits. Raises ModelError if
    another layer differs between source and network; UsageError for an init or module that the network cannot have.
    """
    network = draw(streams)
    find_classifier(network, classifier)
    if not traits(init).copies:
        return network
    state = network.state_dict()
    source, trunk = trunk_of(source, classifier), trunk_of(state, classifier)
    check_fit(source, trunk, "the source's trunk")
    parameters = {name for name, _ in network.named_parameters(remove_duplicate=False)}
    noise = streams.generator("matched")
    for name in copied_tensors(init, trunk):
        state[name] = source[name]
        if init == "shrink-perturb" and name in parameters:
            state[name] = SHRINK * source[name] + PERTURB * trunk[name]
        if init == "matched" and name in parameters:
            state[name] = _matched(source[name], noise)
    network.load_state_dict(state)
    return network


def trunk_of(state: Mapping[str, Tensor], classifier: str = CLASSIFIER) -> State:
    """Leave the classifier out of the state dict."""
    return {name: tensor for name, tensor in state.items() if not name.startswith(f"{classifier}.")}


def copied_tensors(init: Init, trunk: Mapping[str, Tensor]) -> list[str]:
    """List the tensors of the trunk's state dict that the init copies: for `pretrained@K` those of the first K layers.

    A layer is a module with tensors of its own, in the order of definition; one that has vectors alone, such as batch
    norm, belongs to the layer before it. Raises UsageError if there are fewer than K layers.
    """
    layers: list[list[str]] = [[]]
    modules = itertools.groupby(trunk, key=lambda name: name.rpartition(".")[0])
    for names in (list(names) for _, names in modules):
        if any(trunk[name].dim() > 1 for name in layers[-1]) and any(trunk[name].dim() > 1 for name in names):
            layers.append([])
        layers[-1] += names
    k = n_copied_layers(init) or len(layers)
    if k > len(layers):
        raise UsageError(f"--inits {init}: the network has only {len(layers)} layers besides its classifier")
    return [name for layer in layers[:k] for name in layer]


def _matched(weights: Tensor, generator: torch.Generator) -> Tensor:
    """Normal draws with exactly the mean and standard deviation of `weights` (Raghu et al. 2019, "Mean Var")."""
    drawn = torch.randn(weights.shape, generator=generator)
    if (spread := drawn.std(correction=0)) > 0:
        drawn = (drawn - drawn.mean()) / spread
    return weights.mean() + weights.std(correction=0) * drawn
