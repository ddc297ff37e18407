"""How splits are written."""

import pytest

from fmnist_transfer.data.split import DEFAULT_SPLIT, Split, parse_split
from fmnist_transfer.errors import UsageError


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("0-4/5-9", "01234/56789"),
        ("5-9/0-4", "56789/01234"),
        ("even/odd", "02468/13579"),
        ("odd/even", "13579/02468"),
        ("90817/23456", "01789/23456"),
    ],
)
def test_canonical_form(text: str, canonical: str) -> None:
    assert str(parse_split(text)) == canonical
    assert parse_split(canonical) == parse_split(text)


def test_random_split_is_seeded() -> None:
    assert parse_split("random:3") == parse_split("random:3")
    assert len({str(parse_split(f"random:{seed}")) for seed in range(20)}) > 10


def test_suffix_is_empty_for_the_default_alone() -> None:
    assert DEFAULT_SPLIT.suffix == ""
    assert parse_split("5-9/0-4").suffix == "-s56789"


@pytest.mark.parametrize("text", ["", "0-4", "0-4/0-4", "0-4/5-8", "random:", "random:x", "012345/6789", "a/b"])
def test_bad_split_says_how_to_write_one(text: str) -> None:
    with pytest.raises(UsageError, match="SOURCE/TARGET"):
        parse_split(text)


def test_half_needs_five_different_classes() -> None:
    with pytest.raises(UsageError, match="five"):
        Split((0, 0, 1, 2, 3))
