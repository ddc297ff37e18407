"""Durations, JSON and tables."""

import json
from pathlib import Path

import pytest

from fmnist_transfer.console import duration, print_table, write_json
from fmnist_transfer.errors import StoreError


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59.6, "1 min 00 s"), (185, "3 min 05 s"), (3_720, "1 h 02 min")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_json_has_no_nan_and_leaves_no_temporary_file(tmp_path: Path) -> None:
    write_json(tmp_path / "new" / "result.json", {"a": [1.5, float("nan")], "b": {"c": float("inf")}})
    assert json.loads((tmp_path / "new" / "result.json").read_text()) == {"a": [1.5, None], "b": {"c": None}}
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["result.json"]


def test_json_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"cannot write .*the runs themselves are in the store"):
        write_json(tmp_path / "file" / "result.json", {})


def test_table_is_aligned(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(["name", "x"], [["a", "1"], ["long name", "10"]])
    assert capsys.readouterr().out == "name        x\na           1\nlong name  10\n"
