"""One independent random stream per purpose, derived only from (root seed, replicate, purpose, stage).

Fraction, init, order of the cells and worker do not enter, so within a replicate every init sees the same subset,
classifier, batch order, augmentation and dropout.
"""

import hashlib
from dataclasses import dataclass
from typing import Literal

import torch

Purpose = Literal["subset", "trunk", "classifier", "batches", "augmentation", "dropout", "sampler", "matched"]

Stage = Literal["source", "target", "pretraining", "selffer"]


@dataclass(frozen=True)
class Streams:
    """The random streams of one replicate.

    Args:
        root_seed: the user's `--seed`.
        replicate: 0-based number of the set of draws.
        stage: training on the source or the target half. With one stage, both would start from the same trunk and
            classifier, and `random` would be the very network that `pretrained` grew from. Likewise, networks that a
            sweep trains before its cells (source networks, `selffer`) have their own stages.
    """

    root_seed: int
    replicate: int = 0
    stage: Stage = "source"

    def seed(self, purpose: Purpose) -> int:
        """Return a 63-bit seed."""
        text = f"{self.root_seed}/{self.replicate}/{purpose}" + ("" if self.stage == "source" else f"/{self.stage}")
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1

    def generator(self, purpose: Purpose, device: torch.device | str = "cpu") -> torch.Generator:
        return torch.Generator(device).manual_seed(self.seed(purpose))
