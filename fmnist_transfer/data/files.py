"""Find, fetch, verify and read Fashion-MNIST's four IDX files; those in the data directory come first."""

import gzip
import hashlib
import os
import subprocess
import tempfile
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fmnist_transfer.errors import DataError


class IdxFile(NamedTuple):
    """An IDX file, decompressed because archives differ between packagings."""

    name: str
    n_bytes: int
    sha256: str


FILES: tuple[IdxFile, ...] = (
    IdxFile("train-images-idx3-ubyte", 47_040_016, "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888"),
    IdxFile("train-labels-idx1-ubyte", 60_008, "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9"),
    IdxFile("t10k-images-idx3-ubyte", 7_840_016, "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b"),
    IdxFile("t10k-labels-idx1-ubyte", 10_008, "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34"),
)

SYSTEM_FOLDER = Path("/usr/share/datasets/fashion-mnist")
DEBIAN_PACKAGE = "dataset-fashion-mnist"


def read_files(data_dir: Path, *, fetch: bool = True) -> tuple[list[np.ndarray], str]:
    """Read training images [60000, 28, 28] and labels [60000], test images and labels, all uint8; and their digest."""
    raw, arrays = ensure_files(data_dir, fetch=fetch), []
    for file in FILES:  # two zeros, type 8 (unsigned bytes), number of dimensions, sizes, data
        content = np.fromfile(raw / file.name, np.uint8)
        end = 4 + 4 * int(content[3])
        arrays.append(content[end:].reshape(content[4:end].view(">u4")))
    return arrays, hashlib.sha256("".join(file.sha256 for file in FILES).encode()).hexdigest()


def default_data_dir() -> Path:
    """Return `FMNIST_DATA_DIR`, else the user's cache directory."""
    import platformdirs

    return Path(os.environ.get("FMNIST_DATA_DIR") or platformdirs.user_cache_dir("fmnist-transfer"))


def ensure_files(data_dir: Path, *, fetch: bool = True) -> Path:
    """Verify all four files in `data_dir/FashionMNIST/raw`, fetch missing ones, and return this folder.

    Raises DataError for an altered file, which is never replaced.
    """
    raw = data_dir / "FashionMNIST" / "raw"
    missing = [file for file in FILES if not (raw / file.name).exists()]
    for file in FILES:
        if file not in missing:
            try:
                content = (raw / file.name).read_bytes()
            except OSError as error:
                raise DataError(f"cannot read {raw / file.name}: {error.strerror}") from error
            advice = " Delete it and run the same command again to fetch it anew."
            _verify(content, file, raw / file.name, advice)
    if missing and not fetch:
        names = ", ".join(file.name for file in missing)
        raise DataError(f"{raw} has no {names}; run the command without --dry-run to fetch them")
    if missing:
        _fetch(raw, missing)
    return raw


def _verify(content: bytes, file: IdxFile, path: Path, advice: str = "") -> None:
    if (sha256 := hashlib.sha256(content).hexdigest()) != file.sha256:
        problem = f"expected sha256 {file.sha256}, found {sha256}: altered or mislabelled"
        if len(content) != file.n_bytes:
            problem = f"expected {file.n_bytes} bytes, found {len(content)}: truncated or altered"
        raise DataError(f"{path}: {problem}.{advice}")


def _fetch(raw: Path, missing: Sequence[IdxFile]) -> None:
    """Put files in place by renaming: a killed download never looks finished, and two processes may fetch at once."""
    attempts = [f"files in {raw}: missing"]
    try:
        raw.mkdir(parents=True, exist_ok=True)
        for name, source in SOURCES:
            with tempfile.TemporaryDirectory(dir=raw, prefix=".fetch-") as folder:
                try:
                    place = source(Path(folder))
                    archives = [place / f"{file.name}.gz" for file in missing]
                    contents = [gzip.decompress(archive.read_bytes()) for archive in archives]
                    for content, file, archive in zip(contents, missing, archives, strict=True):
                        _verify(content, file, archive)
                except Exception as error:  # each failed source gets one line in the message below
                    attempts.append(f"{name}: {(str(error).strip() or repr(error)).splitlines()[-1]}")
                    continue
                for content, file in zip(contents, missing, strict=True):
                    with Path(folder, file.name).open("wb") as stream:
                        stream.write(content)
                        stream.flush()
                        os.fsync(stream.fileno())
                    os.replace(stream.name, raw / file.name)
                return
    except OSError as error:
        advice = "choose another folder with --data-dir or FMNIST_DATA_DIR"
        raise DataError(f"cannot write to {raw}: {error.strerror}; {advice}") from error
    names, tried = ", ".join(file.name for file in missing), "\n  ".join(attempts)
    advice = "Put the four decompressed files there, or give --data-dir."
    raise DataError(f"cannot fetch Fashion-MNIST ({names}). Tried:\n  {tried}\n{advice}")


def from_mirrors(folder: Path) -> Path:
    from torchvision.datasets import FashionMNIST

    mirror = FashionMNIST.mirrors[0].rstrip("/")
    for file in FILES:  # not by torchvision itself, whose downloads need a time-out of the whole process
        with urllib.request.urlopen(f"{mirror}/{file.name}.gz", timeout=10) as response:
            (folder / f"{file.name}.gz").write_bytes(response.read())
    return folder


def from_debian(folder: Path) -> Path:
    """Download and unpack Debian's package without root and without touching the system's package lists."""
    for part in ("lists/partial", "cache/archives/partial"):
        (folder / part).mkdir(parents=True)
    apt = ["apt-get", "-qq", "-o", f"Dir::State::Lists={folder}/lists", "-o", f"Dir::Cache={folder}/cache"]
    apt += ["-o", "APT::Sandbox::User=", "-o", "Acquire::http::Timeout=10", "-o", "Acquire::Retries=0"]
    unpack, null = ["sh", "-c", f"dpkg-deb -x {DEBIAN_PACKAGE}*.deb ."], subprocess.DEVNULL
    for command in ([*apt, "update"], [*apt, "download", DEBIAN_PACKAGE], unpack):
        done = subprocess.run(command, cwd=folder, stdin=null, capture_output=True, text=True, timeout=300, check=False)
        if done.returncode:
            raise OSError(f"{command[0]} {command[-1]}: {done.stderr.strip() or f'exit status {done.returncode}'}")
    return folder / SYSTEM_FOLDER.relative_to("/")


# Each makes the four files, compressed, in an empty folder or elsewhere, and returns the place.
SOURCES: tuple[tuple[str, Callable[[Path], Path]], ...] = (
    (f"system data set {SYSTEM_FOLDER}", lambda folder: SYSTEM_FOLDER),
    ("torchvision's mirrors", from_mirrors),
    (f"Debian package {DEBIAN_PACKAGE}", from_debian),
)
