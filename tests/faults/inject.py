"""Runs a real command on the synthetic data, with faults planted in this process and in its workers.

    FAULT=trial-raises:ValueError:2 python tests/faults/inject.py FOLDER tuning.search --trials 4 ...

Workers import this module again, so the fault is planted at import.
"""

import builtins
import functools
import importlib.util
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import synthetic

from fmnist_transfer.data import files
from fmnist_transfer.store import lock


def die(*arguments: Any, **options: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def exception(name: str) -> Exception:
    """Of a training: `OutOfMemoryError` of torch, or any that Python has."""
    import torch

    kind = getattr(torch, name, None) or getattr(builtins, name)
    return kind("planted: Tried to allocate 20.00 MiB")


def in_trainings(module: str, function: str, act: Callable[[Any], Any]) -> None:
    """Call `act(task)` before the module's worker function trains; what it returns, if anything, is the result."""
    owner = importlib.import_module(module)
    unharmed = getattr(owner, function)

    @functools.wraps(unharmed)  # by whose name it is pickled
    def train(plan: Any, task: Any, *more: Any) -> Any:
        planted = act(task)
        return unharmed(plan, task, *more) if planted is None else planted

    setattr(owner, function, train)


def raise_in(module: str, function: str, number: Callable[[Any], int]) -> Callable[[str], None]:
    """The fault whose argument is EXCEPTION:NUMBER."""

    def plant(argument: str) -> None:
        name, _, wanted = argument.partition(":")

        def act(task: Any) -> None:
            if number(task) == int(wanted):
                raise exception(name)

        in_trainings(module, function, act)

    return plant


def die_in(module: str, function: str, number: Callable[[Any], int]) -> Callable[[str], None]:
    """The fault whose argument is the NUMBER of the task that kills its worker, each time."""

    def plant(wanted: str) -> None:
        in_trainings(module, function, lambda task: die() if number(task) == int(wanted) else None)

    return plant


CELL = ("sweeps.training.cells", "train_cells", lambda cells: cells[0].percent)
TRIAL = ("tuning.study.task", "train_trial", lambda trial: trial.number)
RETRAINING = ("tuning.winner.plan", "retrain_one", lambda task: task.replicate)


def diverge_in_a_trial(number: str) -> None:
    from fmnist_transfer.training.fit import Diverged

    def act(trial: Any) -> Diverged | None:
        return Diverged("training loss is nan at epoch 1, step 1") if trial.number == int(number) else None

    in_trainings(*TRIAL[:2], act)


def die_before_the_version(_: str) -> None:
    from mlflow.tracking import MlflowClient

    MlflowClient.create_model_version = die


def die_before_the_alias(_: str) -> None:
    from mlflow.tracking import MlflowClient

    MlflowClient.set_registered_model_alias = die


def no_system_data(_: str) -> None:
    files.SYSTEM_FOLDER = Path("/not/there")


def as_machine(name: str) -> None:
    """This process and its workers are on another machine, which may have the same host name."""
    lock._machine = lambda: name


def not_installed(module: str) -> None:
    sys.modules[module] = None  # an import of it fails
    unharmed = importlib.util.find_spec
    importlib.util.find_spec = lambda name, *more: None if name == module else unharmed(name, *more)


FAULTS: dict[str, Callable[[str], None]] = {
    "cell-raises": raise_in(*CELL),
    "trial-raises": raise_in(*TRIAL),
    "retraining-raises": raise_in(*RETRAINING),
    "cell-dies": die_in(*CELL),
    "trial-dies": die_in(*TRIAL),
    "diverge": diverge_in_a_trial,
    "before-version": die_before_the_version,
    "before-alias": die_before_the_alias,
    "no-system-data": no_system_data,
    "machine": as_machine,
    "not-installed": not_installed,
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
    where = [] if module == "sweeps.report" else ["--data-dir", folder]
    sys.argv = [module, *arguments, *where]
    sys.exit(synthetic.entry_point(module).command())
