"""Durations, JSON, tables and headings; command lines, and what is printed below an error."""

import io
import json
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hypothesis
import hypothesis.strategies as st
import pytest

from fmnist_transfer.errors import SAME_COMMAND, StoreError, UsageError
from fmnist_transfer.terminal.command import command_line, run_command
from fmnist_transfer.terminal.output import (
    about,
    counted,
    duration,
    print_pairs,
    print_table,
    say_heading,
    warn,
    write_json,
)
from sweeps.grid import INITS
from sweeps.settings import TransferSettings
from tuning.settings import SearchSettings


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


def test_groups_of_columns_have_titles(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [["5", "1.25", "1.5", "90.0"], ["100", "0.5", "0.75", "95.5"]]
    print_table(["percent", "own", "random", "own"], rows, {"loss": 2, "accuracy, %": 1})
    assert capsys.readouterr().out.splitlines() == [
        "                 loss  accuracy, %",
        "percent   own  random          own",
        "5        1.25     1.5         90.0",
        "100       0.5    0.75         95.5",
    ]


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
    print_table(["x"], [["1"]], {})
    warn("slow")
    if is_styled:
        assert out.getvalue() == "\n\x1b[1mResult\x1b[0m\n\x1b[1mx\x1b[0m\n1\n"
        assert err.getvalue() == "\x1b[1;33mnote:\x1b[0m slow\n"
    else:
        assert (out.getvalue(), err.getvalue()) == ("\nResult\nx\n1\n", "note: slow\n")


@pytest.mark.parametrize(("seconds", "text"), [(0, "a few seconds"), (4.9, "a few seconds"), (65, "about 1 min 05 s")])
def test_about_how_long(seconds: float, text: str) -> None:
    assert about(seconds) == text


def test_counted() -> None:
    assert [counted(n, "cell") for n in (0, 1, 2)] == ["0 cells", "1 cell", "2 cells"]


@dataclass(frozen=True)
class Settings:
    """A command of the tests."""

    name: str
    """Whose."""
    sizes: tuple[int, ...] = (1, 2)
    """Some."""
    loud: bool = False
    """Shout."""
    colour: bool = True
    """Paint."""
    place: Path | None = None
    """Where."""
    debug: bool = False
    """Show the traceback of an error."""


def test_command_line_has_what_is_not_at_its_default() -> None:
    assert command_line("a.b", Settings("x")) == "python -m a.b --name x"
    settings = Settings("it's", (3, 4), loud=True, colour=False, place=Path("my folder/a"))
    assert command_line("a.b", settings, loud=False, debug=True) == (
        """python -m a.b --name 'it'"'"'s' --sizes 3 4 --no-colour --place 'my folder/a' --debug"""
    )


def test_a_message_that_says_the_same_command_is_followed_by_it(capsys: pytest.CaptureFixture[str]) -> None:
    def fail(settings: Settings) -> int:
        raise StoreError(f"{settings.name}: no store at postgresql://me:secret@host/db; {SAME_COMMAND}")

    status = run_command(Settings, fail, "a.b", ["--name", "postgresql://me:secret@host/my db", "--loud"])
    assert status == 4
    assert capsys.readouterr().err == (
        "error: postgresql://***@host/my db: no store at postgresql://***@host/db; run the same command to go on\n"
        "  python -m a.b --name 'postgresql://***@host/my db' --loud\n"
    )


def test_other_messages_stand_alone(capsys: pytest.CaptureFixture[str]) -> None:
    def fail(settings: Settings) -> int:
        raise UsageError("--sizes 0: must be 1 or more")

    assert run_command(Settings, fail, "a.b", ["--name", "x"]) == 2
    assert capsys.readouterr().err == "error: --sizes 0: must be 1 or more\n"


def parsed(settings_type: Any, line: str) -> Any:
    """The settings that the command line gives."""
    found: list[Any] = []
    words = shlex.split(line)
    assert words[:2] == ["python", "-m"]
    status = run_command(settings_type, lambda settings: found.append(settings) or 0, words[2], words[3:])
    assert status == 0
    return found[0]


TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=["C"]), min_size=1, max_size=8).filter(
    lambda text: not text.startswith("-")
)


@hypothesis.settings(max_examples=40, deadline=None)
@hypothesis.given(
    fractions=st.lists(st.integers(1, 100), min_size=1, unique=True),
    inits=st.lists(st.sampled_from(INITS), min_size=1, unique=True),
    replicates=st.integers(1, 1_000),
    epochs=st.none() | st.integers(1, 10**6),
    flags=st.dictionaries(st.sampled_from(["dry_run", "retry_failed", "debug", "join"]), st.booleans()).filter(
        lambda flags: not (flags.get("join") and flags.get("dry_run"))
    ),
    seconds=st.floats(0, 1_000),
    model_uri=TEXTS,
    data_dir=st.none() | TEXTS.map(Path),
)
def test_a_sweeps_command_line_parses_back(flags: dict[str, bool], seconds: float, **given: Any) -> None:
    given |= {key: tuple(given[key]) for key in ("fractions", "inits")}
    settings = TransferSettings(**given, **flags, store_timeout=seconds)
    assert parsed(TransferSettings, command_line("sweeps.transfer", settings)) == settings


@hypothesis.settings(max_examples=40, deadline=None)
@hypothesis.given(
    trials=st.integers(1, 1_000),
    max_mflops=st.just("none") | st.floats(0, 100),
    split=st.sampled_from(["0-4/5-9", "even/odd", "01234/56789", "random:7"]),
    study_name=st.none() | st.from_regex(r"[a-z][\w.-]{0,8}", fullmatch=True),
    promote=st.booleans(),
    timeout=st.none() | st.floats(0, 1e6),
    json=st.none() | TEXTS.map(Path),
)
def test_a_searchs_command_line_parses_back(**given: Any) -> None:
    settings = SearchSettings(**given)
    assert parsed(SearchSettings, command_line("tuning.search", settings)) == settings
