"""Where missing Fashion-MNIST files come from: each source puts the decompressed IDX files into a folder.

A source raises with its reason if it cannot; `data.py` verifies whatever it delivers. Files already in the data
directory come before all of these.
"""

import contextlib
import gzip
import io
import shutil
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

SYSTEM_FOLDER = Path("/usr/share/datasets/fashion-mnist")
DEBIAN_PACKAGE = "dataset-fashion-mnist"
MIRROR_TIMEOUT_SECONDS = 10.0


def from_system(folder: Path) -> Path:
    """An installed data set, such as Debian's package."""
    if not SYSTEM_FOLDER.is_dir():
        raise FileNotFoundError(f"{SYSTEM_FOLDER} is not there")
    return _decompress(SYSTEM_FOLDER, folder)


def from_mirrors(folder: Path) -> Path:
    """torchvision's mirrors."""
    import torchvision

    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(MIRROR_TIMEOUT_SECONDS)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            torchvision.datasets.FashionMNIST(str(folder), download=True)
    finally:
        socket.setdefaulttimeout(before)
    return folder / "FashionMNIST" / "raw"


def from_debian(folder: Path) -> Path:
    """Debian's package, downloaded and unpacked without root and without touching the system's package lists."""
    if not shutil.which("apt-get"):
        raise FileNotFoundError("apt-get is not there")
    lists, cache = folder / "lists", folder / "cache"
    (lists / "partial").mkdir(parents=True)
    (cache / "archives" / "partial").mkdir(parents=True)
    apt = ["apt-get", "-qq", "-o", f"Dir::State::Lists={lists}", "-o", f"Dir::Cache={cache}"]
    apt += ["-o", "APT::Sandbox::User=", "-o", "Acquire::http::Timeout=10", "-o", "Acquire::Retries=0"]
    _run([*apt, "update"], folder)
    _run([*apt, "download", DEBIAN_PACKAGE], folder)
    (package,) = folder.glob(f"{DEBIAN_PACKAGE}*.deb")
    _run(["dpkg-deb", "-x", str(package), str(folder / "unpacked")], folder)
    return _decompress(folder / "unpacked" / SYSTEM_FOLDER.relative_to("/"), folder)


def _run(command: list[str], folder: Path) -> None:
    done = subprocess.run(
        command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300, check=False
    )
    if done.returncode:
        raise OSError(f"{command[0]} {command[-1]}: {done.stderr.strip() or f'exit status {done.returncode}'}")


def _decompress(archives: Path, folder: Path) -> Path:
    for archive in sorted(archives.glob("*-ubyte.gz")):
        with gzip.open(archive) as packed, (folder / archive.stem).open("wb") as plain:
            shutil.copyfileobj(packed, plain)
    return folder


SOURCES: tuple[tuple[str, Callable[[Path], Path]], ...] = (
    (f"system data set {SYSTEM_FOLDER}", from_system),
    ("torchvision's mirrors", from_mirrors),
    (f"Debian package {DEBIAN_PACKAGE}", from_debian),
)
