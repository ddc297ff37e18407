"""The device and the precision that are chosen, by the features of the processor."""

import pytest
import torch

from fmnist_transfer.errors import UsageError
from fmnist_transfer.training.device import bf16_support, choose_device, resolve_precision


def test_unknown_or_absent_device_is_refused() -> None:
    assert choose_device("cpu").type == "cpu"
    for name in ["abacus"] if torch.cuda.is_available() else ["abacus", "cuda"]:
        with pytest.raises(UsageError, match=f"--device {name}"):
            choose_device(name)


@pytest.mark.parametrize(
    ("features", "precision", "named"),
    [
        ({"avx512_bf16": True}, "bf16", "avx512_bf16"),
        ({"amx_bf16": True, "avx512_bf16": True}, "bf16", "amx_bf16"),
        ({"avx512_f": True, "avx512_bf16": False}, "float32", "neither"),
        ({"bf16": True}, "float32", "neither"),  # ARM, which nobody has measured
    ],
)
def test_a_cpu_trains_in_bf16_if_it_has_instructions_for_it(
    features: dict[str, bool], precision: str, named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: features)
    chosen, reason = resolve_precision("auto", "cpu")
    assert chosen == precision
    assert named in reason
    assert bf16_support("cpu")[0] == (precision == "bf16")
    for name in ("float32", "bf16"):
        assert resolve_precision(name, "cpu")[0] == name


@pytest.mark.parametrize(("capability", "precision"), [((7, 5), "float32"), ((8, 0), "bf16"), ((9, 0), "bf16")])
def test_a_gpu_trains_in_bf16_if_it_has_tensor_cores_for_it(
    capability: tuple[int, int], precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert resolve_precision("auto", "cuda:1")[0] == precision
    assert resolve_precision("auto", "mps")[0] == "float32"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_precision("auto", "cuda")[0] == "bf16"  # the driver of a cluster of GPUs
