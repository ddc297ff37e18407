"""The page of faults and the tests agree: every row is proved where the page says."""

import re

import pytest
from proving import ROOT

ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in (ROOT / "docs" / "faults.md").read_text().splitlines()
    if re.match(r"\| \d", line)
]


def rows_proved_in(name: str) -> set[int]:
    """Numbers in `Row 3` and `Rows 1, 2 and 3` of that file's docstrings of tests."""
    folder = ROOT / "tests" / "faults"
    (file,) = (path for path in (folder / f"test_fault_{name}.py", folder / f"test_{name}.py") if path.exists())
    mentions = re.findall(r'"""Rows? ([\d, and]+)', file.read_text())
    return {int(number) for mention in mentions for number in re.findall(r"\d+", mention)}


def test_the_page_has_every_row() -> None:
    assert [int(number) for number, *_ in ROWS] == list(range(1, 38))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_a_row_is_proved_where_the_page_says(row: list[str]) -> None:
    for name in row[-1].split(", "):
        assert int(row[0]) in rows_proved_in(name), name
