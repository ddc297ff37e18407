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
from typing import Any

import numpy as np

from fmnist_transfer.data import files
from fmnist_transfer.network.cnn2 import CNN2Spec
from fmnist_transfer.store.places import mend

PUBLISHED = files.FILES
PER_CLASS = {"train": 60, "t10k": 20}
SMALL_SPEC = CNN2Spec((4, 8), fc1=16, fc2=8, fc_dropout=0.5)


def write(folder: Path) -> tuple[files.IdxFile, ...]:
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


def describe(folder: Path) -> tuple[files.IdxFile, ...]:
    """What `files.FILES` says of the real files, of those below `folder`."""
    contents = {file.name: (folder / "FashionMNIST" / "raw" / file.name).read_bytes() for file in files.FILES}
    return tuple(
        files.IdxFile(name, len(content), hashlib.sha256(content).hexdigest()) for name, content in contents.items()
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
    mend(destination / "mlflow.db", mend_copy=True, may_write=True)
    return destination / "mlflow.db"


def entry_point(module: str) -> Any:
    """The module with the `command` that `python -m MODULE` runs: a folder's is in its `__main__`."""
    found = importlib.import_module(module)
    return found if hasattr(found, "command") else importlib.import_module(f"{module}.__main__")


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's `&` would have it ignored
    folder, module, *arguments = sys.argv[1:]
    files.FILES = describe(Path(folder))
    sys.exit(entry_point(module).command([*arguments, "--data-dir", folder]))
