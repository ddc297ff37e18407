"""Tags that record a run's origin."""

import functools
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from fmnist_transfer.store.lock import Owner
from fmnist_transfer.store.places import PROJECT


@functools.cache
def provenance() -> dict[str, str]:
    """Tags of every run: package version, git commit, command, and the process that owns it."""
    try:
        package = version("fmnist-transfer")
    except PackageNotFoundError:
        package = "not installed"
    main = getattr(sys.modules["__main__"], "__spec__", None)
    command = main.name if main else Path(sys.argv[0]).name
    tags = {"package_version": package, "mlflow.source.type": "LOCAL", "mlflow.source.name": command}
    tags |= Owner.this_process().to_tags()
    return tags | git_tags(PROJECT)


def git_tags(checkout: Path) -> dict[str, str]:
    """Commit and dirty flag of the checkout; empty if `checkout` is not the root of a repository.

    An installed package may lie inside another repository, whose commit would be misleading.
    """

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(checkout), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != checkout.resolve():
            return {}
        is_dirty = bool(git("status", "--porcelain"))
        return {"mlflow.source.git.commit": git("rev-parse", "HEAD"), "git_dirty": str(is_dirty).lower()}
    except (OSError, subprocess.CalledProcessError):
        return {}
