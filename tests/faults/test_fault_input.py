"""Rows 6, 18 to 23, 28 and 29: data, flags, models and installations that are wrong, told before any run is created."""

import os
import pickle
import re
import shutil
import string
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from proving import SPEC, MakeSite, Site, put_weights, register_model, remount, small_model

from fmnist_transfer.data.split import parse_split
from fmnist_transfer.errors import ModelError, UsageError
from fmnist_transfer.network.cnn2 import CNN2Spec
from fmnist_transfer.store.model_format import FILES_FOLDER, SPEC_FILE, WEIGHTS_FILE
from fmnist_transfer.store.places import file_path
from fmnist_transfer.store.registry import resolve
from fmnist_transfer.store.roles import TRANSFER, TUNING
from fmnist_transfer.store.runs import Store
from sweeps.settings import TransferSettings
from tuning.settings import SearchSettings

SMALL = ["--fractions", "20", "--replicates", "1", "--epochs", "1"]
LABELS, IMAGES = "train-labels-idx1-ubyte", "train-images-idx3-ubyte"


def truncated(raw: Path) -> None:
    os.truncate(raw / IMAGES, 1_000)


def altered(raw: Path) -> None:
    content = bytearray((raw / IMAGES).read_bytes())
    content[5_000] ^= 1
    (raw / IMAGES).write_bytes(content)


def mislabelled(raw: Path) -> None:
    content = (raw / LABELS).read_bytes()
    (raw / LABELS).write_bytes(content[:8] + content[:7:-1])


DAMAGED = {truncated: (IMAGES, "470416", "1000"), altered: (IMAGES, "sha256"), mislabelled: (LABELS, "sha256")}


@pytest.mark.parametrize("damage", DAMAGED, ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("command", ["search", "sweep"])
def test_damaged_data_is_told_before_any_run(
    site: Site, tmp_path: Path, damage: Callable[[Path], None], command: str
) -> None:
    """Row 18."""
    shutil.copytree(site.data_dir, tmp_path / "data")
    damage(tmp_path / "data" / "FashionMNIST" / "raw")
    n_runs = n_all_runs(site)
    small = SMALL if command == "sweep" else ["--trials", "1", "--epochs", "1"]
    done = getattr(site, command)(*small, data_dir=tmp_path / "data", status=3)
    for part in DAMAGED[damage]:
        assert part in done.err
    assert n_all_runs(site) == n_runs


def n_all_runs(site: Site) -> int:
    store = site.open()
    return len(store.find(TRANSFER)) + len(store.find(TUNING))


def test_a_read_only_data_directory_is_fine_if_it_is_complete(site: Site, small_disk: Path) -> None:
    """Row 6."""
    shutil.copytree(site.data_dir, small_disk / "data")
    remount(small_disk, "ro")
    site.sweep(*SMALL, data_dir=small_disk / "data")
    remount(small_disk, "rw")
    (small_disk / "data" / "FashionMNIST" / "raw" / LABELS).unlink()
    remount(small_disk, "ro")
    site.sweep(*SMALL, "--seed", "1", data_dir=small_disk / "data", status=3).names(
        str(small_disk / "data"), "--data-dir"
    )


def without_network() -> tuple[str, ...]:
    if subprocess.run(["unshare", "-n", "true"], capture_output=True, check=False).returncode:
        if os.environ.get("CI"):
            pytest.fail("cannot take the network away: unshare -n failed")
        pytest.skip("cannot take the network away: unshare -n failed")
    return ("unshare", "-n")


def test_without_a_network_nothing_is_missed_if_the_data_is_there(site: Site, tmp_path: Path) -> None:
    """Row 19."""
    site.sweep(*SMALL, prefix=without_network())
    empty = tmp_path / "empty"
    site.sweep(*SMALL, prefix=without_network(), data_dir=empty, fault="no-system-data", status=3).names(
        str(empty), "system", "torchvision", "Debian", "--data-dir"
    )


BAD_FLAGS = [  # flags, and what the message names: those of a value alone are in `test_commands.py`
    (["--fractions", "1.5"], ["--fractions"]),
    (["--fractions", "101"], ["--fractions 101", "1 to 100"]),
    (["--inits", "unknown"], ["--inits"]),
    (["--dry-run", "--take-over"], ["--take-over"]),
    (["--store-timeout", "-1"], ["--store-timeout -1", "0 to 86400"]),
]


@pytest.mark.parametrize(("flags", "parts"), BAD_FLAGS, ids=" ".join)
def test_bad_flags_of_a_sweep_are_told_at_once(site: Site, flags: list[str], parts: list[str]) -> None:
    """Row 20: status 2 with flag, value and range; that nothing heavy is imported is in `test_architecture.py`."""
    done = site.sweep(*flags, status=2)
    for part in parts:
        assert part in done.out + done.err
    assert "Traceback" not in done.err


def refusal(make: Callable[[], object]) -> str | None:
    """What the user is told; None if there is nothing to tell."""
    try:
        make()
    except (UsageError, ModelError) as error:
        return str(error)
    return None


@given(st.lists(st.integers(-10, 110), max_size=5), st.integers(-3, 5), st.integers(-3, 5), st.floats())
def test_flags_are_in_range_or_refused(fractions: list[int], replicates: int, epochs: int, timeout: float) -> None:
    good = (
        bool(fractions)
        and len(set(fractions)) == len(fractions)
        and all(1 <= percent <= 100 for percent in fractions)
        and min(replicates, epochs) >= 1
        and 0 <= timeout <= 86_400
    )
    flags = {"replicates": replicates, "epochs": epochs, "store_timeout": timeout}
    message = refusal(lambda: TransferSettings(model_uri="models:/a/b", fractions=tuple(fractions), **flags))
    assert good if message is None else message.startswith("--") and not good


@given(st.integers(-3, 50), st.integers(-3, 50), st.floats(), st.text(max_size=12))
def test_flags_of_a_search_are_in_range_or_refused(trials: int, epochs: int, cost: float, name: str) -> None:
    message = refusal(lambda: SearchSettings(trials=trials, epochs=epochs, max_cost=cost, study_name=name))
    in_range = min(trials, epochs) >= 1 and cost >= 0
    if message is None:
        assert in_range
        assert name
        assert not set(name) & set("/:'\" \n")
    else:
        assert message.startswith("--study-name" if in_range else "--")


@given(st.text(alphabet=string.digits + "/-:evnodra ", max_size=14))
def test_a_split_is_two_halves_or_refused(text: str) -> None:
    if (message := refusal(lambda: parse_split(text))) is not None:
        assert message.startswith("--split")
        return
    split = parse_split(text)
    assert sorted(split.source + split.target) == list(range(10))
    assert len(split.source) == 5


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["", "models:/", "models:/cnn2/", "models:/cnn2@", "runs:/", "models:/m-"]), st.text(max_size=20)
)
def test_any_text_is_a_model_or_a_model_error(read_store: Store, start: str, text: str) -> None:
    """Row 22, on whatever a user may type."""
    if (message := refusal(lambda: resolve(read_store, start + text))) is not None:
        assert "best -> 1" in message  # what there is
        return
    assert resolve(read_store, start + text).pinned == "models:/cnn2/1"


@pytest.fixture(scope="module")
def read_store(template: Path) -> Store:
    from fmnist_transfer.store.opening import open_store

    return open_store(str(template / "mlflow.db"))


def test_a_fraction_without_an_image_for_each_class_is_refused(site: Site) -> None:
    """Row 21."""
    done = site.sweep("--fractions", "1", status=2)
    assert re.search(r"--fractions 1\b.*\b2\b", done.err)
    assert site.open().find(TRANSFER) == []


@pytest.mark.parametrize(
    ("uri", "parts"),
    [
        ("models:/cnn2/worst", ("'worst'", "'cnn2'", "sqlite:", "python -m tuning.search")),
        ("models:/cnn3/best", ("'best'", "'cnn3'", "sqlite:", "python -m tuning.search")),
        ("models:/cnn2/9", ("'9'", "'cnn2'")),
        ("cnn2", ("cnn2", "models:/NAME/ALIAS")),
    ],
)
def test_an_unknown_model_is_told_with_what_there_is(site: Site, uri: str, parts: tuple[str, ...]) -> None:
    """Row 22."""
    site.start("sweeps.transfer", "--model-uri", uri, "--device", "cpu", "--workers", "1", *SMALL).done(3).names(
        *parts, "best -> 1"
    )
    assert site.open().find(TRANSFER) == []


def files_of_the_model(site: Site) -> Path:
    location = resolve(site.open(), "models:/cnn2/best").location
    return file_path(location) / FILES_FOLDER


def pickled(files: Path) -> None:
    put_weights(files, pickle.dumps(Canary(files.parent / "canary")))


class Canary:
    """Leaves a file where whoever unpickles it stands."""

    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self.file}'",)


def only_code(files: Path) -> None:
    """What MLflow itself would import and unpickle, and nothing that we read."""
    shutil.rmtree(files)
    model = files.parent
    (model / "data").mkdir(exist_ok=True)
    (model / "data" / "model.pth").write_bytes(pickle.dumps(Canary(model / "canary")))
    (model / "code").mkdir(exist_ok=True)
    (model / "code" / "loader.py").write_text(f"open({str(model / 'canary')!r}, 'w')\n")
    (model / "MLmodel").write_text("flavors:\n  python_function:\n    loader_module: loader\n    code: code\n")


def link(files: Path) -> None:
    target = files.parent / "elsewhere"
    (files / WEIGHTS_FILE).rename(target)
    (files / WEIGHTS_FILE).symlink_to(target)


HOSTILE: dict[str, tuple[Callable[[Path], None], str]] = {  # what is done, and what the message names
    "pickle": (pickled, "SafetensorError"),
    "code": (only_code, f"{FILES_FOLDER}/{SPEC_FILE}"),
    "link": (link, WEIGHTS_FILE),
    "deep": (lambda files: (files / SPEC_FILE).write_text("[" * 100_000), "RecursionError"),
    "huge": (lambda files: os.truncate(files / WEIGHTS_FILE, 2**30), "1073741824"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_foreign_or_hostile_model_is_refused_and_not_run(site: Site, kind: str) -> None:
    """Row 23."""
    act, part = HOSTILE[kind]
    files = files_of_the_model(site)
    act(files)
    site.sweep(*SMALL, status=3).names(part, "models:/cnn2/1")
    assert not (files.parent / "canary").exists()
    assert site.open().find(TRANSFER) == []


def test_another_classifier_is_allowed_and_said(site: Site) -> None:
    """Row 23: ten outputs."""
    ten = CNN2Spec(**SPEC.to_dict() | {"n_classes": 10})
    register_model(site.open(), small_model(spec=ten))
    done = site.sweep(*SMALL)
    assert "10 outputs" in done.out


def test_a_deleted_version_or_alias_is_an_unknown_model(site: Site) -> None:
    """Rows 22 and 24."""
    client = site.open().client
    client.delete_registered_model_alias("cnn2", "best")
    site.sweep(*SMALL, status=3).names("'best'")
    client.delete_model_version("cnn2", "1")
    site.start("sweeps.transfer", "--model-uri", "models:/cnn2/1", "--device", "cpu", *SMALL).done(3).names("cnn2")
    assert site.open().find(TRANSFER) == []


@pytest.mark.parametrize(
    ("module", "extra", "flags"),
    [("ray", "ray", ["--engine", "ray"]), ("psycopg", "postgres", ["--storage", "postgresql://someone@host/study"])],
)
def test_what_is_not_installed_is_told_with_what_to_install(
    site: Site, module: str, extra: str, flags: list[str]
) -> None:
    """Row 28."""
    site.search(*flags, fault=f"not-installed:{module}", status=2).names(f"pip install 'fmnist-transfer[{extra}]'")


def test_a_dry_run_on_nothing_makes_nothing(make_site: MakeSite, tmp_path: Path) -> None:
    """Row 29: no store, no study, no probe, no lock, no data."""
    site, data = make_site(bare=True), tmp_path / "no data"
    site.search("--trials", "3", "--dry-run", "--json", str(site.json), data_dir=data)
    assert (site.result()["n_trials"], site.result()["n_to_run"]) == (0, 3)
    site.start("tuning.search", "--reference", "--dry-run", data_dir=data).done()
    like = ("--like", "models:/cnn2/best", "--split", "even/odd")
    site.start("tuning.search", *like, "--dry-run", data_dir=data).done(4)
    site.sweep(*SMALL, "--dry-run", data_dir=data, status=4)
    assert site.files() == {}
    assert not site.folder.exists()
    assert not data.exists()


def test_a_dry_run_on_a_store_changes_nothing(site: Site, tmp_path: Path) -> None:
    """Row 29; without data, it says so instead of fetching them."""
    before = site.files()
    site.sweep(*SMALL, "--dry-run", "--json", str(site.json))
    assert (site.result()["n_to_run"], site.result()["sweep_run_id"]) == (2, None)
    site.search("--trials", "3", "--dry-run")
    site.sweep(*SMALL, "--dry-run", data_dir=tmp_path / "no data", status=3)
    assert not (tmp_path / "no data").exists()
    assert site.files() == before
    site.sweep(*SMALL)
    site.sweep("--fractions", "20", "60", *SMALL[2:], "--dry-run", "--json", str(site.json))
    assert site.result()["n_to_run"] == 2
    assert [cell["status"] for cell in site.result()["cells"]].count("finished") == 2
    assert len(site.cells()) == 2
