"""A small registered network."""

import pytest
import torch
from synthetic import SMALL_SPEC

from fmnist_transfer.network.cnn2 import fresh_network
from fmnist_transfer.seeding import Streams


@pytest.fixture(scope="module")
def registered() -> dict[str, torch.Tensor]:
    """Its state dict, in which no tensor is a constant of a fresh network."""
    network = fresh_network(SMALL_SPEC, Streams(99))
    network.train()(torch.randn(16, 1, 28, 28))
    return {name: tensor + 1 for name, tensor in network.state_dict().items()}
