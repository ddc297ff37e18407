"""Results that wait for the store: there whole or not at all, logged once, set aside if refused."""

from pathlib import Path

import pytest
import requests

from fmnist_transfer.errors import StoreError
from fmnist_transfer.store.opening import open_store
from fmnist_transfer.store.pending_results import PendingResult, PendingResults
from fmnist_transfer.store.retry import RetryPolicy
from fmnist_transfer.store.roles import TRANSFER
from fmnist_transfer.store.runs import Store

ENDING = PendingResult(
    "r1", "FINISHED", [("val/loss", 0.25, 1)], {"weights_digest": "d"}, {"weights.safetensors": b"\x00\x01"}
)


def test_an_ending_comes_back_as_it_was(tmp_path: Path) -> None:
    pending = PendingResults(tmp_path / "spool", tmp_path / "fallback")
    assert list(pending.endings()) == []
    pending.keep(ENDING)
    pending.keep(ENDING)
    assert list(pending.endings()) == [ENDING]
    pending.drop("r1")
    pending.drop("r1")
    assert list(pending.endings()) == []
    assert list(tmp_path.iterdir()) == []


def test_what_is_set_aside_is_kept_and_not_sent_again(tmp_path: Path) -> None:
    pending = PendingResults(tmp_path, tmp_path / "fallback")
    pending.keep(ENDING)
    pending.set_aside("r1", "gone")
    assert (tmp_path / "r1.rejected" / "ending.json").exists()
    assert list(pending.endings()) == []


def test_what_cannot_be_read_is_set_aside_and_stops_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pending = PendingResults(tmp_path / "spool", tmp_path / "fallback")
    pending.keep(ENDING)
    for run_id, text in (("r0", "{"), ("r2", '{"unknown": 1}')):
        (tmp_path / "spool" / run_id).mkdir()
        (tmp_path / "spool" / run_id / "ending.json").write_text(text)
    assert list(pending.endings()) == [ENDING]
    assert capsys.readouterr().err.count("a result that waited for the store is not for it") == 2


def test_where_it_cannot_be_written_it_goes_elsewhere_or_that_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("no folder")
    pending = PendingResults(tmp_path / "file", tmp_path / "fallback")
    pending.keep(ENDING)
    assert list(pending.endings()) == [ENDING]
    assert capsys.readouterr().err == ""
    PendingResults(tmp_path / "file", tmp_path / "file").keep(ENDING)
    assert "note: a result that waits for the store is in memory alone: cannot write" in capsys.readouterr().err


def test_what_the_store_did_not_take_is_logged_when_it_is_opened_again(
    store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Twice the same: the metric is there once. A run that is gone by then does not stop the others."""
    store.retry.timeout_seconds = 0
    run_id, gone, taken = (store.start(TRANSFER, name) for name in ("a run", "gone", "taken over"))

    def refuse(*arguments: object, **options: object) -> None:
        raise requests.exceptions.ConnectionError("Connection refused")

    monkeypatch.setattr(store.once, "set_terminated", refuse)
    for one in (run_id, gone, taken):
        with pytest.raises(StoreError):
            store.conclude(PendingResult(one, "FINISHED", [("val/loss", 0.25, 1)], {"a": "b"}, {"note.txt": b"hello"}))
    monkeypatch.undo()
    store.client.delete_run(gone)
    store.end(taken, "KILLED")
    opened = open_store(store.uri, RetryPolicy())
    run = opened.client.get_run(run_id)
    assert (run.info.status, run.data.tags["a"]) == ("FINISHED", "b")
    assert len(opened.client.get_metric_history(run_id, "val/loss")) == 1
    assert [file.path for file in opened.client.list_artifacts(run_id)] == ["note.txt"]
    assert list(opened.pending.endings()) == []
    captured = capsys.readouterr()
    assert "1 results that the store could not take before are in it now" in captured.out
    assert captured.err.count("a result that waited for the store is not for it") == 2
    assert opened.client.get_run(taken).info.status == "KILLED"
