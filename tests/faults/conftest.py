"""Fixtures of the fault suite: a store with a small registered model, a copy of it for each test, a server on it."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import synthetic
from proving import Server, Site

from fmnist_transfer import tracking
from fmnist_transfer.model import CNN2Spec, fresh_network
from fmnist_transfer.recipe import Recipe
from fmnist_transfer.registry import TrainedModel, register, set_best
from fmnist_transfer.seeding import Streams
from fmnist_transfer.split import DEFAULT_SPLIT

SPEC = CNN2Spec(channels=(4, 8), fc1=16, fc2=16)
MakeSite = Callable[..., Site]
RECIPE = Recipe(learning_rate=5e-3, batch_size=64, epochs=2)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kills", type=int, default=10, help="kills of live work in each kill-anywhere loop")


def small_model(spec: CNN2Spec = SPEC, recipe: Recipe = RECIPE) -> TrainedModel:
    return TrainedModel(spec, recipe, DEFAULT_SPLIT, fresh_network(spec, Streams(0)).state_dict(), facts={})


def register_model(store: tracking.Store, model: TrainedModel, name: str = "cnn2") -> None:
    run_id = store.start(tracking.TUNING, name)
    set_best(store, register(store, run_id, name, model, tags={"split": model.split}, description="small"))
    store.end(run_id)


@pytest.fixture(scope="session")
def template(_empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store's folder in which a small network is `models:/cnn2/best`."""
    folder = tmp_path_factory.mktemp("template")
    path = synthetic.copy_database(_empty_store, folder / "mlflow.db")
    register_model(tracking.open_store(str(path)), small_model())
    return folder


@pytest.fixture
def make_site(template: Path, data_dir: Path, tmp_path: Path) -> Iterator[MakeSite]:
    """Makes sites by name: copies of the template, or bare ones."""
    sites: list[Site] = []

    def make(name: str = "store ü#", *, bare: bool = False) -> Site:
        folder = tmp_path / name
        if not bare:
            synthetic.copy_store(template, folder)
        sites.append(Site(folder, data_dir, tmp_path / f"scratch of {name}"))
        sites[-1].scratch.mkdir()
        return sites[-1]

    yield make
    for site in sites:
        site.close()


@pytest.fixture
def site(make_site: MakeSite) -> Site:
    return make_site()


@pytest.fixture
def server(site: Site) -> Iterator[Server]:
    server = Server(site.folder)
    server.start()
    yield server
    server.kill()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own with 3 MB, or the size that `remount` gives it."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        if os.environ.get("CI"):
            pytest.fail(f"cannot mount a small disk: {mounted.stderr}")
        pytest.skip(f"cannot mount a small disk: {mounted.stderr.strip()}")
    yield folder
    with contextlib.suppress(subprocess.CalledProcessError):
        subprocess.run(["umount", "-l", str(folder)], check=True)


def remount(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)
