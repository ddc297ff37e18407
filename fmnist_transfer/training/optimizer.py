"""The optimizer of a recipe, with separate learning rates for trunk and classifier."""

from typing import Any

import torch
from torch import Tensor, nn

from fmnist_transfer.training.recipe import Recipe

FACTOR = "learning_rate_factor"  # key of a parameter group


def make_optimizer(
    network: nn.Module, recipe: Recipe, classifier: str, *, recorded: bool = False
) -> torch.optim.Optimizer:
    """Make the recipe's optimizer.

    Args:
        classifier: prefix of the names of the classifier's parameters.
        recorded: keep learning rates in tensors on the device, for steps in a CUDA graph.
    """
    parameters = _parameter_groups(network, recipe.trunk_factor, classifier)
    device = next(network.parameters()).device
    learning_rate: float | Tensor = recipe.learning_rate
    if recorded:
        learning_rate = torch.tensor(recipe.learning_rate, device=device)
        parameters = [group | {"lr": learning_rate.clone()} for group in parameters]  # one tensor per group
    weight_decay = recipe.weight_decay
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(
            parameters, learning_rate, momentum=0.9, nesterov=True, weight_decay=weight_decay, fused=True
        )
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[recipe.optimizer]
    capturable = recorded and device.type == "cuda"
    return kind(parameters, learning_rate, weight_decay=weight_decay, fused=True, capturable=capturable)


def _parameter_groups(network: nn.Module, trunk_factor: float, classifier: str) -> list[dict[str, Any]]:
    """Return one group with factor 1, or one each for classifier and trunk."""
    if trunk_factor == 1:
        return [{"params": list(network.parameters()), FACTOR: 1.0}]
    groups: dict[float, list[nn.Parameter]] = {1.0: [], trunk_factor: []}
    for name, parameter in network.named_parameters():
        groups[1.0 if name.startswith(classifier) else trunk_factor].append(parameter)
    return [{"params": group, FACTOR: factor} for factor, group in groups.items()]
