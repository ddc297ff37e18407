"""State dicts: how far apart they are, and whether they fit a network."""

import pytest
import torch

from fmnist_transfer.errors import ModelError
from fmnist_transfer.network.cnn2 import CNN2Spec, fresh_network
from fmnist_transfer.network.weights import check_state, distances
from fmnist_transfer.seeding import Streams

SPEC = CNN2Spec((4, 8), fc1=16, fc2=8)


def test_distance_is_of_each_layer() -> None:
    start = fresh_network(SPEC, Streams(0)).state_dict()
    end = {name: tensor.clone() for name, tensor in start.items()}
    end["fc1.weight"][0, :2] += torch.tensor([3.0, 4.0])
    end["fc1.bias"][0] += 12.0
    end["fc3.weight"][0, 0] += 84.0
    found = distances(start, end)
    assert (found["fc1"], found["fc2"], found["fc3"]) == pytest.approx((13.0, 0.0, 84.0), rel=1e-6)
    assert found["all"] == pytest.approx(85.0)
    assert set(found) == {name.rpartition(".")[0] for name in start} | {"all"}


def test_ten_outputs_are_a_different_network() -> None:
    state = fresh_network(CNN2Spec(n_classes=10), Streams(0)).state_dict()
    with pytest.raises(ModelError, match=r"- fc3.weight \(5, 128\)"):
        check_state(dict(state), CNN2Spec(), "a model")
