"""Shapes, costs, and what resetting the classifier changes."""

import itertools
import json

import pytest
import torch

from fmnist_transfer.network.cnn2 import CNN2, REFERENCE_SPEC, CNN2Spec, fresh_network
from fmnist_transfer.network.weights import weights_digest
from fmnist_transfer.seeding import Streams


def test_every_kind_of_network_maps_images_to_logits() -> None:
    images = torch.randn(3, 1, 28, 28)
    for convs, kernel, normalisation in itertools.product((1, 2), (3, 5), ("none", "batch")):
        spec = CNN2Spec((4, 8), convs, kernel, normalisation, 16, 8, 0.2)
        assert CNN2(spec)(images).shape == (3, 5)


def test_pooling_before_relu_is_the_same_function() -> None:
    network = fresh_network(CNN2Spec((4, 8), normalisation="none"), Streams(0))
    images = torch.randn(3, 1, 28, 28)
    convolution = network.blocks[0][0]
    other_order = torch.nn.functional.max_pool2d(torch.relu(convolution(images)), 2)
    assert torch.equal(network.blocks[0](images), other_order)


def test_the_gradient_keeps_the_layout_of_the_blocks_output_and_its_values() -> None:
    network, images = fresh_network(CNN2Spec((4, 8), fc_dropout=0.0), Streams(0)), torch.randn(6, 1, 28, 28)
    layouts = []
    relu = network.blocks[1][-1]
    assert isinstance(relu, torch.nn.ReLU)
    relu.inplace = False  # hooks need it
    relu.register_full_backward_hook(lambda module, inputs, outputs: layouts.append(outputs[0].stride()))
    network(images).square().sum().backward()
    assert layouts == [(8 * 49, 1, 8 * 7, 8)]
    gradients = [parameter.grad for parameter in network.parameters()]
    network.zero_grad()
    flat = network.blocks(images).flatten(1)
    network.fc3(torch.relu(network.fc2(torch.relu(network.fc1(flat))))).square().sum().backward()
    torch.testing.assert_close(gradients, [parameter.grad for parameter in network.parameters()])


def test_trunk_and_classifier_have_streams_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    before = fresh_network(CNN2Spec((4, 8)), Streams(0)).state_dict()
    seed = Streams.seed
    monkeypatch.setattr(Streams, "seed", lambda streams, purpose: seed(streams, purpose) + (purpose == "classifier"))
    after = fresh_network(CNN2Spec((4, 8)), Streams(0)).state_dict()
    assert {name for name in after if not torch.equal(after[name], before[name])} == {"fc3.weight", "fc3.bias"}


def test_initialisation_is_torchs_default_distribution() -> None:
    weight = fresh_network(CNN2Spec(), Streams(0)).fc1.weight.detach()
    bound = 1 / 1_568**0.5
    assert float(weight.abs().max()) <= bound
    assert float(weight.std()) == pytest.approx(bound / 3**0.5, rel=0.01)


def test_equal_streams_give_equal_weights() -> None:
    digests = [
        weights_digest(fresh_network(CNN2Spec(), Streams(*key)).state_dict()) for key in ((0, 0), (0, 0), (0, 1))
    ]
    assert digests[0] == digests[1] != digests[2]


def test_spec_survives_json() -> None:
    assert CNN2Spec(**json.loads(json.dumps(REFERENCE_SPEC.to_dict()))) == REFERENCE_SPEC


@pytest.mark.parametrize(
    "field", [{"channels": ()}, {"kernel_size": 4}, {"fc_dropout": 1.0}, {"normalisation": "layer"}]
)
def test_impossible_spec_is_refused(field: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(field))):
        CNN2Spec(**field)
