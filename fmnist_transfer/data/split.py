"""Split of the ten classes into the source half (FMNIST-2) and the target half (FMNIST-1). Imports no torch."""

from dataclasses import dataclass

from fmnist_transfer.errors import UsageError

CLASS_NAMES = "T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot"
_NAMED = {"0-4": "01234", "5-9": "56789", "even": "02468", "odd": "13579"}


@dataclass(frozen=True)
class Split:
    """Two disjoint halves of the ten classes; `str(split)` is the canonical form, such as `01234/56789`."""

    source: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(set(self.source)) != 5 or not set(self.source) <= set(range(10)):
            raise UsageError(f"a half must be five different classes from 0-9, not {self.source}")
        object.__setattr__(self, "source", tuple(sorted(self.source)))

    @property
    def target(self) -> tuple[int, ...]:
        return tuple(sorted(set(range(10)) - set(self.source)))

    @property
    def suffix(self) -> str:
        """Suffix of model and study names: empty for the default split, else the source half, such as `-s56789`."""
        return "" if self == DEFAULT_SPLIT else "-s" + digits(self.source)

    def __str__(self) -> str:
        return f"{digits(self.source)}/{digits(self.target)}"


DEFAULT_SPLIT = Split((0, 1, 2, 3, 4))


def digits(classes: tuple[int, ...]) -> str:
    return "".join(map(str, classes))


def parse_split(text: str) -> Split:
    """Read SOURCE/TARGET, or `random:S`: the first five of a permutation seeded with S. Raises UsageError."""
    kind, _, seed = text.partition(":")
    if kind == "random" and seed.isdecimal():
        import numpy as np  # imported here: takes 0.1 s, and only this form needs it

        return Split(tuple(int(c) for c in np.random.default_rng(int(seed)).permutation(10)[:5]))
    halves = [_NAMED.get(half, half) for half in text.split("/")]
    if len(halves) != 2 or sorted("".join(halves)) != list("0123456789") or len(halves[0]) != 5:
        examples = "0-4/5-9, even/odd, 01234/56789, or random:S"
        raise UsageError(f"--split {text}: write SOURCE/TARGET with all ten classes, such as {examples}")
    return Split(tuple(map(int, halves[0])))
