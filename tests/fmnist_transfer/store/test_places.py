"""Where the store is, and how its URI is written."""

from pathlib import Path

import pytest

from fmnist_transfer.errors import StoreError
from fmnist_transfer.store import places
from fmnist_transfer.store.places import default_folder, sqlite_uri


def test_default_is_the_checkouts_mlruns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert default_folder() == Path(__file__).parents[3] / "mlruns"
    monkeypatch.setattr(places, "PROJECT", tmp_path / "site-packages")
    assert default_folder() == tmp_path / "mlruns"


def test_question_mark_cannot_be_in_a_sqlite_path() -> None:
    with pytest.raises(StoreError, match="what"):
        sqlite_uri(Path("/what?/mlflow.db"))
