"""Fixtures of the fault suite: a store with a small registered model, a copy of it for each test, a server on it."""

import contextlib
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import synthetic
from postgres import MODEL_DATABASE, PostgreSQL, SharedSite, find_programs
from proving import MakeSite, Server, Site, register_model, small_model

from fmnist_transfer.store.opening import open_store


@pytest.fixture(scope="session")
def template(_empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store's folder in which a small network is `models:/cnn2/best`."""
    folder = tmp_path_factory.mktemp("template")
    path = synthetic.copy_database(_empty_store, folder / "mlflow.db")
    register_model(open_store(str(path)), small_model())
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
    server.close()


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgreSQL]:
    if (programs := find_programs()) is None:
        if os.environ.get("CI"):
            pytest.fail("PostgreSQL is not installed")
        pytest.skip("PostgreSQL is not installed (apt-get install postgresql)")
    server = PostgreSQL(programs)
    server.start()
    yield server
    server.close()


@pytest.fixture(scope="session")
def shared_template(postgres: PostgreSQL, data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Artifacts of a server on database `model`, in which a small network is `models:/cnn2/best`."""
    folder = tmp_path_factory.mktemp("shared template")
    server = Server(folder, postgres.create(MODEL_DATABASE))
    server.start()
    register_model(open_store(server.uri), small_model())
    server.close()
    return folder


@pytest.fixture
def make_shared_site(
    postgres: PostgreSQL, shared_template: Path, data_dir: Path, tmp_path: Path
) -> Iterator[Callable[[str], SharedSite]]:
    """Makes sites by name, each with a running server on a database of its own."""
    sites: list[SharedSite] = []

    def make(name: str) -> SharedSite:
        database = f"{name}-{secrets.token_hex(4)}"
        postgres.create(database, MODEL_DATABASE)
        postgres.create(f"{database}-study")
        shutil.copytree(shared_template / "artifacts", tmp_path / name / "artifacts")
        sites.append(SharedSite(tmp_path / name, data_dir, tmp_path / f"scratch of {name}", postgres, database))
        sites[-1].scratch.mkdir()
        sites[-1].server.start()
        return sites[-1]

    yield make
    for site in sites:
        site.close()


@pytest.fixture
def shared_site(make_shared_site: Callable[[str], SharedSite]) -> SharedSite:
    return make_shared_site("shared")


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
