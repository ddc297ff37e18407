"""Cost of a network: parameters and floating-point operations."""

import itertools

import torch

from fmnist_transfer.network.cnn2 import CNN2, IMAGE_SIZE, CNN2Spec


def n_parameters(spec: CNN2Spec) -> int:
    """Count the trainable parameters."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in CNN2(spec).parameters())


def forward_mflops(spec: CNN2Spec) -> float:
    """Return the millions of floating-point operations per image of a forward pass: convolutions and linear layers.

    A multiply-add counts as two. 16/32 channels of 3x3 with fc 256/128: 2.9.
    """
    flops, side, in_channels = 0, IMAGE_SIZE, 1
    for channels in spec.channels:
        for _ in range(spec.convs_per_block):
            flops += 2 * side**2 * spec.kernel_size**2 * in_channels * channels
            in_channels = channels
        side //= 2
    widths = (in_channels * side**2, spec.fc1, spec.fc2, spec.n_classes)
    flops += sum(2 * a * b for a, b in itertools.pairwise(widths))
    return flops / 1e6


def training_mflops(spec: CNN2Spec) -> float:
    """Return the MFLOPs per image of a training step: forward, gradients of weights and of all inputs but the image."""
    first_convolution = 2 * IMAGE_SIZE**2 * spec.kernel_size**2 * spec.channels[0] / 1e6
    return 3 * forward_mflops(spec) - first_convolution
