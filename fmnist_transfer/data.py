"""Verified Fashion-MNIST files in, uint8 tensors out: the class halves, train/val/test, and nested fractions.

    half = load_half(Path("data"), split.target)      # fetches what is missing, checks size and sha256
    order = nested_order(half.train.labels, streams.generator("subset"))
    subset = half.train.take(order[: n_train(half.train, percent)])

Pixels stay uint8 until a batch is on its device.
"""

import dataclasses
import functools
import hashlib
import os
import struct
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from fmnist_transfer.errors import DataError, UsageError

# Of the 60,000 training images, pixels scaled to [0, 1].
PIXEL_MEAN, PIXEL_STD = 0.2860, 0.3530
VALIDATION_SEED = 20_170_825  # which images validate: depends on no flag and no split


class IdxFile(NamedTuple):
    """One decompressed IDX file. Archives differ between packagings; these bytes do not."""

    name: str
    n_bytes: int
    sha256: str


FILES: tuple[IdxFile, ...] = (
    IdxFile("train-images-idx3-ubyte", 47_040_016, "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888"),
    IdxFile("train-labels-idx1-ubyte", 60_008, "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9"),
    IdxFile("t10k-images-idx3-ubyte", 7_840_016, "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b"),
    IdxFile("t10k-labels-idx1-ubyte", 10_008, "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34"),
)


@dataclass(frozen=True)
class Examples:
    """images: uint8 [n, 1, 28, 28]; labels: int64 [n], 0 ... n_classes - 1."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Tensor) -> Self:
        return type(self)(self.images[indices], self.labels[indices])

    def first(self, n: int) -> Self:
        return type(self)(self.images[:n], self.labels[:n])

    def to(self, device: torch.device | str) -> Self:
        return type(self)(self.images.to(device), self.labels.to(device))

    def share_memory(self) -> Self:
        """Move the tensors where worker processes can read them without a copy."""
        self.images.share_memory_()
        self.labels.share_memory_()
        return self


@dataclass(frozen=True)
class Half:
    """One half of Fashion-MNIST: per class 5,000 train, 1,000 validation and 1,000 test images."""

    classes: tuple[int, ...]
    train: Examples
    val: Examples
    test: Examples
    data_sha256: str
    """Of the four files together."""

    def to(self, device: torch.device | str) -> Self:
        parts = {name: getattr(self, name).to(device) for name in ("train", "val", "test")}
        return dataclasses.replace(self, **parts)

    def share_memory(self) -> Self:
        for examples in (self.train, self.val, self.test):
            examples.share_memory()
        return self


def load_half(data_dir: Path, classes: tuple[int, ...]) -> Half:
    """Load the images of `classes`, labels renumbered 0 ... in ascending order of class. Raises DataError."""
    raw = ensure_files(data_dir)
    train_images, train_labels, test_images, test_labels = (_read_idx(raw / file.name) for file in FILES)
    train, val = train_and_val_indices(train_labels, classes)
    test = np.flatnonzero(np.isin(test_labels, classes))
    return Half(
        classes,
        _examples(train_images, train_labels, train, classes),
        _examples(train_images, train_labels, val, classes),
        _examples(test_images, test_labels, test, classes),
        hashlib.sha256("".join(file.sha256 for file in FILES).encode()).hexdigest(),
    )


def train_and_val_indices(labels: np.ndarray, classes: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Which of the 60,000 training images, ascending, train and which validate for these classes.

    labels: [60,000]. A constant chooses one image in six of each class for validation.
    """
    train: list[np.ndarray] = []
    val: list[np.ndarray] = []
    for c in classes:
        shuffled = np.random.default_rng([VALIDATION_SEED, c]).permutation(np.flatnonzero(labels == c))
        n_val = len(shuffled) // 6
        val.append(shuffled[:n_val])
        train.append(shuffled[n_val:])
    return np.sort(np.concatenate(train)), np.sort(np.concatenate(val))


def _examples(images: np.ndarray, labels: np.ndarray, indices: np.ndarray, classes: tuple[int, ...]) -> Examples:
    return Examples(
        torch.from_numpy(images[indices]).unsqueeze(1),
        torch.from_numpy(np.searchsorted(classes, labels[indices]).astype(np.int64)),
    )


@functools.lru_cache(maxsize=1)
def on_device(half: Half, device: str) -> Half:
    """The half on `device`, where it stays for the next task that asks."""
    return half.to(device)


def n_train(train: Examples, percent: int) -> int:
    """Number of training images at `percent`: 50 a class and percent point for a half of Fashion-MNIST.

    Raises UsageError where a class would get none, with the smallest percent that works.
    """
    n_classes = int(train.labels.max()) + 1
    per_class = len(train) // n_classes
    if per_class * percent < 100:
        smallest = -(-100 // per_class)
        raise UsageError(f"--fractions {percent}: leaves no image per class of {per_class}; use {smallest} or more")
    return n_classes * (per_class * percent // 100)


def nested_order(labels: Tensor, generator: torch.Generator) -> Tensor:
    """Indices [n] of which every prefix of a multiple of n_classes is class-balanced, so that prefixes nest.

    Each class is permuted by `generator`; then the classes take turns. Raises DataError for unbalanced classes.
    """
    counts = torch.bincount(labels)
    if not bool((counts == counts[0]).all()):
        raise DataError(f"classes are not balanced: {counts.tolist()} images")
    per_class = []
    for c in range(len(counts)):
        indices = torch.nonzero(labels == c).flatten()
        per_class.append(indices[torch.randperm(len(indices), generator=generator)])
    return torch.stack(per_class, dim=1).flatten()


def default_data_dir() -> Path:
    """`FMNIST_DATA_DIR`, else the user's cache directory."""
    import platformdirs

    return Path(os.environ.get("FMNIST_DATA_DIR") or platformdirs.user_cache_dir("fmnist-transfer"))


def ensure_files(data_dir: Path) -> Path:
    """The folder `data_dir/FashionMNIST/raw` with the four files, verified; missing ones are fetched.

    A file that is there is never replaced: if its size or sha256 is wrong, DataError says so. Files are put in place
    by renaming, so a killed download never looks finished and two processes may fetch at once.
    """
    raw = data_dir / "FashionMNIST" / "raw"
    missing = [file for file in FILES if not (raw / file.name).exists()]
    for file in FILES:
        if file not in missing:
            _verify(raw / file.name, file, advice="Delete it and run the same command again to fetch it anew.")
    if missing:
        _fetch(raw, missing)
    return raw


def _verify(path: Path, file: IdxFile, advice: str = "") -> None:
    try:
        n_bytes = path.stat().st_size
        if n_bytes != file.n_bytes:
            raise DataError(
                f"{path}: expected {file.n_bytes} bytes, found {n_bytes}: truncated or altered. {advice}".rstrip()
            )
        with path.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    if found != file.sha256:
        raise DataError(
            f"{path}: expected sha256 {file.sha256}, found {found}: altered or mislabelled. {advice}".rstrip()
        )


def _fetch(raw: Path, missing: Sequence[IdxFile]) -> None:
    from fmnist_transfer.sources import SOURCES  # torchvision and the like: only where something is missing

    reasons = []
    try:
        raw.mkdir(parents=True, exist_ok=True)
        for name, fetch in SOURCES:
            with tempfile.TemporaryDirectory(dir=raw, prefix=".fetch-") as folder:
                try:
                    found = fetch(Path(folder))
                    for file in missing:
                        _verify(found / file.name, file)
                except Exception as error:  # any failure of a source is its reason in the one message below
                    reasons.append(f"{name}: {(str(error).strip() or repr(error)).splitlines()[-1]}")
                    continue
                for file in missing:
                    _put_in_place(found / file.name, raw / file.name)
                return
    except OSError as error:
        raise DataError(
            f"cannot write to {raw}: {error.strerror}; choose another folder with --data-dir or FMNIST_DATA_DIR"
        ) from error
    listing = "".join(f"\n  {reason}" for reason in reasons)
    raise DataError(
        f"no source has Fashion-MNIST ({', '.join(file.name for file in missing)}). Tried:\n  files in {raw}: "
        f"not there{listing}\nPut the four decompressed files there, or give --data-dir."
    )


def _put_in_place(path: Path, destination: Path) -> None:
    with path.open("rb") as stream:
        os.fsync(stream.fileno())
    os.replace(path, destination)


def _read_idx(path: Path) -> np.ndarray:
    """Read a verified IDX file of unsigned bytes: two zeros, type 8, number of dimensions, sizes, data."""
    content = path.read_bytes()
    n_dimensions = content[3]
    shape = struct.unpack_from(f">{n_dimensions}I", content, 4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * n_dimensions).reshape(shape)
