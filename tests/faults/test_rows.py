"""The page of faults and the tests agree: every row has a test, and every test names rows of the page."""

import re

from proving import ROOT

ROWS = [int(number) for number in re.findall(r"^(\d+)\. ", (ROOT / "docs" / "faults.md").read_text(), re.MULTILINE)]


def test_the_page_has_every_row() -> None:
    assert list(range(1, 38)) == ROWS


def test_every_row_has_a_test() -> None:
    """Tests name their rows in docstrings: `Row 3` or `Rows 1, 2 and 3`."""
    texts = [file.read_text() for file in (ROOT / "tests" / "faults").glob("test_*.py")]
    mentions = re.findall(r'^ +"""Rows? ([\d, and]+)', "\n".join(texts), re.MULTILINE)
    assert {int(number) for mention in mentions for number in re.findall(r"\d+", mention)} == set(ROWS)
