"""Verified Fashion-MNIST files in, uint8 tensors out: the class halves, train/val/test, and nested fractions.

    half = load_half(Path("data"), split.target)      # fetches what is missing, checks size and sha256
    train = fraction(half.train, percent, streams)

Pixels stay uint8 until a batch is on its device. Other data sets: `datasets.examples_of`, then `half_of`.
"""

import dataclasses
import functools
import hashlib
import os
import struct
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from fmnist_transfer.errors import DataError, UsageError
from fmnist_transfer.seeding import Streams

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
    """images: uint8 [n, 1, 28, 28], or standardised float32 [n, c, h, w]; labels: int64 [n], 0 ... n_classes - 1."""

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
    """Some classes of a data set. Of Fashion-MNIST: per class 5,000 train, 1,000 validation and 1,000 test images."""

    classes: tuple[int, ...]
    train: Examples
    val: Examples
    test: Examples
    data_sha256: str = ""
    """Of Fashion-MNIST's four files together."""

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
    train_images, train_labels, test_images, test_labels = (torch.from_numpy(_read_idx(raw / f.name)) for f in FILES)
    half = half_of(
        Examples(train_images.unsqueeze(1), train_labels.long()),
        Examples(test_images.unsqueeze(1), test_labels.long()),
        classes,
    )
    sha256 = hashlib.sha256("".join(file.sha256 for file in FILES).encode()).hexdigest()
    return dataclasses.replace(half, data_sha256=sha256)


def half_of(train: Examples, test: Examples, classes: Iterable[int]) -> Half:
    """The images of `classes`, labels renumbered 0 ... in ascending order of class.

    Of the training images a constant chooses one in six of each class for validation, whatever the other classes are.

    Args:
        train, test: of a whole data set, labels as it has them.

    Raises:
        DataError: a class has fewer than six training images, or no test image.
    """
    classes = tuple(sorted(set(classes)))
    for c in classes:
        n_train, n_test = (int((examples.labels == c).sum()) for examples in (train, test))
        if n_train < 6 or n_test < 1:
            raise DataError(f"class {c} has {n_train} training and {n_test} test images; it needs six and one")
    kept = torch.tensor(classes)

    def cut(examples: Examples, indices: Tensor) -> Examples:
        return Examples(examples.images[indices], torch.searchsorted(kept, examples.labels[indices]))

    trains, validates = map(torch.from_numpy, train_and_val_indices(train.labels.numpy(), classes))
    tests = torch.isin(test.labels, kept)
    return Half(classes, cut(train, trains), cut(train, validates), cut(test, tests))


def train_and_val_indices(labels: np.ndarray, classes: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Which training images, ascending, train and which validate for these classes.

    labels: [n] of all training images. A constant chooses one image in six of each class for validation.
    """
    train: list[np.ndarray] = []
    val: list[np.ndarray] = []
    for c in classes:
        shuffled = np.random.default_rng([VALIDATION_SEED, c]).permutation(np.flatnonzero(labels == c))
        n_val = len(shuffled) // 6
        val.append(shuffled[:n_val])
        train.append(shuffled[n_val:])
    return np.sort(np.concatenate(train)), np.sort(np.concatenate(val))


@functools.lru_cache(maxsize=1)
def on_device(half: Half, device: str) -> Half:
    """The half on `device`, where it stays for the next task that asks."""
    return half.to(device)


def fraction(train: Examples, percent: int, streams: Streams) -> Examples:
    """`percent` of each class, chosen by the stream `subset`: a smaller fraction is a prefix of a larger one.

    Errors as those of `n_train`.
    """
    order = nested_order(train.labels.cpu(), streams.generator("subset"))
    return train.take(order[: n_train(train, percent)].to(train.labels.device))


def n_train(train: Examples, percent: int) -> int:
    """Number of training images at `percent`: 50 a class and percent point for a half of Fashion-MNIST.

    Of each class `percent` of its images, rounded down. Raises DataError for a class without an image, and UsageError
    where a class would get none, with the smallest percent that works.
    """
    counts = _images_per_class(train.labels)
    fewest = int(counts.min())
    if fewest * percent < 100:
        smallest = -(-100 // fewest)
        raise UsageError(f"--fractions {percent}: leaves no image per class of {fewest}; use {smallest} or more")
    return int((counts * percent // 100).sum())


def nested_order(labels: Tensor, generator: torch.Generator) -> Tensor:
    """Indices [n] of which the first `n_train` at any percent hold that percent of each class, so that fractions nest.

    Each class is permuted by `generator`; then its images are spread evenly over the order, so that classes of one size
    take turns. Raises DataError for a class without an image.
    """
    indices, shares = [], []
    for c, n in enumerate(_images_per_class(labels).tolist()):
        indices.append(torch.nonzero(labels == c).flatten()[torch.randperm(n, generator=generator)])
        shares.append(torch.arange(1, n + 1, dtype=torch.float64) / n)  # of the class, up to and with each image
    return torch.cat(indices)[torch.cat(shares).argsort(stable=True)]


def _images_per_class(labels: Tensor) -> Tensor:
    counts = torch.bincount(labels)
    if not bool(counts.all()):
        raise DataError(f"there are classes without an image: {counts.tolist()}")
    return counts


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
    content = bytearray(path.read_bytes())  # writable, as torch wants its arrays
    n_dimensions = content[3]
    shape = struct.unpack_from(f">{n_dimensions}I", content, 4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * n_dimensions).reshape(shape)
