"""Score a network in evaluation mode, and re-estimate its batch-norm statistics beforehand."""

import copy
import math
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
EVALUATION_BATCH = 64  # on a CPU, where batches of 256 exceed a core's cache and are a fifth slower


@dataclass(frozen=True)
class Scores:
    """Mean cross-entropy in nats and accuracy in [0, 1], in evaluation mode, every image once."""

    loss: float
    accuracy: float


def evaluation_batch(device: torch.device) -> int:
    """Return the number of images per evaluation batch, which affects scores only by rounding."""
    return EVALUATION_BATCH if device.type == "cpu" else 5_000


@torch.inference_mode()
def predict(network: nn.Module, examples: Examples) -> Tensor:
    """Return logits [n, n_classes] in evaluation mode, every image once."""
    network.eval()
    batches = examples.images.split(evaluation_batch(examples.images.device))
    return torch.cat([network(normalise(batch)) for batch in batches])


def features(network: nn.Module, examples: Examples, classifier: str = CLASSIFIER) -> Examples:
    """Replace images by the classifier's inputs, [n, n_features]. Raises UsageError unless its output is the logits."""
    seen: list[tuple[Tensor, Tensor]] = []  # the classifier's input and output in each batch
    module = find_classifier(network, classifier)
    with module.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0], output))):
        logits = predict(network, examples)
    if not seen or not torch.equal(torch.cat([output for _, output in seen]), logits):
        raise UsageError(f"{classifier!r} is no classifier: the network's logits are not what it gives")
    return Examples(torch.cat([inputs for inputs, _ in seen]), examples.labels)


def evaluate(network: nn.Module, examples: Examples) -> Scores:
    """Score every image, without smoothing, dropout or augmentation."""
    logits = predict(network, examples)
    n_correct = int((logits.argmax(1) == examples.labels).sum())
    return Scores(float(F.cross_entropy(logits, examples.labels)), n_correct / len(examples))


@torch.no_grad()
def check_precision(network: nn.Module, images: Tensor, precision: Precision, device: str = "cpu") -> None:
    """Raise UsageError if the network's logits of the first 256 images in bf16 disagree with those in float32.

    The copy that is checked has no biases, which outweigh the images in an untrained network.
    """
    if precision != "bf16" or (torch.device(device).type == "cuda" and not torch.cuda.is_available()):
        return  # Ray's nodes may have a GPU that this machine lacks
    network, images = copy.deepcopy(network).to(device), images[:256].to(device)
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
        found = f"an error of {error:.1%} of their spread over images, more than {BF16_TOLERANCE:.0%}"
        raise UsageError(f"this processor computes the network's logits in bf16 with {found}; use --precision float32")


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
