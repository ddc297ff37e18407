"""The library leaves a program's settings alone: only commands set environment, loggers, warnings and time-outs."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROGRAM = """
import importlib, logging, os, pkgutil, socket, sys, warnings

# Other libraries have side effects of their own, so they come first.
import alembic.command, matplotlib.pyplot, mlflow.pytorch, mlflow.store.tracking.sqlalchemy_store, optuna
import optuna.visualization.matplotlib, scipy.special, scipy.stats, sklearn.datasets, torch._dynamo, torchvision

try:
    import ray
except ImportError:
    pass


def settings():
    loggers = {name: logging.getLogger(name) for name in list(logging.root.manager.loggerDict)} | {"": logging.root}
    return {
        "environment": dict(os.environ),
        "loggers": {name: (logger.level, list(logger.handlers)) for name, logger in loggers.items()},
        "disabled": logging.root.manager.disable,
        "warnings": list(warnings.filters),
        "timeout": socket.getdefaulttimeout(),
        "mlflow": mlflow.get_tracking_uri(),
        "backend": matplotlib.get_backend(auto_select=False),
    }


before = settings()
for package in ("fmnist_transfer", "tuning", "sweeps"):
    for module in pkgutil.walk_packages(importlib.import_module(package).__path__, f"{package}."):
        if "ray" not in module.name or "ray" in sys.modules:
            importlib.import_module(module.name)

from fmnist_transfer.store.opening import open_for_work, open_store
from fmnist_transfer.store.retry import RetryPolicy

open_store(sys.argv[1])
store = open_for_work(sys.argv[1], "fmnist-transfer", RetryPolicy())
store.end(store.start("fmnist-transfer", "a run"))
after = settings()
after["loggers"] = {name: after["loggers"][name] for name in before["loggers"]}  # libraries may have made new ones
for kind in before:
    assert before[kind] == after[kind], (kind, before[kind], after[kind])
"""


def test_importing_the_modules_and_opening_a_store_changes_no_setting(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "mlflow.db")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
