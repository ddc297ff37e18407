"""Scores in evaluation mode, and the batch-norm statistics that go before them."""

import math

import pytest
import torch
from torch import Tensor

from fmnist_transfer.data.examples import Examples, Half
from fmnist_transfer.errors import UserError
from fmnist_transfer.network.cnn2 import CNN2, HAND_MADE_SPEC, REFERENCE_SPEC, CNN2Spec, fresh_network
from fmnist_transfer.network.weights import copy_state, weights_digest
from fmnist_transfer.seeding import Streams
from fmnist_transfer.training.augmentation import normalise
from fmnist_transfer.training.evaluation import EVALUATION_BATCH, check_precision, evaluate, re_estimate_batch_norm

DEEP = CNN2Spec((16, 32, 64), convs_per_block=2)
SPEC = CNN2Spec((4, 8), fc1=16, fc2=8)


class Constant(torch.nn.Module):
    """Logits that say class 0 with the same confidence for every image."""

    def forward(self, images: Tensor) -> Tensor:
        return torch.tensor([[2.0, 0.0]]).expand(len(images), 2)


def test_evaluation_counts_every_image_once() -> None:
    n = EVALUATION_BATCH + 1
    labels = torch.zeros(n, dtype=torch.int64)
    labels[-1] = 1
    scores = evaluate(Constant(), Examples(torch.zeros(n, 1, 28, 28, dtype=torch.uint8), labels))
    right, wrong = math.log(1 + math.exp(-2)), math.log(1 + math.exp(2))
    assert scores.accuracy == (n - 1) / n
    assert scores.loss == pytest.approx(((n - 1) * right + wrong) / n, rel=1e-5)


def test_batch_norm_statistics_are_those_of_the_training_images(half: Half) -> None:
    network = fresh_network(SPEC, Streams(0))
    re_estimate_batch_norm(network, half.train)
    norm, convolution = network.blocks[0][2], network.blocks[0][0]
    with torch.no_grad():
        pooled = torch.nn.functional.max_pool2d(convolution(normalise(half.train.images)), 2)
    assert torch.allclose(norm.running_mean, pooled.mean(dim=(0, 2, 3)), atol=1e-5)
    assert norm.momentum == 0.1


@pytest.mark.parametrize("spec", [HAND_MADE_SPEC, REFERENCE_SPEC, DEEP])
def test_the_forward_pass_in_bf16_agrees_with_float32(spec: CNN2Spec, half: Half) -> None:
    network = fresh_network(spec, Streams(0))
    before = copy_state(network)
    check_precision(network, half.val.images, "bf16")
    assert weights_digest(before) == weights_digest(copy_state(network))


class Broken(CNN2):
    """In bf16 the second convolution leaves out a tap of its kernel, as wrong sums would."""

    def forward(self, images: Tensor) -> Tensor:
        if torch.is_autocast_enabled("cpu"):
            self.blocks[1][0].weight[:, :, 0, 0] = 0
        return super().forward(images)


@pytest.mark.parametrize("spec", [HAND_MADE_SPEC, REFERENCE_SPEC])
def test_wrong_sums_in_bf16_are_refused_and_float32_is_named(spec: CNN2Spec, half: Half) -> None:
    network = Broken(spec)
    network.load_state_dict(fresh_network(spec, Streams(0)).state_dict())
    with pytest.raises(UserError, match="--precision float32"):
        check_precision(network, half.val.images, "bf16")
    check_precision(network, half.val.images, "float32")
