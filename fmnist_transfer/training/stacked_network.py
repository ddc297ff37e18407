"""Several CNN2s of one spec as one module: grouped convolutions, batched products, parameters with a new first axis."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fmnist_transfer.data.examples import Examples
from fmnist_transfer.network.cnn2 import CNN2, CNN2Spec
from fmnist_transfer.network.weights import State
from fmnist_transfer.seeding import Streams
from fmnist_transfer.training.evaluation import BATCH_NORM_BATCH


@dataclass(frozen=True)
class Group:
    """Networks that share images, batch order, augmentation and dropout: the inits of a replicate."""

    networks: tuple[CNN2, ...]
    train: Examples
    streams: Streams


class StackedCNN2(nn.Module):
    """The networks of all groups, parameters and buffers stacked along a new first axis of length K.

    Args:
        masks: per group, the generator of its dropout masks, on the networks' device.
    """

    def __init__(self, groups: Sequence[Group], masks: Sequence[torch.Generator]):
        super().__init__()
        networks = [network for group in groups for network in group.networks]
        self.spec: CNN2Spec = networks[0].spec
        self.k = len(networks)
        self._sizes = [len(group.networks) for group in groups]
        self._masks = list(masks)
        # While batch-norm statistics are re-estimated: the number of batches averaged so far.
        self._estimating: int | None = None
        self._names: list[str] = []
        for name, parameter in networks[0].named_parameters():
            stacked = torch.stack([network.get_parameter(name).detach() for network in networks])
            self.register_parameter(_key(name), nn.Parameter(stacked.to(parameter.device)))
            self._names.append(name)
        for name, _ in networks[0].named_buffers():
            self.register_buffer(_key(name), torch.stack([network.get_buffer(name) for network in networks]))
            self._names.append(name)

    def stacked(self, name: str) -> Tensor:
        """Return the parameter or buffer that one network calls `name`, [K, ...]."""
        tensor: Tensor = getattr(self, _key(name))
        return tensor

    def state(self, k: int) -> State:
        """Copy network k's weights and buffers to the CPU, named as in a `CNN2`."""
        return {name: self.stacked(name)[k].detach().cpu().clone() for name in self._names}

    def forward(self, images: Tensor) -> Tensor:
        """[n, K, 28, 28], one image per network -> logits [K, n, n_classes]."""
        hidden = images
        for i in range(len(self.spec.channels)):
            hidden = self._block(i, hidden)
        n = len(hidden)
        hidden = hidden.reshape(n, self.k, -1).transpose(0, 1)  # [K, n, features]
        for name in ("fc1", "fc2"):
            hidden = self._dropout(torch.relu(self._linear(name, hidden)), self.spec.fc_dropout)
        return self._linear("fc3", hidden)

    def _linear(self, name: str, hidden: Tensor) -> Tensor:
        weight, bias = self.stacked(f"{name}.weight"), self.stacked(f"{name}.bias")
        return torch.baddbmm(bias.unsqueeze(1), hidden, weight.transpose(1, 2))

    def _block(self, i: int, hidden: Tensor) -> Tensor:
        """Apply block i, its layers ordered and named as by `cnn2._block`."""
        spec, layer = self.spec, itertools.count()
        for conv in range(spec.convs_per_block):
            last = conv == spec.convs_per_block - 1
            name = f"blocks.{i}.{next(layer)}"
            weight, bias = self.stacked(f"{name}.weight").flatten(0, 1), self.stacked(f"{name}.bias").flatten()
            hidden = F.conv2d(hidden, weight, bias, padding=spec.kernel_size // 2, groups=self.k)
            if last and spec.pooling == "max":
                hidden = F.max_pool2d(hidden, 2)
                next(layer)
            if spec.normalisation == "batch":
                hidden = self._batch_norm(f"blocks.{i}.{next(layer)}", hidden)
            hidden = torch.relu(hidden)
            next(layer)
            if last and spec.pooling == "avg":
                hidden = F.avg_pool2d(hidden, 2)
                next(layer)
        if spec.conv_dropout and self.training:
            n, channels = len(hidden), spec.channels[i]
            mask = self._mask((n, channels, 1, 1), spec.conv_dropout, hidden)  # [K, n, channels, 1, 1]
            hidden = hidden * mask.transpose(0, 1).reshape(n, self.k * channels, 1, 1)
        return hidden

    def _batch_norm(self, name: str, hidden: Tensor, momentum: float = 0.1) -> Tensor:
        parts = [self.stacked(f"{name}.{part}") for part in ("running_mean", "running_var", "weight", "bias")]
        mean, variance, weight, bias = (part.flatten() for part in parts)
        if self._estimating is not None:
            momentum = 1 / (1 + self._estimating)
        elif self.training:
            self.stacked(f"{name}.num_batches_tracked").add_(1)
        batch_statistics = self.training or self._estimating is not None
        return F.batch_norm(hidden, mean, variance, weight, bias, batch_statistics, momentum)

    @torch.no_grad()
    def re_estimate_batch_norm(self, images: Tensor) -> None:
        """Do as `evaluation.re_estimate_batch_norm`. images: float32 [n, K, 28, 28]."""
        if self.spec.normalisation != "batch":
            return
        self.eval()
        chunks = images.chunk(math.ceil(len(images) / BATCH_NORM_BATCH))
        for i, chunk in enumerate(chunks):
            self._estimating = i
            self(chunk)
        self._estimating = None
        for name in self._names:
            if name.endswith("num_batches_tracked"):
                self.stacked(name).fill_(len(chunks))

    def _dropout(self, hidden: Tensor, probability: float) -> Tensor:
        if not probability or not self.training:
            return hidden
        return hidden * self._mask(tuple(hidden.shape[1:]), probability, hidden)

    def _mask(self, shape: tuple[int, ...], probability: float, like: Tensor) -> Tensor:
        """Draw [K, *shape] of zeros and 1/(1 - p); the networks of a group share a mask."""
        masks = [
            torch.empty(shape, device=like.device, dtype=like.dtype)
            .bernoulli_(1 - probability, generator=generator)
            .div_(1 - probability)
            .expand(size, *shape)
            for generator, size in zip(self._masks, self._sizes, strict=True)
        ]
        return torch.cat(masks)


def _key(name: str) -> str:
    return name.replace(".", "_")  # torch allows no dot in a registered name
