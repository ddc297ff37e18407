"""Files verified and fetched, halves, nested fractions."""

import gzip
import re
from pathlib import Path

import pytest
import synthetic
import torch

from fmnist_transfer import data, sources
from fmnist_transfer.errors import DataError, UsageError
from fmnist_transfer.seeding import Streams


def copy_of(data_dir: Path, folder: Path, *, without: str = "") -> Path:
    raw = folder / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for file in (data_dir / "FashionMNIST" / "raw").iterdir():
        if file.name != without:
            (raw / file.name).write_bytes(file.read_bytes())
    return raw


def test_published_files_are_those_of_the_protocol() -> None:
    sizes = {"train-images-idx3-ubyte": 16 + 60_000 * 784, "t10k-labels-idx1-ubyte": 8 + 10_000}
    files = {file.name: file for file in synthetic.PUBLISHED}
    assert {name: files[name].n_bytes for name in sizes} == sizes
    assert files["t10k-images-idx3-ubyte"].sha256.startswith("5b4141f0afbad91edebe")


def test_halves_are_disjoint_equal_and_relabelled(data_dir: Path) -> None:
    source = data.load_half(data_dir, (0, 1, 2, 3, 4))
    target = data.load_half(data_dir, (5, 6, 7, 8, 9))
    assert len(source.train) == len(target.train) == 250
    assert len(source.val) == len(target.val) == 50
    assert len(source.test) == len(target.test) == 100
    for half in (source, target):
        for examples, per_class in ((half.train, 50), (half.val, 10), (half.test, 20)):
            assert torch.bincount(examples.labels).tolist() == [per_class] * 5
            assert examples.images.dtype == torch.uint8
            assert examples.images.shape[1:] == (1, 28, 28)
    images = torch.cat([part.images for half in (source, target) for part in (half.train, half.val, half.test)])
    assert len(images.flatten(1).unique(dim=0)) == 800  # no image is in two parts


def test_validation_does_not_depend_on_the_split(data_dir: Path) -> None:
    one = data.load_half(data_dir, (0, 1, 2, 3, 4))
    other = data.load_half(data_dir, (2, 5, 6, 7, 8))
    of_class_2 = one.val.images[one.val.labels == 2]
    assert torch.equal(of_class_2, other.val.images[other.val.labels == 0])


def test_fractions_are_nested_and_balanced(half: data.Half) -> None:
    order = data.nested_order(half.train.labels, Streams(0).generator("subset"))
    assert sorted(order.tolist()) == list(range(250))
    for percent in (2, 10, 50, 100):
        n = data.n_train(half.train, percent)
        assert n == 5 * (50 * percent // 100)
        assert torch.bincount(half.train.labels[order[:n]]).tolist() == [n // 5] * 5


def test_fraction_without_an_image_per_class_names_the_smallest(half: data.Half) -> None:
    with pytest.raises(UsageError, match="use 2 or more"):
        data.n_train(half.train, 1)
    assert data.n_train(half.train, 2) == 5


def test_balanced_classes_take_turns() -> None:
    labels = torch.arange(5).repeat(30)[torch.randperm(150, generator=torch.Generator().manual_seed(1))]
    generator = torch.Generator().manual_seed(2)
    permuted = []
    for c in range(5):
        of_class = torch.nonzero(labels == c).flatten()
        permuted.append(of_class[torch.randperm(30, generator=generator)])
    turns = torch.stack(permuted, dim=1).flatten()
    assert torch.equal(data.nested_order(labels, torch.Generator().manual_seed(2)), turns)


@pytest.mark.parametrize("counts", [(250, 250, 250), (7, 1_000, 33), (1, 2, 3, 4), (999, 1, 500, 333), (21, 21, 3, 7)])
def test_every_fraction_holds_its_share_of_unbalanced_classes(counts: tuple[int, ...]) -> None:
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))]
    train = data.Examples(torch.arange(len(labels)), labels)
    before: set[int] = set()
    for percent in range(-(-100 // min(counts)), 101):
        part = data.fraction(train, percent, Streams(4))
        assert torch.bincount(part.labels).tolist() == [n * percent // 100 for n in counts]
        assert len(part) == data.n_train(train, percent)
        assert before <= set(part.images.tolist())
        before = set(part.images.tolist())
    assert len(before) == sum(counts)


def test_the_rarest_class_decides_what_is_too_little() -> None:
    train = data.Examples(torch.zeros(33), torch.tensor([0] * 30 + [1] * 3))
    with pytest.raises(UsageError, match=r"33: leaves no image per class of 3; use 34 or more"):
        data.n_train(train, 33)
    assert data.n_train(train, 34) == 11


def test_a_class_without_an_image_is_refused() -> None:
    labels = torch.tensor([0, 2])
    for ask in (
        lambda: data.nested_order(labels, torch.Generator()),
        lambda: data.n_train(data.Examples(labels, labels), 9),
    ):
        with pytest.raises(DataError, match=re.escape("without an image: [1, 0, 1]")):
            ask()


def test_a_half_of_an_unbalanced_set_holds_out_a_sixth_of_each_class() -> None:
    labels = torch.tensor([3] * 12 + [7] * 31 + [9] * 60)
    whole = data.Examples(torch.arange(103), labels)
    half = data.half_of(whole, whole, (9, 3))
    assert half.classes == (3, 9)
    assert [torch.bincount(part.labels).tolist() for part in (half.train, half.val, half.test)] == [
        [10, 50],
        [2, 10],
        [12, 60],
    ]
    assert sorted(half.train.images.tolist() + half.val.images.tolist()) == half.test.images.tolist()
    alone = data.half_of(whole, whole, (3,))
    assert torch.equal(alone.val.images, half.val.images[half.val.labels == 0])
    with pytest.raises(DataError, match="class 4 has 0 training and 0 test images"):
        data.half_of(whole, whole, (3, 4))


def test_truncated_file_names_file_and_sizes(data_dir: Path, tmp_path: Path) -> None:
    raw = copy_of(data_dir, tmp_path)
    file = raw / "t10k-labels-idx1-ubyte"
    content = file.read_bytes()
    file.write_bytes(content[:-1])
    with pytest.raises(DataError, match=re.escape(f"{file}: expected {len(content)} bytes, found {len(content) - 1}")):
        data.ensure_files(tmp_path)
    assert file.read_bytes() == content[:-1]  # never replaced


def test_altered_file_names_both_digests(data_dir: Path, tmp_path: Path) -> None:
    raw = copy_of(data_dir, tmp_path)
    file = raw / "train-images-idx3-ubyte"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"expected sha256 \w{64}, found \w{64}: altered"):
        data.ensure_files(tmp_path)


def test_missing_file_is_fetched_from_the_system(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    system = tmp_path / "system"
    system.mkdir()
    for file in (data_dir / "FashionMNIST" / "raw").iterdir():
        (system / f"{file.name}.gz").write_bytes(gzip.compress(file.read_bytes()))
    monkeypatch.setattr(sources, "SYSTEM_FOLDER", system)
    raw = copy_of(data_dir, tmp_path / "data", without="train-labels-idx1-ubyte")
    before = (raw / "train-images-idx3-ubyte").stat().st_mtime_ns
    assert data.ensure_files(tmp_path / "data") == raw
    assert sorted(file.name for file in raw.iterdir()) == sorted(file.name for file in data.FILES)
    assert (raw / "train-images-idx3-ubyte").stat().st_mtime_ns == before


def test_every_source_is_named_with_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(folder: Path) -> Path:
        raise OSError("no way")

    def deliver_rubbish(folder: Path) -> Path:
        for file in data.FILES:
            (folder / file.name).write_bytes(b"rubbish")
        return folder

    monkeypatch.setattr(sources, "SOURCES", (("first", refuse), ("second", deliver_rubbish)))
    with pytest.raises(DataError) as caught:
        data.ensure_files(tmp_path)
    assert "first: no way" in str(caught.value)
    assert re.search(r"second: .* found 7", str(caught.value))
    assert list((tmp_path / "FashionMNIST" / "raw").iterdir()) == []


def test_complete_read_only_folder_needs_no_source(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = copy_of(data_dir, tmp_path)
    monkeypatch.setattr(sources, "SOURCES", ())
    raw.chmod(0o500)
    try:
        assert data.ensure_files(tmp_path) == raw
    finally:
        raw.chmod(0o700)


def test_debian_source_says_when_apt_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="apt-get is not there"):
        sources.from_debian(tmp_path)
