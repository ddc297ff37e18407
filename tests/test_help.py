"""What `--help` says: every command and every flag, in words that end."""

import ast
import dataclasses
import importlib
import inspect
import re
from typing import Any

import pytest

COMMANDS = {
    "tuning.search": "SearchSettings",
    "sweeps.transfer": "TransferSettings",
    "sweeps.report": "ReportSettings",
    "fmnist_transfer.show": "ShowSettings",
    "fmnist_transfer.repair": "RepairSettings",
    "fmnist_transfer.benchmark": "BenchmarkSettings",
}


def settings_of(module: str) -> Any:
    return getattr(importlib.import_module(module), COMMANDS[module])


def flags_of(module: str) -> list[str]:
    return ["--" + field.name.replace("_", "-") for field in dataclasses.fields(settings_of(module))]


def field_texts(settings: Any) -> dict[str, str]:
    """Field -> the string below it, which is the flag's help."""
    (tree,) = ast.parse(inspect.getsource(settings)).body
    assert isinstance(tree, ast.ClassDef)
    texts = {}
    for field, below in zip(tree.body, tree.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(below, ast.Expr):
            assert isinstance(below.value, ast.Constant)
            texts[field.target.id] = str(below.value.value)
    return texts


@pytest.mark.parametrize("module", COMMANDS)
def test_every_command_and_flag_is_said_in_sentences(module: str) -> None:
    settings = settings_of(module)
    texts = field_texts(settings)
    assert list(texts) == [field.name for field in dataclasses.fields(settings)]
    for name, text in (texts | {"command": settings.__doc__}).items():
        assert re.fullmatch(r"[A-Z0-9].*\.", text, re.DOTALL), f"{name}: {text}"
    for field in dataclasses.fields(settings):
        if field.default is None or field.default == ():  # tyro's `default: None` tells nobody what happens
            assert "default: " in texts[field.name] or field.name == "json" or "Do not search" in texts[field.name]


@pytest.mark.parametrize("module", COMMANDS)
def test_help_names_every_flag(
    module: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(module).command(["--help"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert f"usage: python -m {module} " in said
    assert " ".join(settings_of(module).__doc__.split()) in " ".join(said.split())
    given = set(re.findall(r"^[^\w-]*(--[a-z][a-z-]*)", said, re.MULTILINE))
    assert given == set(flags_of(module)), "each begins a line, and none is added"


def test_every_module_that_is_run_is_here() -> None:
    from test_architecture import MODULES

    runnable = {name for name, path in MODULES.items() if 'if __name__ == "__main__":' in path.read_text()}
    assert runnable == set(COMMANDS)
