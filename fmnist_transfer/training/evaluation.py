"""Score a network in evaluation mode, and re-estimate its batch-norm statistics beforehand."""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fmnist_transfer.data.examples import Examples
from fmnist_transfer.errors import UsageError
from fmnist_transfer.network.cnn2 import CLASSIFIER, find_classifier
from fmnist_transfer.training.augmentation import normalise
from fmnist_transfer.training.device import autocast
from fmnist_transfer.training.recipe import Precision

BATCH_NORM_IMAGES, BATCH_NORM_BATCH = 2_048, 256  # most images to re-estimate statistics on; their batch size
# Of the logits' spread over images. Measured on an AVX-512 CPU, root mean square, largest of six seeds: 2.7 % in the
# untrained default and reference networks, 4.5 % in three blocks of two convolutions, 0.4 % after one epoch.
BF16_TOLERANCE = 0.1
CHECKED_IMAGES = 256  # for `check_precision`; takes 0.1 s
EVALUATION_BATCH = 64  # on a CPU, where batches of 256 exceed a core's cache and are a fifth slower


@dataclass(frozen=True)
class Scores:
    """Mean cross-entropy in nats and accuracy in [0, 1], in evaluation mode, every image once."""

    loss: float
    accuracy: float


def evaluation_batch(device: torch.device) -> int:
    """Return the number of images per evaluation batch, which affects scores only by rounding."""
    return EVALUATION_BATCH if device.type == "cpu" else 5_000


def predict(network: nn.Module, examples: Examples) -> Tensor:
    """Return logits [n, n_classes] in evaluation mode, every image once."""
    network.eval()
    return _in_batches(network, examples.images)


def features(network: nn.Module, examples: Examples, classifier: str = CLASSIFIER) -> Examples:
    """Replace images by the classifier's inputs, [n, n_features]. Raises UsageError unless its output is the logits."""
    network.eval()
    calls: list[tuple[Tensor, ...]] = []  # inputs and output

    def inputs_of_classifier(images: Tensor) -> Tensor:
        calls.clear()
        logits = network(images)
        if len(calls) != 1 or len(calls[0]) != 2 or calls[0][1] is not logits:
            raise UsageError(f"{classifier!r} is no classifier: the network's logits are not what it gives")
        return calls[0][0]

    module = find_classifier(network, classifier)
    with module.register_forward_hook(lambda _, inputs, output: calls.append((*inputs, output))):
        return Examples(_in_batches(inputs_of_classifier, examples.images), examples.labels)


@torch.inference_mode()
def _in_batches(function: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    return torch.cat([function(normalise(batch)) for batch in images.split(evaluation_batch(images.device))])


def evaluate(network: nn.Module, examples: Examples) -> Scores:
    """Score every image, without smoothing, dropout or augmentation."""
    logits = predict(network, examples)
    n_correct = int((logits.argmax(1) == examples.labels).sum())
    return Scores(float(F.cross_entropy(logits, examples.labels)), n_correct / len(examples))


@torch.no_grad()
def check_precision(network: nn.Module, images: Tensor, precision: Precision, device: str = "cpu") -> None:
    """Raise UsageError if the network's forward pass in bf16 disagrees with float32; other precisions pass.

    network and images [n, 1, 28, 28] on the CPU; the first 256 are used. A device that this machine lacks (Ray's nodes
    have it) is not checked. The copy that is checked has no biases, which outweigh the images in an untrained network.
    """
    if precision != "bf16" or (torch.device(device).type == "cuda" and not torch.cuda.is_available()):
        return
    network, images = copy.deepcopy(network).to(device), images[:CHECKED_IMAGES].to(device)
    for name, parameter in network.named_parameters():
        if name.endswith("bias"):
            parameter.zero_()
    re_estimate_batch_norm(network, Examples(images, torch.zeros(len(images))))
    network.eval()
    exact = network(normalise(images))
    with autocast(precision, images.device):
        rounded = network(normalise(images)).float()
    error = float((rounded - exact).square().mean().sqrt() / (exact - exact.mean(0)).square().mean().sqrt())
    if not error <= BF16_TOLERANCE:
        raise UsageError(
            f"this processor computes the network's logits in bf16 with an error of {error:.1%} of their spread over "
            f"images, more than {BF16_TOLERANCE:.0%}; use --precision float32"
        )


@torch.no_grad()
def re_estimate_batch_norm(network: nn.Module, train: Examples) -> None:
    """Replace running statistics (59 % initial values after five steps) by means over 2,048 plain training images."""
    norms = {module: module.momentum for module in network.modules() if isinstance(module, _BatchNorm)}
    if not norms:
        return
    network.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # cumulative average
        norm.train()
    images = train.images[:BATCH_NORM_IMAGES]
    for chunk in images.chunk(math.ceil(len(images) / BATCH_NORM_BATCH)):  # equal sizes get equal weights
        network(normalise(chunk))
    for norm, momentum in norms.items():
        norm.momentum = momentum
