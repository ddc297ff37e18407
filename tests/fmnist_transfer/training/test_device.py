"""Which device is taken."""

import pytest
import torch

from fmnist_transfer.errors import UsageError
from fmnist_transfer.training.device import choose_device


def test_unknown_or_absent_device_is_refused() -> None:
    assert choose_device("cpu").type == "cpu"
    with pytest.raises(UsageError, match="use auto, cpu"):
        choose_device("abacus")
    if not torch.cuda.is_available():
        with pytest.raises(UsageError, match="not on this machine"):
            choose_device("cuda")
