"""Where trainings compute: device, threads, precision, memory."""

import contextlib
import ctypes
import gc
import socket

import torch

from fmnist_transfer.errors import UsageError
from fmnist_transfer.training.recipe import Precision

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
MOST_BYTES_KEPT, MOST_BYTES_KEPT_BY_OLD_GLIBC = 2**30, 2**25


def choose_device(name: str = "auto", precision: Precision = "float32") -> torch.device:
    """`auto` is CUDA, else MPS, else the CPU.

    Raises UsageError for a device that is not there, or that does not know the precision.
    """
    device = _find_device(name)
    if precision == "tf32" and device.type != "cuda":
        raise UsageError(f"--precision tf32: {device.type} has none; use float32 or bf16")
    return device


def _find_device(name: str) -> torch.device:
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(kind for kind, is_available in available.items() if is_available))
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"--device {name}: use auto, cpu, cuda, cuda:N or mps") from error
    if not available.get(device.type, False) or (
        device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count()
    ):
        raise UsageError(f"--device {name}: not on this machine; --device auto takes what there is")
    return device


def prepare_process() -> None:
    """One torch thread for each training task, so that results do not depend on the number of workers."""
    torch.set_num_threads(1)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    _keep_freed_memory()


def numerics() -> dict[str, str]:
    """What results depend on besides settings and data: torch, its threads, the CPU's kind; and the host."""
    return {
        "trained_on": socket.gethostname(),
        "torch_build": torch.__version__,
        "torch_threads": str(torch.get_num_threads()),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
    }


def free_memory() -> None:
    """Give back what a failed task held, so that the next one has it."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _keep_freed_memory() -> None:
    """Let glibc keep what a step frees for the next one; elsewhere do nothing.

    Given back to the system, activations of 32 channels and 256 images came back as 17,000 page faults a step, which
    cost a third of the images per second.
    """
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        # Old versions refuse more than 32 MiB; either setting alone would switch off glibc's own adaptation.
        if mallopt(M_MMAP_THRESHOLD, MOST_BYTES_KEPT) or mallopt(M_MMAP_THRESHOLD, MOST_BYTES_KEPT_BY_OLD_GLIBC):
            mallopt(M_TRIM_THRESHOLD, MOST_BYTES_KEPT)


def use_precision(precision: Precision) -> None:
    """Whether this process's float32 products on CUDA may be rounded to TF32."""
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = precision == "tf32"


def autocast(precision: Precision, device: torch.device) -> torch.autocast:
    """bfloat16 in the forward pass, if asked for; without its cache, which would be stale in a recorded step."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16", cache_enabled=False)
