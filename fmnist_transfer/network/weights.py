"""State dicts: copy, digest, compare, and check against a network."""

import hashlib
import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fmnist_transfer.errors import ModelError
from fmnist_transfer.network.cnn2 import CNN2, CNN2Spec

State = dict[str, Tensor]


def copy_state(network: nn.Module) -> State:
    """Copy weights and buffers to the CPU."""
    return {name: tensor.detach().cpu().clone() for name, tensor in network.state_dict().items()}


def distances(start: State, end: State) -> dict[str, float]:
    """Return L2 distances of each layer's parameters (`blocks.0.0`, `fc1` ...), and of `all` together."""
    squares: dict[str, float] = {}
    for name in start:
        layer = name.rpartition(".")[0] or name
        square = float((end[name].double() - start[name].double()).square().sum())
        squares[layer] = squares.get(layer, 0.0) + square
    return {layer: math.sqrt(square) for layer, square in (squares | {"all": sum(squares.values())}).items()}


def weights_digest(state: Mapping[str, Tensor]) -> str:
    """Return the sha256 of names, shapes, types and bytes in order of name; equal if and only if the weights are."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype};".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def check_fit(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], owner: str) -> None:
    """Raise ModelError, listing missing (-) and extra (+) tensors, unless names, shapes and types match `wanted`."""
    actual, expected = ([f"{name} {tuple(t.shape)} {t.dtype}" for name, t in each.items()] for each in (state, wanted))
    differences = [f"- {tensor}" for tensor in expected if tensor not in actual]
    differences += [f"+ {tensor}" for tensor in actual if tensor not in expected]
    if differences:
        raise ModelError("\n".join([f"the weights of {owner} do not fit its network:", *differences]))


def check_state(state: State, spec: CNN2Spec, owner: str) -> None:
    """Raise ModelError unless `state` fits the spec's network exactly (see `check_fit`) and is finite."""
    with torch.device("meta"):
        check_fit(state, CNN2(spec).state_dict(), owner)
    for name, tensor in state.items():
        if not bool(torch.isfinite(tensor).all()):
            raise ModelError(f"{owner}: {name} holds NaN or infinite values")
