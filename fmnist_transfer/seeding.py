"""One independent random stream per purpose. Fraction, init, order of the cells and worker do not enter."""

import hashlib
from dataclasses import dataclass
from typing import Literal

import torch

Purpose = Literal["subset", "trunk", "classifier", "batches", "augmentation", "dropout", "sampler", "matched"]
Stage = Literal["source", "target", "selffer"]


@dataclass(frozen=True)
class Streams:
    """The random streams of one replicate (counted from 0) of `--seed`, shared by all its inits.

    Each half, and the first training of `selffer`, has its own stage: with one for all, `random` would start as the
    very network that `pretrained` grew from.
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
