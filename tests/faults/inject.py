"""Runs a real command on the synthetic data, with faults planted in this process and in its workers.

    FAULT=memory:2 python tests/faults/inject.py FOLDER tuning.search --trials 4 ...

Workers import this module again, so the fault is planted at import.
"""

import atexit
import importlib.util
import multiprocessing
import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import synthetic

from fmnist_transfer.data import files


def die(*arguments: Any, **options: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def out_of_memory_in_a_cell(percent: str) -> None:
    import torch

    from sweeps.training import cells

    def train(plan: Any, cell: Any, *more: Any) -> Any:
        if cell.percent == int(percent):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return unharmed(plan, cell, *more)

    unharmed, cells._train_alone = cells._train_alone, train


def before_training(act: Callable[[Any], None]) -> None:
    """Call `act(trial)` when a trial has all its parameters and is about to be trained."""
    from tuning.study import study

    trials: list[Any] = []

    def train(plan: Any, trial: Any, *more: Any) -> float:
        trials.append(trial)
        return train_unharmed(plan, trial, *more)

    def fit(*arguments: Any, **options: Any) -> Any:
        act(trials[-1])
        return fit_unharmed(*arguments, **options)

    train_unharmed, study._train_trial = study._train_trial, train
    fit_unharmed, study.fit = study.fit, fit


def diverge_in_a_trial(ordinal: str) -> None:
    from fmnist_transfer.training.fit import Diverged

    def act(trial: Any) -> None:
        if trial.user_attrs["ordinal"] == int(ordinal):
            raise Diverged("training loss is nan at epoch 1, step 1")

    before_training(act)


def out_of_memory_in_a_trial(ordinal: str) -> None:
    import torch

    def act(trial: Any) -> None:
        if trial.user_attrs["ordinal"] == int(ordinal):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")

    before_training(act)


def kill_the_worker_of_the_first_trial(_: str) -> None:
    """Whichever worker has its parameters."""
    from tuning.space import FIRST_TRIAL

    def act(trial: Any) -> None:
        if trial.params.get("adamw_learning_rate") == FIRST_TRIAL["adamw_learning_rate"]:
            die()

    before_training(act)


def die_before_the_version(_: str) -> None:
    from mlflow.tracking import MlflowClient

    MlflowClient.create_model_version = die


def die_before_the_alias(_: str) -> None:
    from mlflow.tracking import MlflowClient

    MlflowClient.set_registered_model_alias = die


def no_system_data(_: str) -> None:
    files.SYSTEM_FOLDER = Path("/not/there")


def as_host(name: str) -> None:
    """This process and its workers are another machine's, as far as anybody can tell."""
    socket.gethostname = lambda: name


def short_lease(seconds: str) -> None:
    """Signs of life, leases and heartbeats in seconds instead of minutes."""
    from fmnist_transfer.store import lease
    from tuning.study import storage

    lease.BEAT_SECONDS, lease.LEASE_SECONDS = float(seconds) / 6, float(seconds)
    storage.HEARTBEAT_SECONDS, storage.GRACE_SECONDS = 1, int(float(seconds))


def not_installed(module: str) -> None:
    sys.modules[module] = None  # an import of it fails
    unharmed = importlib.util.find_spec
    importlib.util.find_spec = lambda name, *more: None if name == module else unharmed(name, *more)


def count_calls(file: str) -> None:
    """Not a fault: at the end, how many requests this process has sent is written to the file."""
    import requests

    n_calls = 0
    send = requests.Session.send

    def count(*arguments: Any, **options: Any) -> Any:
        nonlocal n_calls
        n_calls += 1
        return send(*arguments, **options)

    requests.Session.send = count
    if multiprocessing.parent_process() is None:
        atexit.register(lambda: Path(file).write_text(str(n_calls)))


FAULTS: dict[str, Callable[[str], None]] = {
    "memory": out_of_memory_in_a_trial,
    "cell-memory": out_of_memory_in_a_cell,
    "kill-worker": kill_the_worker_of_the_first_trial,
    "diverge": diverge_in_a_trial,
    "before-version": die_before_the_version,
    "before-alias": die_before_the_alias,
    "no-system-data": no_system_data,
    "host": as_host,
    "lease": short_lease,
    "not-installed": not_installed,
    "count-calls": count_calls,
}

for fault in os.environ.get("FAULT", "").split():
    name, _, argument = fault.partition(":")
    FAULTS[name](argument)

if __name__ == "__main__":
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # by a shell's `&`
        signal.signal(signal.SIGINT, signal.default_int_handler)
    folder, module, *arguments = sys.argv[1:]
    described = Path(os.environ.get("DESCRIBED_DATA", folder))  # what the files should be
    files.FILES = synthetic.describe(described)
    sys.exit(synthetic.entry_point(module).command([*arguments, "--data-dir", folder]))
