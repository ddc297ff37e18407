"""The frame of every command: what it parses, command lines, and what is printed below an error."""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hypothesis
import hypothesis.strategies as st
import pytest

from fmnist_transfer.errors import SAME_COMMAND, StoreError, UsageError
from fmnist_transfer.terminal.command import command_line, run_command
from sweeps.grid import INITS
from sweeps.settings import TransferSettings
from tuning.settings import SearchSettings


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
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("error: postgresql://***@host/my db: no store at postgresql://***@host/db; ")
    assert second == "  python -m a.b --name 'postgresql://***@host/my db' --loud"


def test_other_messages_stand_alone(capsys: pytest.CaptureFixture[str]) -> None:
    def fail(settings: Settings) -> int:
        raise UsageError("--sizes 0")

    assert run_command(Settings, fail, "a.b", ["--name", "x"]) == 2
    assert capsys.readouterr().err == "error: --sizes 0\n"


def parsed(settings_type: Any, line: str) -> Any:
    """The settings that the command line gives."""
    found: list[Any] = []
    words = shlex.split(line)
    assert words[:2] == ["python", "-m"]
    status = run_command(settings_type, lambda settings: found.append(settings) or 0, words[2], words[3:])
    assert status == 0
    return found[0]


TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=["C"]), min_size=1, max_size=8).filter(
    lambda text: not text.startswith("-") and text != "None"  # which tyro reads as no value
)


@hypothesis.settings(max_examples=40, deadline=None)
@hypothesis.given(
    fractions=st.lists(st.integers(1, 100), min_size=1, unique=True),
    inits=st.lists(st.sampled_from([*INITS, "pretrained@1", "pretrained@12"]), min_size=1, unique=True),
    replicates=st.integers(1, 1_000),
    epochs=st.none() | st.integers(1, 10**6),
    flags=st.dictionaries(st.sampled_from(["dry_run", "retry_failed", "debug", "take_over"]), st.booleans()).filter(
        lambda flags: not (flags.get("take_over") and flags.get("dry_run"))
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
    max_cost=st.just("none") | st.floats(0, 100),
    split=st.sampled_from(["0-4/5-9", "even/odd", "01234/56789", "random:7"]),
    study_name=st.none() | st.from_regex(r"[a-z][\w.-]{0,8}", fullmatch=True),
    promote=st.booleans(),
    timeout=st.none() | st.floats(0, 1e6),
    json=st.none() | TEXTS.map(Path),
)
def test_a_searchs_command_line_parses_back(**given: Any) -> None:
    settings = SearchSettings(**given)
    assert parsed(SearchSettings, command_line("tuning.search", settings)) == settings
