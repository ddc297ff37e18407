"""What known networks cost, by hand."""

import pytest

from fmnist_transfer.network.cnn2 import REFERENCE_SPEC, CNN2Spec, forward_mflops, n_parameters, training_mflops


def test_costs_of_known_networks() -> None:
    assert round(forward_mflops(CNN2Spec()), 2) == 2.90
    # 5x5: 2 * (28^2 * 25 * 16 + 14^2 * 25 * 16 * 32) and 2 * (1568 * 256 + 256 * 128 + 128 * 5)
    assert forward_mflops(REFERENCE_SPEC) == pytest.approx((627_200 + 5_017_600 + 802_816 + 65_536 + 1_280) / 1e6)
    # convolutions 416 + 12,832; fully connected 401,664 + 32,896 + 645
    assert n_parameters(REFERENCE_SPEC) == 416 + 12_832 + 401_664 + 32_896 + 645


def test_training_costs_three_passes_less_the_first_input_gradient() -> None:
    spec = CNN2Spec(channels=(32, 64), fc1=256, fc2=128)
    first, second = 2 * 784 * 9 * 32, 2 * 196 * 9 * 32 * 64
    linear = 2 * (3136 * 256 + 256 * 128 + 128 * 5)
    assert training_mflops(spec) == pytest.approx((2 * first + 3 * second + 3 * linear) / 1e6)
