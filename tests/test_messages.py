"""Messages as users read them, whole lines: the one place where tests fix wording, by one golden test per kind."""

import errno
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from constructed import rows, sweep

from fmnist_transfer.data import files
from fmnist_transfer.errors import SAME_COMMAND
from fmnist_transfer.logged_tasks import run_logged
from fmnist_transfer.store import retry
from fmnist_transfer.store.lock import busy
from fmnist_transfer.store.registry import resolve
from fmnist_transfer.store.runs import Store
from fmnist_transfer.terminal.command import run_command
from fmnist_transfer.terminal.output import write_json
from fmnist_transfer.terminal.progress import Progress
from fmnist_transfer.workers.run import Workers
from fmnist_transfer.workers.stop import StopSignal
from sweeps.report.findings import find
from sweeps.report.write import claims_text, markdown_of
from tuning import search

Said = Callable[[], str]


@pytest.fixture
def err(capsys: pytest.CaptureFixture[str]) -> Said:
    return lambda: capsys.readouterr().err


@dataclass(frozen=True)
class Settings:
    """A command of the tests."""

    size: int = 1
    """How large."""
    debug: bool = False
    """Show the traceback of an error."""


def status_of(act: Callable[[], Any]) -> int:
    """Exit status of a command that does this."""
    return run_command(Settings, lambda settings: act() or 0, "a.b", ["--size", "3"])


def test_a_usage_error(err: Said) -> None:
    assert search.command(["--trials", "0"]) == 2
    assert err() == "error: --trials 0: must be 1 or more\n"


def test_data_that_is_damaged(tmp_path: Path, data_dir: Path, err: Said) -> None:
    name = files.FILES[0].name
    (tmp_path / "FashionMNIST" / "raw").mkdir(parents=True)
    (tmp_path / "FashionMNIST" / "raw" / name).write_bytes(b"short")
    assert status_of(lambda: files.ensure_files(tmp_path)) == 3
    assert err() == (
        f"error: {tmp_path}/FashionMNIST/raw/{name}: expected {files.FILES[0].n_bytes} bytes, found 5: "
        "truncated or altered. Delete it and run the same command again to fetch it anew.\n"
    )


def test_a_model_that_is_unknown(store: Store, err: Said) -> None:
    assert status_of(lambda: resolve(store, "models:/cnn2/best")) == 3
    assert err() == (
        f"error: no alias 'best' of model 'cnn2' in {store.uri}. Known: no model; run python -m tuning.search first\n"
    )


def test_a_file_that_cannot_be_written(tmp_path: Path, err: Said) -> None:
    (tmp_path / "file").touch()
    assert status_of(lambda: write_json(tmp_path / "file" / "a.json", {})) == 4
    assert err() == f"error: cannot write {tmp_path}/file/a.json: file exists; the runs themselves are in the store\n"


def test_a_second_driver(err: Said) -> None:
    def refuse() -> None:
        raise busy("sweep", "host a, pid 7, since 2026-01-01 12:00:00")

    assert status_of(refuse) == 5
    assert err() == (
        "error: this sweep is being run by another process (host a, pid 7, since 2026-01-01 12:00:00). "
        "Wait for it or stop it; finished work is kept\n"
    )


def test_an_interruption_shows_the_command_that_goes_on(err: Said) -> None:
    def interrupt() -> None:
        with StopSignal() as stop:
            os.kill(os.getpid(), signal.SIGTERM)
            stop.raise_if_set(f"3 of 8 cells done; {SAME_COMMAND}")

    assert status_of(interrupt) == 143
    assert err() == "error: 3 of 8 cells done; run the same command to go on\n  python -m a.b --size 3\n"


def test_an_error_that_nobody_expected(err: Said) -> None:
    assert status_of(lambda: {}["key"]) == 1
    assert err() == "error: KeyError: 'key'. Finished work is kept; --debug shows where.\n"


def test_notes_of_a_store_that_was_away(monkeypatch: pytest.MonkeyPatch, err: Said) -> None:
    monkeypatch.setattr(retry, "FIRST_WAIT_SECONDS", 0.001)
    errors = [OSError(errno.ENOSPC, "No space left on device")]

    def ask() -> None:
        if errors:
            raise errors.pop()

    retry.RetryPolicy().call(ask)
    assert err() == (
        "note: the store does not answer (disk full); trying again for up to 5 min 00 s\n"
        "note: the store answers again, after 0 s\n"
    )


def test_a_task_that_fails(capsys: pytest.CaptureFixture[str]) -> None:
    def fail(*_: Any) -> None:
        raise ValueError("no")

    log: Any = SimpleNamespace(
        name=lambda task: f"cell {task}", begin=lambda task: None, end=lambda outcome: "", close=lambda: None
    )
    with StopSignal() as stop, Workers(1, stop) as workers, Progress("cells", 1, clock=lambda: 0.0) as progress:
        run_logged(workers, fail, None, [4], log=log, progress=progress)
    assert capsys.readouterr() == ("cell 4 failed: ValueError: no\n", "cells: 1 of 1 after 0 s\n")


def test_lines_of_progress_where_it_is_piped(err: Said) -> None:
    now = 0.0
    with Progress("trials", 2, clock=lambda: now) as progress:
        now = 60.0
        progress.working(0, 0.5, "trial 0: epoch 4/8")
        progress.finished(0)
        now = 3_720.0
        progress.finished(1, "trial 1: 91.20%")
    assert err() == (
        "trials: 0 of 2 after 1 min 00 s, about 3 min 00 s left; trial 0: epoch 4/8\n"
        "trials: 2 of 2 after 1 h 02 min; trial 1: 91.20%\n"
    )


def test_a_dry_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--trials", "5", "--top", "3", "--dry-run"]
    assert search.command(["--tracking-uri", str(tmp_path / "mlflow.db"), *flags]) == 0
    assert capsys.readouterr().out.splitlines()[-3:-1] == [
        "Study 'cnn2': 0 trials done, 5 would run",
        "Then the best 3 would be trained again with fresh seeds, and one registered, unless this is done already",
    ]


def test_a_verdict_in_the_terminal() -> None:
    judged = sweep(rows(6, {"final/train_loss": 0.1, "heldout/loss": 0.1}))
    lines = claims_text(judged, find(judged)).splitlines()
    assert lines[0].startswith("1. training loss: pretrained is lower at every fraction: holds (it is lower at every")
    assert lines[1].startswith("   Random against pretrained: +")
    assert lines[1].endswith("% of the loss at 5 % (N = 6).")
    assert lines[-1].startswith("All replicates start from one source network")


def test_the_head_of_a_report() -> None:
    begun = sweep(rows(1, {})[:1])
    text = markdown_of(begun, find(begun), {})
    assert text.split("\n\n")[:2] == [
        "# Transfer from classes 01234 to classes 56789",
        "Is a network that was trained on Fashion-MNIST classes 01234 a better start for classes 56789 than random\n"
        "weights, and up to how much data?\n"
        "Sweep `0123456789abcdef` (`cnn2/1 on classes 56789`):\n"
        "no complete replicate of both inits.",
    ]
