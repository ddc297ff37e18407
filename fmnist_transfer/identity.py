"""Keys of sweeps, cells, studies and registered winners: equal for equal work, so finished work is found again.

key = identity(device="cpu", split="01234/56789", seed=0).key
"""

import hashlib
import json
from typing import Any, NamedTuple

import torch

# Bump by hand when a change can alter results; earlier trainings are then not reused.
NUMERICS_VERSION = 4


class Identity(NamedTuple):
    """Facts that a result depends on, and their key."""

    facts: dict[str, Any]
    """Plain JSON; logged as params."""
    key: str
    """16 hexadecimal digits, equal for equal facts in any order."""


def identity(*, device: str, **facts: Any) -> Identity:
    """Identify work by these facts, `NUMERICS_VERSION`, torch's major.minor and the kind of device.

    Git commit, host and number of workers are left out: results do not depend on them.
    """
    everything = facts | {
        "numerics_version": NUMERICS_VERSION,
        "torch": ".".join(torch.__version__.split(".")[:2]),
        "device": torch.device(device).type,
    }
    return Identity(everything, hashlib.sha256(json.dumps(everything, sort_keys=True).encode()).hexdigest()[:16])
