"""What known networks cost, by hand."""

import pytest

from fmnist_transfer.network.cnn2 import HAND_MADE_SPEC, REFERENCE_SPEC, CNN2Spec
from fmnist_transfer.network.cost import n_parameters, training_cost, training_mflops


def test_costs_of_known_networks() -> None:
    # 5x5: 2 * (28^2 * 25 * 16 + 14^2 * 25 * 16 * 32) and 2 * (1568 * 256 + 256 * 128 + 128 * 5)
    expected = (2 * 627_200 + 3 * (5_017_600 + 802_816 + 65_536 + 1_280)) / 1e6
    assert training_mflops(REFERENCE_SPEC) == pytest.approx(expected)
    # convolutions 416 + 12,832; fully connected 401,664 + 32,896 + 645
    assert n_parameters(REFERENCE_SPEC) == 416 + 12_832 + 401_664 + 32_896 + 645


def test_training_costs_three_passes_less_the_first_input_gradient() -> None:
    spec = CNN2Spec(channels=(32, 64), fc1=256, fc2=128)
    first, second = 2 * 784 * 9 * 32, 2 * 196 * 9 * 32 * 64
    linear = 2 * (3136 * 256 + 256 * 128 + 128 * 5)
    assert training_mflops(spec) == pytest.approx((2 * first + 3 * second + 3 * linear) / 1e6)


def test_the_unit_of_cost_is_the_hand_made_network() -> None:
    assert training_cost(HAND_MADE_SPEC) == 1.0


def test_channels_cost_as_much_as_the_next_multiple_of_16() -> None:
    def cost(*channels: int) -> float:
        return training_cost(CNN2Spec(channels=channels, convs_per_block=2))

    assert cost(3, 32) == cost(8, 32) == cost(16, 32) < cost(17, 32)
    assert cost(16, 20) < cost(16, 32)  # `fc1` has fewer inputs, the convolutions cost the same
    assert cost(16, 20) > 0.95 * cost(16, 32)


def test_what_costs_nothing_in_operations_costs_time() -> None:
    plain = CNN2Spec(normalisation="none")
    assert training_mflops(CNN2Spec()) == training_mflops(plain)
    assert training_cost(plain) < training_cost(CNN2Spec())


@pytest.mark.parametrize(
    ("spec", "microseconds"),  # measured as `cost.py` says; the hand-made network took 284
    [
        (CNN2Spec(channels=(16, 48), convs_per_block=2, fc1=128, fc2=64), 380),
        (CNN2Spec(channels=(32, 64), fc1=128, fc2=64), 244),
        (CNN2Spec(channels=(16, 32), kernel_size=5, fc1=128, fc2=64), 167),
        (CNN2Spec(channels=(16, 32, 64), fc1=128, fc2=64), 145),
        (CNN2Spec(channels=(32, 64, 128), convs_per_block=2, fc1=128, fc2=64), 1_040),
        (CNN2Spec(channels=(16, 32), normalisation="none"), 114),
    ],
)
def test_cost_predicts_measured_seconds(spec: CNN2Spec, microseconds: float) -> None:
    assert training_cost(spec) == pytest.approx(microseconds / 284, rel=0.08)
