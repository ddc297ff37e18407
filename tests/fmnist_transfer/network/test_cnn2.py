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
    for convs, kernel, normalisation, pooling in itertools.product((1, 2), (3, 5), ("none", "batch"), ("max", "avg")):
        spec = CNN2Spec((4, 8), convs, kernel, normalisation, pooling, 0.1, 16, 8, 0.2)
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


def test_resetting_the_classifier_leaves_the_rest_bit_identical() -> None:
    network = fresh_network(CNN2Spec((4, 8)), Streams(0))
    network.train()(torch.randn(8, 1, 28, 28))  # moves the batch-norm buffers
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    network.reset_classifier(Streams(1).generator("classifier"))
    changed = {name for name, tensor in network.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {"fc3.weight", "fc3.bias"}
    assert "blocks.0.2.running_mean" in before


def test_resetting_the_trunk_leaves_the_classifier() -> None:
    network = fresh_network(CNN2Spec((4, 8)), Streams(0))
    network.train()(torch.randn(8, 1, 28, 28))
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    network.reset_trunk(Streams(1).generator("trunk"))
    after = network.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in ("fc3.weight", "fc3.bias"))
    assert not torch.equal(after["blocks.0.0.weight"], before["blocks.0.0.weight"])
    assert torch.equal(after["blocks.0.2.running_mean"], torch.zeros(4))


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
