"""What every run says of its origin: package version, git commit, command, process."""

import contextlib
import functools
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from fmnist_transfer.store.lock import Owner
from fmnist_transfer.store.places import PROJECT


@functools.cache
def provenance() -> dict[str, str]:
    """Tags of every run: package version, git commit, the command, and the process that owns it."""
    try:
        package = version("fmnist-transfer")
    except PackageNotFoundError:
        package = "not installed"
    main = getattr(sys.modules["__main__"], "__spec__", None)
    command = main.name if main else Path(sys.argv[0]).name
    tags = {"package_version": package, "mlflow.source.type": "LOCAL", "mlflow.source.name": command}
    tags |= Owner.this_process().to_tags()
    git = ["git", "-C", str(PROJECT)]
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True).stdout
        tags |= {"mlflow.source.git.commit": commit, "git_dirty": str(bool(changed.strip())).lower()}
    return tags
