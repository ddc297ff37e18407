"""The arrows between the packages, and that parsing flags imports nothing heavy."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import fmnist_transfer

ROOT = Path(__file__).parents[1]
ABOVE_TRAINING = ["tracking", "registry", "console", "parallel", "database", "patience", "spool", "ownership", "repair"]
ABOVE_TRAINING += ["processes", "cluster", "ray_actor", "lease", "progress", "ui", "show"]
OURS = ("fmnist_transfer", "tuning", "sweeps")
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path
    for package in OURS
    for path in (ROOT / package).glob("*.py")
}


def imports(path: Path) -> set[str]:
    """Every module that the file imports, at its top or later, but for types alone."""
    found = set()
    tree = ast.parse(path.read_text())
    tree.body = [
        node for node in tree.body if not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test))
    ]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def importers(of: str) -> set[str]:
    return {
        name for name, path in MODULES.items() if any(one == of or one.startswith(f"{of}.") for one in imports(path))
    }


def test_the_library_knows_no_command() -> None:
    for package in ("tuning", "sweeps"):
        assert {name for name in importers(package) if not name.startswith(package)} == set()


def test_only_tracking_and_registry_import_mlflow() -> None:
    assert importers("mlflow") == {"fmnist_transfer.tracking", "fmnist_transfer.registry"}


def test_only_tuning_imports_optuna() -> None:
    assert {name.split(".")[0] for name in importers("optuna")} == {"tuning"}


def test_ray_is_imported_by_its_engine_alone() -> None:
    assert importers("ray") == {"fmnist_transfer.cluster", "fmnist_transfer.ray_actor"}


def test_training_and_what_lies_below_it_know_no_store() -> None:
    above = {f"fmnist_transfer.{name}" for name in ABOVE_TRAINING}
    for name in (
        "data",
        "datasets",
        "sources",
        "split",
        "model",
        "recipe",
        "seeding",
        "augmentation",
        "evaluation",
        "training",
        "stacked",
        "forecast",
    ):
        assert not imports(MODULES[f"fmnist_transfer.{name}"]) & above
    for name in ("data", "datasets", "model", "recipe", "seeding"):
        assert "fmnist_transfer.training" not in imports(MODULES[f"fmnist_transfer.{name}"])


def test_what_the_ui_is_told_knows_nothing_of_ours() -> None:
    assert imports(MODULES["fmnist_transfer.ui"]) == {
        *("json", "typing", "typing.Any", "urllib.parse", "urllib.parse.quote")
    }


def test_what_a_terminal_shows_needs_neither_torch_nor_mlflow() -> None:
    for name in ("console", "progress", "errors", "database"):
        found = imports(MODULES[f"fmnist_transfer.{name}"])
        assert not {one.partition(".")[0] for one in found} & {"torch", "mlflow", "optuna", *OURS[1:]}
        assert "fmnist_transfer.tracking" not in found
    code = (
        "import sys, fmnist_transfer.console, fmnist_transfer.progress, fmnist_transfer.ui\n"
        "assert not {'torch', 'mlflow', 'optuna', 'rich', 'numpy'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr


def test_the_public_names_are_imported_when_asked_for() -> None:
    assert imports(ROOT / "fmnist_transfer" / "__init__.py") == {
        "importlib",
        "importlib.import_module",
        "typing",
        "typing.TYPE_CHECKING",
        "typing.Any",
    }
    for package in ("tuning", "sweeps"):
        assert imports(ROOT / package / "__init__.py") == set()
    code = (
        "import sys, fmnist_transfer\n"
        "from fmnist_transfer import Recipe, Streams, UserError, errors\n"
        "assert 'torch' in sys.modules, 'Streams needs it'\n"
        "from fmnist_transfer import *\n"
        "assert set(fmnist_transfer.__all__) <= set(dir(fmnist_transfer)) & set(globals())\n"
        "assert not hasattr(fmnist_transfer, 'nonsense')\n"
        "assert not {'mlflow', 'optuna', 'matplotlib', 'sweeps'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr


def test_public_names_are_typed_where_they_are_at_home() -> None:
    tree = ast.parse((ROOT / "fmnist_transfer" / "__init__.py").read_text())
    typed = {
        alias.asname: node.module
        for block in tree.body
        if isinstance(block, ast.If)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert typed == {name: f"fmnist_transfer.{home}" for name, home in fmnist_transfer._HOMES.items()}


def test_our_own_code_imports_from_the_modules() -> None:
    for path in MODULES.values():
        assert not imports(path) & {f"fmnist_transfer.{name}" for name in fmnist_transfer.__all__}


@pytest.mark.parametrize(
    ("module", "arguments"),
    [
        ("fmnist_transfer.benchmark", ["--help"]),
        ("fmnist_transfer.benchmark", ["--workers", "0"]),
        ("tuning.search", ["--help"]),
        ("sweeps.transfer", ["--help"]),
        ("sweeps.report", ["--help"]),
        ("fmnist_transfer.show", ["--help"]),
        ("fmnist_transfer.show", ["--port", "0"]),
        ("fmnist_transfer.show", ["--tracking-uri", "no such folder/mlflow.db"]),
        ("sweeps.report", ["--store-timeout", "-1"]),
        ("tuning.search", ["--trials", "0"]),
        ("sweeps.transfer", ["--model-uri", "models:/cnn2/best", "--fractions", "0"]),
    ],
)
def test_flags_are_parsed_before_torch_is_imported(module: str, arguments: list[str]) -> None:
    code = (
        f"import sys, {module} as command\n"
        f"try: command.command({arguments})\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'mlflow', 'optuna', 'matplotlib', 'scipy', 'sqlalchemy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
