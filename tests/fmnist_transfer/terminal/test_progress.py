"""What is said of how far a command is: lines where the output is piped, by a clock of the test's own; a bar."""

import contextlib
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from fmnist_transfer.terminal.progress import Progress

ROOT = Path(__file__).parents[3]


class Clock:
    now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def said(err: str) -> list[tuple[list[int], str]]:
    """The numbers of each line (how many of how many, time past, time left), and the notes behind them."""
    lines = [line.partition(";") for line in err.splitlines()]
    return [([int(number) for number in re.findall(r"\d+", head)], notes.strip()) for head, _, notes in lines]


def test_a_line_each_half_minute_and_one_at_the_end(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    errs = []
    with Progress("cells", 12, clock=clock) as progress:
        for cell in range(12):
            for epoch in (1, 2):
                clock.now += 5
                progress.working(cell, epoch / 2, f"cell {cell}: epoch {epoch}/2")
                errs.append(capsys.readouterr().err)
            progress.finished(cell, f"cell {cell} is done")
            errs.append(capsys.readouterr().err)
    errs.append(capsys.readouterr().err)
    assert [said(err) for err in errs if err] == [
        [([2, 12, 30, 1, 30], "cell 2: epoch 2/2")],
        [([5, 12, 1, 0, 1, 0], "cell 5: epoch 2/2")],
        [([8, 12, 1, 30, 30], "cell 8: epoch 2/2")],
        [([11, 12, 2, 0, 0], "cell 11: epoch 2/2")],
        [([12, 12, 2, 0], "cell 11 is done")],
    ]


def test_what_is_left_is_weighed_by_size(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = {"small": 10.0, "large": 90.0}
    with Progress("trainings", 2, sizes, clock) as progress:
        clock.now += 20
        progress.finished("small")
        clock.now += 20
        progress.working("large", 1 / 3, "half-way")
        assert said(capsys.readouterr().err) == [([1, 2, 40, 1, 0], "half-way")]


def test_the_last_line_is_not_said_twice(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("trials", 1, clock=clock) as progress:
        clock.now += 31
        progress.finished(0, "0.94")
    assert said(capsys.readouterr().err) == [([1, 1, 31], "0.94")]


def test_what_was_stopped_says_how_far_it_came(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with contextlib.suppress(KeyboardInterrupt), Progress("trials", 3, clock=clock) as progress:
        progress.finished(0)
        clock.now += 10
        progress.working(1, 0.5, "epoch 1/2")
        raise KeyboardInterrupt
    assert said(capsys.readouterr().err) == [([1, 3, 10, 10], "")]


@pytest.mark.parametrize("total", [0, 4])
def test_nothing_is_said_of_nothing(total: int, clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("trials", total, clock=clock):
        clock.now += 3_600
    assert capsys.readouterr() == ("", "")


def test_a_task_that_is_lost_counts_no_longer(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("trials", 2, clock=clock) as progress:
        progress.working(0, 1.0, "epoch 2/2")
        progress.abandoned(0)
        progress.abandoned("never begun")
        clock.now += 30
        progress.working(1, 0.5, "epoch 1/2")
        assert said(capsys.readouterr().err) == [([0, 2, 30, 1, 30], "epoch 1/2")]
        progress.working(0, 0.0, "epoch 0/2")
    assert capsys.readouterr().err == ""


DRAWN = """
import time
from fmnist_transfer.terminal.output import say
from fmnist_transfer.terminal.progress import Progress
with Progress("cells", 2, clock=lambda: 0.0) as progress:
    progress.working(0, 0.5, "random [100%]: epoch 1/2")
    say("a result")
    time.sleep(0.3)
    progress.finished(0)
    time.sleep(0.3)
"""


def on_a_terminal(code: str, **environment: str) -> tuple[str, str]:
    """What the code writes to a terminal, which the error stream is, and to a file, which the output is."""
    leader, follower = pty.openpty()
    env = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "FORCE_COLOR", "COLUMNS")}
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=follower,
        cwd=ROOT,
        env=env | {"TERM": "xterm", "COLUMNS": "120"} | environment,
        text=True,
    )
    os.close(follower)
    shown = b""
    try:
        while chunk := os.read(leader, 65_536):
            shown += chunk
    except OSError:  # the terminal's other end is closed
        pass
    os.close(leader)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0, shown
    return shown.decode(), out


COLOUR = re.compile(r"\x1b\[[\d;]*m")


def test_on_a_terminal_a_bar_is_drawn() -> None:
    shown, out = on_a_terminal(DRAWN)
    assert COLOUR.search(shown)
    plain = COLOUR.sub("", shown)
    assert re.search(r"━.* 0 of 2 .*; random \[100%\]: epoch 1/2", plain)
    assert "1 of 2 " in plain
    assert out == "a result\n"  # what goes to a file is not drawn on the terminal


def test_a_narrow_terminal_cuts_the_text_and_not_the_bar() -> None:
    shown, _ = on_a_terminal(DRAWN.replace("epoch 1/2", "epoch 1/2" * 9), COLUMNS="70")
    assert re.search(r"━+\S* +cells: 0 of 2 after 0 s, about 0 s left; .*…", COLOUR.sub("", shown))


def test_a_terminal_of_one_column() -> None:
    _, out = on_a_terminal(DRAWN, COLUMNS="1")
    assert out == "a result\n"


@pytest.mark.parametrize("redirection", ["2>&-", "2>/dev/full"])
def test_an_error_stream_that_cannot_be_written(redirection: str) -> None:
    """As a command has it: its streams were made to last."""
    code = "from fmnist_transfer.terminal.process import prepare_command\nprepare_command()\n" + DRAWN
    command = [sys.executable, "-c", code]
    shell = ["bash", "-c", f'"$@" {redirection}', "bash", *command]
    done = subprocess.run(shell, stdout=subprocess.PIPE, cwd=ROOT, text=True, check=True)
    assert done.stdout == "a result\n"


def test_no_color_is_heeded() -> None:
    shown, _ = on_a_terminal(DRAWN, NO_COLOR="1")
    assert "1 of 2 " in shown
    assert not COLOUR.search(shown)


def test_a_dumb_terminal_gets_lines() -> None:
    shown, out = on_a_terminal(DRAWN, TERM="dumb")
    assert said(shown) == [([1, 2, 0, 0], "")]
    assert out == "a result\n"
