"""The measurement of how long drawing a trial takes, on studies of a few trials."""

import pytest

from tuning.sampling import SamplingSettings, main


def test_a_row_for_each_length(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(SamplingSettings(trials=(8, 12), repeats=2)) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[-2:]]
    assert [row[0] for row in rows] == ["8", "12"]
    assert all(0 < float(seconds) < 60 for row in rows for seconds in row[1:])
