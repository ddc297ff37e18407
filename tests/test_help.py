"""What `--help` says: every command and every flag, in words that end."""

import ast
import dataclasses
import functools
import inspect
import itertools
import re
from collections import Counter
from typing import Any

import pytest
from synthetic import entry_point
from test_architecture import MODULES

COMMANDS = {
    "tuning.search": "SearchSettings",
    "sweeps.transfer": "TransferSettings",
    "sweeps.report": "ReportSettings",
    "sweeps.demo": "DemoSettings",
    "fmnist_transfer.show": "ShowSettings",
    "fmnist_transfer.benchmark": "BenchmarkSettings",
}


def settings_of(module: str) -> Any:
    return getattr(entry_point(module), COMMANDS[module])


def flags_of(module: str) -> list[str]:
    return ["--" + field.name.replace("_", "-") for field in dataclasses.fields(settings_of(module))]


@functools.cache
def own_texts(settings: type) -> dict[str, str]:
    """Field that the class itself declares -> the string below it, which is the flag's help."""
    (tree,) = ast.parse(inspect.getsource(settings)).body
    assert isinstance(tree, ast.ClassDef)
    texts = {}
    for field, below in itertools.pairwise(tree.body):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(below, ast.Expr):
            assert isinstance(below.value, ast.Constant)
            texts[field.target.id] = str(below.value.value)
    return texts


def groups_of(settings: type) -> list[type]:
    """The class and those that it inherits flags from, the nearest first."""
    return [group for group in settings.__mro__ if dataclasses.is_dataclass(group)]


def field_texts(settings: type) -> dict[str, str]:
    """Field -> its help, which stands in the nearest class that declares it; in the order of `--help`."""
    texts = {}
    for field in dataclasses.fields(settings):
        declares = next(group for group in groups_of(settings) if field.name in inspect.get_annotations(group))
        if field.name in own_texts(declares):
            texts[field.name] = own_texts(declares)[field.name]
    return texts


@pytest.mark.parametrize("module", COMMANDS)
def test_every_command_and_flag_is_said_in_sentences(module: str) -> None:
    settings = settings_of(module)
    texts = field_texts(settings)
    assert list(texts) == [field.name for field in dataclasses.fields(settings)]
    assert "__doc__" in settings.__dict__, "a command says what it does itself"
    for name, text in (texts | {"command": settings.__doc__}).items():
        assert re.fullmatch(r"[A-Z0-9].*\.", text, re.DOTALL), f"{name}: {text}"
    for field in dataclasses.fields(settings):
        if field.default is None or field.default == ():  # tyro's `default: None` tells nobody what happens
            optional = {"json", "like"}  # without them the command does something else
            assert field.name in optional or "default: " in texts[field.name]


def test_no_help_is_typed_twice() -> None:
    groups = {group for module in COMMANDS for group in groups_of(settings_of(module))}
    typed = Counter(" ".join(text.split()) for group in groups for text in own_texts(group).values())
    assert len(typed) > 40
    assert {text: n for text, n in typed.items() if n > 1} == {}


@pytest.mark.parametrize("module", COMMANDS)
def test_help_names_every_flag(
    module: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    with pytest.raises(SystemExit) as ended:
        entry_point(module).command(["--help"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert f"usage: python -m {module} " in said
    assert " ".join(settings_of(module).__doc__.split()) in " ".join(said.split())
    given = re.findall(r"^\W (--[a-z][a-z-]*)", said, re.MULTILINE)
    assert given == flags_of(module), "each begins a line, and none is added"


def test_every_module_that_is_run_is_here() -> None:
    runnable = {name for name, path in MODULES.items() if 'if __name__ == "__main__":' in path.read_text()}
    assert {name.removesuffix(".__main__") for name in runnable} == set(COMMANDS)
