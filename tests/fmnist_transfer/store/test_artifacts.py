"""The check that artifacts can be written, before any work."""

from pathlib import Path
from typing import Any

import pytest
import requests

from fmnist_transfer.errors import StoreError
from fmnist_transfer.store import opening
from fmnist_transfer.store.opening import open_for_work
from fmnist_transfer.store.retry import RetryPolicy
from fmnist_transfer.store.roles import TRANSFER
from fmnist_transfer.store.runs import Store


def test_a_good_place_keeps_nothing_of_the_check(store: Store) -> None:
    open_for_work(store.uri, TRANSFER, store.retry)
    assert list((store.folder / "artifacts" / TRANSFER).rglob("*")) == []


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (PermissionError(13, "no", "/srv/artifacts"), "access"),
        (ModuleNotFoundError("boto3"), "Install"),
        (requests.exceptions.RetryError("500"), "access"),
    ],
)
def test_a_place_that_cannot_be_written_is_named_with_a_remedy(
    store_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, remedy: str
) -> None:
    class Repository:
        def log_artifact(self, *_: Any) -> None:
            raise error

    monkeypatch.setattr(opening, "get_artifact_repository", lambda *_: Repository())
    with pytest.raises(StoreError, match=remedy) as refused:
        open_for_work(str(store_path), TRANSFER, RetryPolicy(timeout_seconds=0))
    assert str((store_path.parent / "artifacts" / TRANSFER).as_uri()) in str(refused.value)
