"""Which device is taken."""

import pytest
import torch

from fmnist_transfer.errors import UsageError
from fmnist_transfer.training.device import choose_device


def test_unknown_or_absent_device_is_refused() -> None:
    assert choose_device("cpu").type == "cpu"
    for name in ["abacus"] if torch.cuda.is_available() else ["abacus", "cuda"]:
        with pytest.raises(UsageError, match=f"--device {name}"):
            choose_device(name)
