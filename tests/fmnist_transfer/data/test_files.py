"""The published files: found, fetched, verified."""

import gzip
import re
from pathlib import Path

import pytest
import synthetic

from fmnist_transfer.data import files
from fmnist_transfer.errors import DataError


def copy_of(data_dir: Path, folder: Path, *, without: str = "") -> Path:
    raw = folder / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for file in (data_dir / "FashionMNIST" / "raw").iterdir():
        if file.name != without:
            (raw / file.name).write_bytes(file.read_bytes())
    return raw


def test_published_files_are_those_of_the_protocol() -> None:
    sizes = {"train-images-idx3-ubyte": 16 + 60_000 * 784, "t10k-labels-idx1-ubyte": 8 + 10_000}
    published = {file.name: file for file in synthetic.PUBLISHED}
    assert {name: published[name].n_bytes for name in sizes} == sizes
    assert published["t10k-images-idx3-ubyte"].sha256.startswith("5b4141f0afbad91edebe")


def test_missing_file_is_fetched_from_the_system(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    system = tmp_path / "system"
    system.mkdir()
    for file in (data_dir / "FashionMNIST" / "raw").iterdir():
        (system / f"{file.name}.gz").write_bytes(gzip.compress(file.read_bytes()))
    monkeypatch.setattr(files, "SYSTEM_FOLDER", system)
    raw = copy_of(data_dir, tmp_path / "data", without="train-labels-idx1-ubyte")
    before = (raw / "train-images-idx3-ubyte").stat().st_mtime_ns
    assert files.ensure_files(tmp_path / "data") == raw
    assert sorted(file.name for file in raw.iterdir()) == sorted(file.name for file in files.FILES)
    assert (raw / "train-images-idx3-ubyte").stat().st_mtime_ns == before


def test_every_source_is_named_with_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(folder: Path) -> Path:
        raise OSError("away")

    def deliver_rubbish(folder: Path) -> Path:
        for file in files.FILES:
            (folder / f"{file.name}.gz").write_bytes(gzip.compress(b"rubbish"))
        return folder

    monkeypatch.setattr(files, "SOURCES", (("first", refuse), ("second", deliver_rubbish)))
    with pytest.raises(DataError) as caught:
        files.ensure_files(tmp_path)
    assert re.search("first.*away", str(caught.value))
    assert re.search(r"second.*\b7\b", str(caught.value))  # bytes
    assert list((tmp_path / "FashionMNIST" / "raw").iterdir()) == []


def test_debian_source_says_when_apt_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="apt-get"):
        files.from_debian(tmp_path)
