"""Durations, JSON, tables and headings; what is masked."""

import io
import json
import re
import sys
from pathlib import Path

import pytest

from fmnist_transfer.errors import StoreError
from fmnist_transfer.terminal.output import (
    counted,
    duration,
    masked,
    print_pairs,
    print_table,
    say_heading,
    warn,
    write_json,
)


def test_durations() -> None:
    assert [duration(s) for s in (0.4, 59.6, 185, 3_720)] == ["0 s", "1 min 00 s", "3 min 05 s", "1 h 02 min"]


def test_json_has_no_nan_and_leaves_no_temporary_file(tmp_path: Path) -> None:
    write_json(tmp_path / "new" / "result.json", {"a": [1.5, float("nan")], "b": {"c": float("inf")}})
    assert json.loads((tmp_path / "new" / "result.json").read_text()) == {"a": [1.5, None], "b": {"c": None}}
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["result.json"]


def test_json_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=re.escape(str(tmp_path / "file" / "result.json"))):
        write_json(tmp_path / "file" / "result.json", {})


def test_table_is_aligned(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(["name", "x"], [["a", "1"], ["long name", "10"]])
    assert capsys.readouterr().out == "name        x\na           1\nlong name  10\n"


def test_pairs_are_aligned_below_their_heading(capsys: pytest.CaptureFixture[str]) -> None:
    print_pairs("Look next", {"a": "one", "longer": "postgresql://me:secret@host/db"})
    assert capsys.readouterr().out == "\nLook next\n  a       one\n  longer  postgresql://***@host/db\n"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("environment", "is_styled"),
    [({}, True), ({"NO_COLOR": ""}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)],
)
def test_a_terminal_is_styled_unless_it_is_not_to_be(
    environment: dict[str, str], is_styled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    out, err = Terminal(), Terminal()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    say_heading("Result")
    print_table(["x"], [["1"]])
    warn("slow")
    if is_styled:
        assert out.getvalue() == "\n\x1b[1mResult\x1b[0m\n\x1b[1mx\x1b[0m\n1\n"
        assert err.getvalue() == "\x1b[1;33mnote:\x1b[0m slow\n"
    else:
        assert (out.getvalue(), err.getvalue()) == ("\nResult\nx\n1\n", "note: slow\n")


def test_counted() -> None:
    assert [counted(n, "cell") for n in (0, 1, 2)] == ["0 cells", "1 cell", "2 cells"]


def test_user_information_is_masked() -> None:
    assert masked("postgresql://me:secret@host:5432/db") == "postgresql://***@host:5432/db"
    assert masked("sqlite:////a@b/mlflow.db") == "sqlite:////a@b/mlflow.db"
    text = "http://me:p@s/s@host/api nor 'postgresql://you:canary@db'"
    assert masked(text) == "http://***@host/api nor 'postgresql://***@db'"
    assert masked("postgresql://db/x?user=me&password=canary&a=1") == "postgresql://db/x?user=me&password=***&a=1"


@pytest.mark.parametrize(
    "address",
    [
        "http://host/#/x?y=a@b",
        "http://host:5000/#/x?y=a@b",
        "https://host/a:b@c",
        "http://host:5000?y=a@b",
        "sqlite:////home/me@work/mlflow.db",
    ],
)
def test_an_at_sign_behind_the_path_makes_no_user_information(address: str) -> None:
    assert masked(address) == address


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("http://u:secret@host:5000/#/x?y=a@b", "host:5000/#/x?y=a@b"),
        ("http://u:se/cret@host/x", "host/x"),
        ("http://u:se?cr/et@host/x", "host/x"),
        ("http://u:se@cr/et@host/x", "host/x"),
        ("postgresql://u:s/@?#t@host/db", "host/db"),
        ("http://secret@host/x", "host/x"),
    ],
)
def test_nothing_of_a_secret_is_left(uri: str, expected: str) -> None:
    scheme = uri.partition("://")[0]
    assert masked(f"of {uri} now") == f"of {scheme}://***@{expected} now"
