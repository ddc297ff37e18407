"""Keys of sweeps, cells, studies and registered winners: equal for equal work, so finished work is found again."""

import hashlib
import json
from typing import Any, NamedTuple

import torch

# Bump by hand when a change can alter results; earlier trainings are then not reused.
NUMERICS_VERSION = 5


class Identity(NamedTuple):
    """Facts that a result depends on, as plain JSON, and their key of 16 hexadecimal digits."""

    facts: dict[str, Any]
    key: str


def identity(*, device: str, **facts: Any) -> Identity:
    """Identify work by these facts in any order, `NUMERICS_VERSION`, torch's major.minor and the kind of device.

    Git commit, host and number of workers are left out: results do not depend on them.
    """
    release = ".".join(torch.__version__.split(".")[:2])
    everything = facts | {"numerics_version": NUMERICS_VERSION, "torch": release, "device": torch.device(device).type}
    return Identity(everything, hashlib.sha256(json.dumps(everything, sort_keys=True).encode()).hexdigest()[:16])
