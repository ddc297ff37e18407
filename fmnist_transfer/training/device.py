"""Device, threads, precision and memory of trainings."""

import contextlib
import ctypes
import socket

import torch

from fmnist_transfer.errors import UsageError
from fmnist_transfer.training.recipe import Precision, PrecisionFlag

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


def choose_device(name: str = "auto", precision: PrecisionFlag = "auto") -> torch.device:
    """Return the device (`auto`: CUDA, else MPS, else the CPU). Raises UsageError if it or the precision is missing."""
    n_cuda = torch.cuda.device_count() if torch.cuda.is_available() else 0  # the driver may count GPUs it cannot use
    counts = {"cuda": n_cuda, "mps": int(torch.backends.mps.is_available()), "cpu": 1}
    try:
        device = torch.device(next(kind for kind, n in counts.items() if n) if name == "auto" else name)
    except RuntimeError as error:
        raise UsageError(f"--device {name}: use auto, cpu, cuda, cuda:N or mps") from error
    if (device.index or 0) >= counts.get(device.type, 0):
        raise UsageError(f"--device {name}: not on this machine; use --device auto")
    if precision == "tf32" and device.type != "cuda":
        raise UsageError(f"--precision tf32: {device.type} has none; use auto, float32 or bf16")
    return device


def bf16_support(device: str) -> tuple[bool, str]:
    """Return whether a device of this machine has instructions for products of bfloat16 numbers, and how that is known.

    Other CPUs compute them slowly, and some convolutions wrongly (pytorch#183815, #163347, #169688).
    """
    kind = torch.device(device)
    if kind.type == "cuda":
        major, minor = torch.cuda.get_device_capability(kind)
        return major >= 8, f"the GPU's compute capability is {major}.{minor}; tensor cores for bf16 came with 8.0"
    if kind.type != "cpu":
        return False, f"bf16 is not used on {kind.type}"
    names = [name for name in ("amx_bf16", "avx512_bf16") if torch.cpu.get_capabilities().get(name)]
    return bool(names), f"the CPU has {names[0] if names else 'neither amx_bf16 nor avx512_bf16'}"


def resolve_precision(name: PrecisionFlag, device: str) -> tuple[Precision, str]:
    """Return the precision for `--precision`, and the reason. `auto` depends on features of the processor alone.

    A machine without a GPU may drive a Ray cluster with GPUs: `auto` is then bf16, and nodes without it are refused.
    """
    if name != "auto":
        return name, "as --precision says"
    if torch.device(device).type == "cuda" and not torch.cuda.is_available():
        return "bf16", "this machine has no GPU, and those of the cluster must have tensor cores for bf16"
    is_supported, reason = bf16_support(device)
    return "bf16" if is_supported else "float32", reason


def prepare_process() -> None:
    """Use one torch thread per training task, so results do not depend on the number of workers; keep freed memory."""
    torch.set_num_threads(1)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    with contextlib.suppress(OSError, AttributeError):  # else page faults cost a third of a large network's speed
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        # Old versions refuse more than 32 MiB. Setting either value disables glibc's own adaptation, so both are set.
        if mallopt(M_MMAP_THRESHOLD, 2**30) or mallopt(M_MMAP_THRESHOLD, 2**25):
            mallopt(M_TRIM_THRESHOLD, 2**30)


def numerics() -> dict[str, str]:
    """Return what results depend on besides settings and data (torch, its threads, the CPU's kind), and the host."""
    return {
        "trained_on": socket.gethostname(),
        "torch_build": torch.__version__,
        "torch_threads": str(torch.get_num_threads()),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
    }


def use_precision(precision: Precision) -> None:
    """Allow this process to round float32 products on CUDA to TF32 if `precision` is tf32, else forbid it."""
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = precision == "tf32"


def autocast(precision: Precision, device: torch.device) -> torch.autocast:
    """Use bfloat16 in the forward pass if `precision` is bf16, uncached: a recorded step would reuse stale weights."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16", cache_enabled=False)
