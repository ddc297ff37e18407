"""The layers hold, no module is in a cycle, and parsing flags imports nothing heavy."""

import ast
import functools
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import fmnist_transfer

ROOT = Path(__file__).parents[1]
OURS = ("fmnist_transfer", "tuning", "sweeps")
LAYERS = [  # a module imports its own layer and earlier lines only
    "fmnist_transfer.errors",
    "fmnist_transfer.seeding",
    "fmnist_transfer.identity",
    "fmnist_transfer.data",
    "fmnist_transfer.network",
    "fmnist_transfer.terminal",
    "fmnist_transfer.training",
    "fmnist_transfer.workers",
    "fmnist_transfer.store",
    "fmnist_transfer.logged_tasks",
    "fmnist_transfer.flags",
    "fmnist_transfer.show",
    "fmnist_transfer.benchmark",
    "tuning.settings",
    "tuning.space",
    "tuning.study",
    "tuning.trainings",
    "tuning.trials",
    "tuning.winner",
    "tuning.steps",
    "tuning.search",
    "sweeps.grid",
    "sweeps.rows",
    "sweeps.settings",
    "sweeps.training",
    "sweeps.analysis",
    "sweeps.results",
    "sweeps.report",
    "sweeps.steps",
    "sweeps.transfer",
    "sweeps.demo",
]
APART = {  # neither imports the other
    ("tuning", "sweeps"),
    ("fmnist_transfer.data", "fmnist_transfer.terminal"),
    ("fmnist_transfer.network", "fmnist_transfer.data"),
    ("fmnist_transfer.training", "fmnist_transfer.terminal"),
    ("fmnist_transfer.workers", "fmnist_transfer.store"),
}
ONLY = {"mlflow": "fmnist_transfer.store", "ray": "fmnist_transfer.workers", "optuna": "tuning"}
MODULES = {  # a folder's `__init__.py` is exempt: it is empty, or imports lazily
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path
    for package in OURS
    for path in sorted((ROOT / package).rglob("*.py"))
    if path.name != "__init__.py"
}


def is_in(module: str, place: str) -> bool:
    """Whether the module is `place` or lies in that folder."""
    return module == place or module.startswith(f"{place}.")


def layers_of(module: str) -> list[int]:
    return [i for i, layer in enumerate(LAYERS) if is_in(module, layer)]


@functools.cache
def imports(path: Path) -> frozenset[str]:
    """Every module and name that the file imports: at its top, in functions, and for types alone."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            names |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(names)


def imported_modules(module: str) -> set[str]:
    """Our own modules among them."""
    return {name for name in imports(MODULES[module]) if name in MODULES}


def importers(place: str) -> set[str]:
    return {module for module, path in MODULES.items() if any(is_in(name, place) for name in imports(path))}


def cycles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Each cycle that a depth-first walk closes."""
    closed, done, path = [], set[str](), list[str]()

    def walk(module: str) -> None:
        if module in path:
            closed.append([*path[path.index(module) :], module])
        elif module not in done:
            path.append(module)
            for imported in sorted(graph[module]):
                walk(imported)
            done.add(path.pop())

    for module in sorted(graph):
        walk(module)
    return closed


def test_every_module_is_in_exactly_one_layer() -> None:
    assert {module: layers_of(module) for module in MODULES if len(layers_of(module)) != 1} == {}
    assert [layer for layer in LAYERS if not any(is_in(module, layer) for module in MODULES)] == []


def test_a_module_imports_its_own_layer_and_earlier_ones_only() -> None:
    upward = [
        f"{module} imports {imported}"
        for module in MODULES
        for imported in imported_modules(module)
        if layers_of(imported) > layers_of(module)
    ]
    assert upward == []


def test_no_cycle() -> None:
    assert cycles({module: imported_modules(module) for module in MODULES}) == []


def test_a_cycle_would_be_found() -> None:
    assert cycles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == [["b", "c", "b"]]


@pytest.mark.parametrize(("one", "other"), sorted(APART))
def test_these_are_apart(one: str, other: str) -> None:
    for importer, imported in ((one, other), (other, one)):
        assert {module for module in importers(imported) if is_in(module, importer)} == set()


@pytest.mark.parametrize("library", ONLY)
def test_a_library_is_imported_in_its_place_only(library: str) -> None:
    assert {module for module in importers(library) if not is_in(module, ONLY[library])} == set()
    assert importers(library)


def test_our_own_code_imports_from_the_modules() -> None:
    public = {f"fmnist_transfer.{name}" for name in fmnist_transfer.__all__}
    assert {module for module, path in MODULES.items() if imports(path) & public} == set()


def in_a_process_of_its_own(code: str) -> None:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr


def test_the_terminal_needs_nothing_heavy() -> None:
    in_a_process_of_its_own(
        "import sys, fmnist_transfer.terminal.command, fmnist_transfer.terminal.progress, fmnist_transfer.store.links\n"
        "assert not {'torch', 'mlflow', 'optuna', 'rich', 'numpy'} & set(sys.modules)\n"
    )


def test_the_public_names_are_imported_when_asked_for() -> None:
    in_a_process_of_its_own(
        "import sys, fmnist_transfer\n"
        "assert 'torch' not in sys.modules\n"
        "from fmnist_transfer import Recipe, Streams, UserError, errors\n"
        "assert 'torch' in sys.modules, 'Streams needs it'\n"
        "from fmnist_transfer import *\n"
        "assert set(fmnist_transfer.__all__) <= set(dir(fmnist_transfer)) & set(globals())\n"
        "assert len(fmnist_transfer.__all__) == 34\n"
        "assert not hasattr(fmnist_transfer, 'nonsense')\n"
        "assert not {'mlflow', 'optuna', 'matplotlib', 'sweeps'} & set(sys.modules)\n"
    )


@pytest.mark.parametrize(
    ("module", "arguments"),
    [
        ("fmnist_transfer.benchmark.__main__", ["--help"]),
        ("fmnist_transfer.benchmark.__main__", ["--workers", "0"]),
        ("tuning.search", ["--help"]),
        ("sweeps.transfer", ["--help"]),
        ("sweeps.report.__main__", ["--help"]),
        ("sweeps.demo", ["--help"]),
        ("fmnist_transfer.show", ["--help"]),
        ("fmnist_transfer.show", ["--port", "0"]),
        ("fmnist_transfer.show", ["--tracking-uri", "no such folder/mlflow.db"]),
        ("sweeps.report.__main__", ["--store-timeout", "-1"]),
        ("tuning.search", ["--trials", "0"]),
        ("sweeps.transfer", ["--model-uri", "models:/cnn2/best", "--fractions", "0"]),
    ],
)
def test_flags_are_parsed_before_torch_is_imported(module: str, arguments: list[str]) -> None:
    in_a_process_of_its_own(
        f"import sys, {module} as command\n"
        f"try: command.command({arguments})\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'mlflow', 'optuna', 'matplotlib', 'scipy', 'sqlalchemy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )


def docstrings(path: Path) -> Iterator[tuple[int, str]]:
    """Line and text of each docstring, those of fields too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            for statement in node.body if isinstance(node, ast.ClassDef) else node.body[:1]:
                if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
                    yield statement.lineno, str(statement.value.value)


def test_docstrings_begin_with_a_verb_or_a_noun() -> None:
    worst = re.compile(r"(Of|What|Whether|Those|That|Who|Which|Where|How|By)\b|.*\bof before\b")
    found = [f"{path}:{line}" for path in MODULES.values() for line, text in docstrings(path) if worst.match(text)]
    assert found == []
