"""Runs a real command on the synthetic data, with one fault planted in this process and in its workers.

    FAULT=memory:2 python tests/faults/inject.py FOLDER tuning.search --trials 4 ...

Workers import this module again, so the fault is planted at import.
"""

import importlib
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import synthetic

from fmnist_transfer import data, sources


def die(*arguments: Any, **options: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def out_of_memory_in_a_trial(ordinal: str) -> None:
    import torch

    from tuning import study

    def train(plan: Any, trial: Any, *more: Any) -> float:
        if trial.user_attrs["ordinal"] == int(ordinal):
            study.suggest(trial, epochs=plan.epochs, max_mflops=plan.max_mflops)
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return unharmed(plan, trial, *more)

    unharmed, study._train_trial = study._train_trial, train


def out_of_memory_in_a_cell(percent: str) -> None:
    import torch

    from sweeps import cells

    def train(plan: Any, cell: Any, *more: Any) -> Any:
        if cell.percent == int(percent):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return unharmed(plan, cell, *more)

    unharmed, cells._train_alone = cells._train_alone, train


def diverge_in_a_trial(ordinal: str) -> None:
    from tuning import study

    def fit(*arguments: Any, **options: Any) -> Any:
        if os.environ["FAULT_TRIAL"] == ordinal:
            raise study.Diverged("training loss is nan at epoch 1, step 1")
        return unharmed(*arguments, **options)

    def train(plan: Any, trial: Any, *more: Any) -> float:
        os.environ["FAULT_TRIAL"] = str(trial.user_attrs["ordinal"])
        return train_unharmed(plan, trial, *more)

    unharmed, study.fit = study.fit, fit
    train_unharmed, study._train_trial = study._train_trial, train


def kill_the_worker_of_a_trial(ordinal: str) -> None:
    from tuning import study

    def train(plan: Any, trial: Any, *more: Any) -> float:
        if trial.user_attrs["ordinal"] == int(ordinal):
            study.suggest(trial, epochs=plan.epochs, max_mflops=plan.max_mflops)
            die()
        return unharmed(plan, trial, *more)

    unharmed, study._train_trial = study._train_trial, train


def die_before_the_version(_: str) -> None:
    from mlflow.tracking import MlflowClient

    MlflowClient.create_model_version = die


def die_before_the_alias(_: str) -> None:
    from mlflow.tracking import MlflowClient

    MlflowClient.set_registered_model_alias = die


def no_system_data(_: str) -> None:
    sources.SYSTEM_FOLDER = Path("/not/there")


FAULTS: dict[str, Callable[[str], None]] = {
    "memory": out_of_memory_in_a_trial,
    "cell-memory": out_of_memory_in_a_cell,
    "kill-worker": kill_the_worker_of_a_trial,
    "diverge": diverge_in_a_trial,
    "before-version": die_before_the_version,
    "before-alias": die_before_the_alias,
    "no-system-data": no_system_data,
}

if fault := os.environ.get("FAULT"):
    name, _, argument = fault.partition(":")
    FAULTS[name](argument)

if __name__ == "__main__":
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # by a shell's `&`
        signal.signal(signal.SIGINT, signal.default_int_handler)
    folder, module, *arguments = sys.argv[1:]
    described = Path(os.environ.get("DESCRIBED_DATA", folder))  # what the files should be
    data.FILES = synthetic.describe(described)
    sys.exit(importlib.import_module(module).command([*arguments, "--data-dir", folder]))
