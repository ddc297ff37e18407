"""What runs say of the commit that they were made by."""

import re
import subprocess
from pathlib import Path

import pytest

from fmnist_transfer.store.lock import git_tags


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A repository of one commit, nothing of it changed."""
    folder = tmp_path / "repository"
    (folder / "package").mkdir(parents=True)
    (folder / "package" / "module.py").write_text("")
    for command in (["init", "-q"], ["add", "."], ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "a"]):
        subprocess.run(["git", *command], cwd=folder, check=True, capture_output=True)
    return folder


def test_a_checkout_has_a_commit_and_says_whether_it_was_changed(checkout: Path) -> None:
    tags = git_tags(checkout)
    assert set(tags) == {"mlflow.source.git.commit", "git_dirty"}
    assert re.fullmatch(r"[0-9a-f]{40}", tags["mlflow.source.git.commit"])
    assert tags["git_dirty"] == "false"
    (checkout / "package" / "module.py").write_text("changed = True\n")
    assert git_tags(checkout) == tags | {"git_dirty": "true"}


def test_a_link_to_a_checkout_is_that_checkout(checkout: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(checkout)
    assert git_tags(tmp_path / "link") == git_tags(checkout) != {}


def test_a_package_within_another_repository_names_no_commit(checkout: Path) -> None:
    """As one that is installed in an environment below somebody's project."""
    assert git_tags(checkout / "package") == {}


def test_what_is_no_repository_names_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert git_tags(tmp_path) == {}
    monkeypatch.setenv("PATH", str(tmp_path))  # no git
    assert git_tags(tmp_path) == {}
    assert git_tags(tmp_path / "is not there") == {}
