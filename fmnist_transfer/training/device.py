"""Device, threads, precision and memory of trainings."""

import contextlib
import ctypes
import gc
import socket

import torch

from fmnist_transfer.errors import UsageError
from fmnist_transfer.training.recipe import Precision

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


def choose_device(name: str = "auto", precision: Precision = "float32") -> torch.device:
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
        raise UsageError(f"--precision tf32: {device.type} has none; use float32 or bf16")
    return device


def resolve_precision(name: str, device: str) -> tuple[Precision, str]:
    """Stand-in for engineer core's function, to be dropped in the merge."""
    supported = device == "cpu" and torch.cpu._is_avx512_bf16_supported()
    return ("bf16", "avx512_bf16") if supported else ("float32", "no avx512_bf16")


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


def free_memory() -> None:
    """Release the memory of a failed task for the next one."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def use_precision(precision: Precision) -> None:
    """Allow this process to round float32 products on CUDA to TF32 if `precision` is tf32, else forbid it."""
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = precision == "tf32"


def autocast(precision: Precision, device: torch.device) -> torch.autocast:
    """Use bfloat16 in the forward pass if `precision` is bf16, uncached: a recorded step would reuse stale weights."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16", cache_enabled=False)
