"""The command that mends a moved store: what it refuses."""

from pathlib import Path

import pytest

from fmnist_transfer import repair as module
from fmnist_transfer.errors import StoreError
from fmnist_transfer.repair import RepairSettings, main


@pytest.mark.parametrize(
    ("uri", "message"),
    [("http://me:canary@host", "http://me:canary@host: only a sqlite store"), ("no.db", "not there")],
)
def test_what_cannot_be_mended(uri: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StoreError, match=message):
        main(RepairSettings(tracking_uri=uri))
    assert module.command(["--tracking-uri", uri]) == 4
