"""README and docs/: what they point to is there, the commands they show have these flags, the layout is the code's."""

import contextlib
import io
import re
import shlex

import pytest
from test_architecture import MODULES, OURS, ROOT
from test_help import COMMANDS, flags_of, settings_of

PAGES = {
    page.relative_to(ROOT).as_posix(): page for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
}
# Only the flags of such commands are looked at: something stands for something else (`...`, RUN_ID, HOST, FILE), or
# they need what may not be installed.
PLACEHOLDER = re.compile(r"\.\.\.|\b[A-Z]{2,}(_[A-Z]+)*\b")
EXTRA = re.compile(r"--engine ray|--dashboard|postgresql://")


def commands(text: str) -> list[str]:
    """Every `python -m OURS.module ...` in code, to its end: inline (across lines) or a line of a block."""
    blocks = re.findall(r"^ *```.*?^ *```", text, re.DOTALL | re.MULTILINE)
    for block in blocks:
        text = text.replace(block, "")
    joined = [line for block in blocks for line in block.replace("\\\n", " ").replace("&&\n", "&& ").splitlines()]
    snippets = [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", text)] + joined
    found = []
    for snippet in snippets:
        for part in re.split(r"&&|\|", re.sub(r"\s#.*", "", snippet)):
            if begin := re.search(rf"python -m ({'|'.join(OURS)})\.\w+", part):
                found.append(" ".join(part[begin.start() :].split()))
    return found


def slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES)
def test_links_and_pictures_are_there(page: str) -> None:
    text = re.sub(r"```.*?```", "", PAGES[page].read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        file, _, anchor = target.partition("#")
        there = (PAGES[page].parent / file).resolve() if file else PAGES[page]
        assert there.exists(), target
        if anchor:
            assert anchor in {slug(line.lstrip("# ")) for line in there.read_text().splitlines() if line[:1] == "#"}


@pytest.mark.parametrize("page", PAGES)
def test_commands_that_are_shown_parse(page: str) -> None:
    """Each flag is one of the command's, and where nothing stands for something else its value is allowed, too."""
    import tyro

    for shown in commands(PAGES[page].read_text()):
        module, *arguments = shlex.split(shown.removeprefix("python -m "))
        assert module in COMMANDS, shown
        settings = settings_of(module)
        assert {word for word in arguments if word.startswith("--")} <= {*flags_of(module), "--help"}, shown
        if PLACEHOLDER.search(shown) or EXTRA.search(shown) or "--help" in arguments:
            continue
        if module == "sweeps.transfer" and not arguments:  # the command's name, and not how it is called
            continue
        said = io.StringIO()
        try:
            with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
                tyro.cli(settings, args=arguments)
        except SystemExit:
            pytest.fail(f"{shown}\n{said.getvalue()}")


@pytest.mark.parametrize("page", sorted(set(PAGES) - {"docs/changelog.md"}))  # which names what is gone
def test_flags_that_stand_alone_are_a_command_s(page: str) -> None:
    text = re.sub(r"```.*?```", "", PAGES[page].read_text(), flags=re.DOTALL)
    named = set(re.findall(r"`(--[a-z][a-z-]*)", text))
    assert named <= {"--help"}.union(*map(flags_of, COMMANDS))


def test_the_commands_are_found() -> None:
    text = "so `python -m sweeps.report\n--vs A`:\n```\n"
    text += "python -m tuning.search \\\n  --trials 3 && python -m sweeps.transfer  # b\n```"
    assert commands(text) == [
        "python -m sweeps.report --vs A",
        "python -m tuning.search --trials 3",
        "python -m sweeps.transfer",
    ]
    assert sum(len(commands(page.read_text())) for page in PAGES.values()) > 30


def layout(text: str) -> list[str]:
    """Files and folders of README's tree, without the folders that have lines of their own below; two spaces indent."""
    (tree,) = re.findall(r"^## Where things are\n+```\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    paths, folders = [], list[str]()
    for line in tree.splitlines():
        place = re.fullmatch(r"((?:  )*)([\w.]+/?) +\S.*", line)
        assert place, f"neither a file nor a folder with its purpose: {line}"
        depth, name = len(place[1]) // 2, place[2]
        assert depth <= len(folders), f"in no folder: {line}"
        folders = [*folders[:depth], name] if name.endswith("/") else folders[:depth]
        paths.append("".join(folders) if name.endswith("/") else "".join([*folders, name]))
    return [path for path in paths if not any(other != path and other.startswith(path) for other in paths)]


def test_the_layout_has_each_module_once() -> None:
    """Either its own line, or that of a folder which stands for all of its modules."""
    paths = layout(PAGES["README.md"].read_text())
    assert [path for path in paths if not (ROOT / path).exists()] == []
    modules = {path.relative_to(ROOT).as_posix() for path in MODULES.values()}
    lines = {module: [path for path in paths if module.startswith(path)] for module in modules}
    assert {module: places for module, places in lines.items() if len(places) != 1} == {}


def test_a_layout_of_nested_folders() -> None:
    tree = "tuning/  a\n  space.py  b\n  study/  c\n    trials.py  d\n  winner/  e\ntests/  f\n"
    assert layout(f"## Where things are\n\n```\n{tree}```\n") == [
        "tuning/space.py",
        "tuning/study/trials.py",
        "tuning/winner/",
        "tests/",
    ]
