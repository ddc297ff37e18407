"""Fixtures: a small synthetic Fashion-MNIST, and a fresh store in which nothing has to be migrated."""

import os

os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
os.environ.pop("MLFLOW_TRACKING_URI", None)

import signal
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import synthetic

from fmnist_transfer.data import files
from fmnist_transfer.data.examples import Half, load_half
from fmnist_transfer.store.opening import open_store
from fmnist_transfer.store.runs import Store
from fmnist_transfer.training.device import prepare_process

prepare_process()
for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) == signal.SIG_IGN:  # by a shell's `&`, by nohup; tests send them
        signal.signal(number, usual)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kills", type=int, default=5, help="kills of live work in each kill-anywhere loop")


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four IDX files of 60 training and 20 test images a class, which `files.FILES` describes during the tests."""
    folder = tmp_path_factory.mktemp("data with space")
    files.FILES = synthetic.write(folder)
    return folder


@pytest.fixture(scope="session")
def half(data_dir: Path) -> Half:
    """The target half of the synthetic data: 50 train, 10 validation and 20 test images a class."""
    return load_half(data_dir, (5, 6, 7, 8, 9))


@pytest.fixture(scope="session")
def _empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("empty")
    open_store(str(folder / "mlflow.db"))
    return folder / "mlflow.db"


@pytest.fixture
def store_path(_empty_store: Path, tmp_path: Path) -> Path:
    """An empty sqlite store; a copy, for making one takes seconds."""
    return synthetic.copy_database(_empty_store, tmp_path / "store ü#" / "mlflow.db")


@pytest.fixture
def store(store_path: Path) -> Store:
    return open_store(str(store_path))
