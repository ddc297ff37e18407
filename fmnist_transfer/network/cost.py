"""Cost of a CNN2: parameters, operations, and time in training on a CPU."""

import itertools
import math
from collections.abc import Iterator

import torch

from fmnist_transfer.network.cnn2 import CNN2, HAND_MADE_SPEC, IMAGE_SIZE, CNN2Spec

VECTOR = 16  # oneDNN pads channels to multiples of this, the float32 values in an AVX-512 register

# Microseconds of a training step per image, fitted (non-negative least squares of relative errors) to 22 networks of
# two and three blocks: an AMD EPYC with avx512_bf16, one thread, bf16, batch 128, the faster of two rounds of 10 steps.
# The relative error is 1.4 % in the median and 7 % at most; in float32, 6 and 21 % after scaling.
PER_IMAGE = 26.5
FIRST, OTHERS, LINEAR = 19.0e-6, 23.8e-6, 32.6e-6  # per multiply-add: first convolution, other ones, `fc1` to `fc3`
ELEMENT = 2.12e-3  # per element that a layer between convolutions reads


def _convolutions(spec: CNN2Spec) -> Iterator[tuple[int, int, int, bool]]:
    """Yield pixels of the output's side, input channels, output channels, and whether pooling follows."""
    side, inputs = IMAGE_SIZE, 1
    for outputs in spec.channels:
        for n_left in reversed(range(spec.convs_per_block)):
            yield side, inputs, outputs, not n_left
            inputs = outputs
        side //= 2


def _linear_products(spec: CNN2Spec) -> int:
    """Return the multiply-adds per image of the fully connected layers."""
    flat = spec.channels[-1] * (IMAGE_SIZE >> len(spec.channels)) ** 2
    return sum(a * b for a, b in itertools.pairwise((flat, spec.fc1, spec.fc2, spec.n_classes)))


def n_parameters(spec: CNN2Spec) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in CNN2(spec).parameters())


def training_mflops(spec: CNN2Spec) -> float:
    """Return the MFLOPs per image of a training step: forward, gradients of weights and of all inputs but the image."""
    first, *others = (side**2 * spec.kernel_size**2 * a * b for side, a, b, _ in _convolutions(spec))
    return 2 * (2 * first + 3 * (sum(others) + _linear_products(spec))) / 1e6


def training_cost(spec: CNN2Spec) -> float:
    """Predict the training time per image on one CPU core, as a multiple of the hand-made network's.

    MFLOPs would be wrong by up to four times: narrow channels cost as much as padded ones, and memory traffic counts.
    """
    return _microseconds(spec) / _microseconds(HAND_MADE_SPEC)


def _microseconds(spec: CNN2Spec) -> float:
    n_layers = 2 if spec.normalisation == "batch" else 1  # with ReLU
    first = others = elements = 0.0
    for side, inputs, outputs, is_pooled in _convolutions(spec):
        channels = padded(outputs)
        products = (side * spec.kernel_size) ** 2 * channels
        if inputs == 1:
            first += products
        else:
            others += products * padded(inputs)
        # Pooling comes before the other layers.
        elements += channels * ((side**2 + (side // 2) ** 2 * n_layers) if is_pooled else side**2 * n_layers)
    return PER_IMAGE + FIRST * first + OTHERS * others + LINEAR * _linear_products(spec) + ELEMENT * elements


def padded(channels: int) -> int:
    return VECTOR * math.ceil(channels / VECTOR)
