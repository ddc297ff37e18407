"""A small stand-in for Fashion-MNIST with its file layout, and a launcher that runs a command on it.

    python tests/synthetic.py FOLDER tuning.search --trials 2 ...

runs the real command in a process of its own, with FOLDER's files in place of the published ones.
"""

import contextlib
import hashlib
import importlib
import shutil
import signal
import sqlite3
import struct
import sys
from pathlib import Path

import numpy as np

from fmnist_transfer import data
from fmnist_transfer.store.moved_folder import repair

PUBLISHED = data.FILES
PER_CLASS = {"train": 60, "t10k": 20}


def write(folder: Path) -> tuple[data.IdxFile, ...]:
    """Write the four files below `folder`, as torchvision lays them out, and describe them."""
    raw = folder / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    rng = np.random.default_rng(0)
    patterns = rng.integers(0, 256, (10, 28, 28))
    for part, per_class in PER_CLASS.items():
        labels = rng.permutation(np.repeat(np.arange(10), per_class))
        images = (0.5 * patterns[labels] + 0.5 * rng.integers(0, 256, (len(labels), 28, 28))).astype(np.uint8)
        header = struct.pack(">HBBIII", 0, 8, 3, len(images), 28, 28)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(
            struct.pack(">HBBI", 0, 8, 1, len(labels)) + labels.astype(np.uint8).tobytes()
        )
    return describe(folder)


def describe(folder: Path) -> tuple[data.IdxFile, ...]:
    """What `data.FILES` says of the real files, of those below `folder`."""
    contents = {file.name: (folder / "FashionMNIST" / "raw" / file.name).read_bytes() for file in data.FILES}
    return tuple(
        data.IdxFile(name, len(content), hashlib.sha256(content).hexdigest()) for name, content in contents.items()
    )


def copy_database(source: Path, destination: Path) -> Path:
    """Copy a sqlite file that this process may have open; a plain copy would drop the locks of its connections."""
    destination.parent.mkdir(parents=True, exist_ok=True)
    with (
        contextlib.closing(sqlite3.connect(source)) as one,
        contextlib.closing(sqlite3.connect(destination)) as other,
    ):
        one.backup(other)
        other.execute("PRAGMA journal_mode=WAL")
    return destination


def copy_store(source: Path, destination: Path) -> Path:
    """Copy a store's folder, databases and artifacts, and mend its places; the copy's `mlflow.db`."""
    for database in source.glob("*.db"):
        copy_database(database, destination / database.name)
    if (source / "artifacts").exists():
        shutil.copytree(source / "artifacts", destination / "artifacts")
    repair(destination / "mlflow.db")
    return destination / "mlflow.db"


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's `&` would have it ignored
    folder, module, *arguments = sys.argv[1:]
    data.FILES = describe(Path(folder))
    sys.exit(importlib.import_module(module).command([*arguments, "--data-dir", folder]))
