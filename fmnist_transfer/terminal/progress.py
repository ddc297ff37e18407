"""Show a command's progress on the error stream: a bar on a terminal; if piped, a plain line every 30 s and at the end.

Both give finished tasks, elapsed time, an estimate of the remaining time, and the latest note.
"""

import os
import sys
import time
from collections.abc import Callable, Hashable
from typing import Any

from fmnist_transfer.terminal.output import about, duration

LINE_SECONDS = 30.0  # minimum between two plain lines
BAR_WIDTH = 16  # characters; leaves room for the text in 80 columns


class Progress:
    """Context manager that shows the progress of `total` tasks.

    with Progress("trials", 24) as progress:
        progress.working(task, 0.3, "epoch 3/10")
        progress.best = "best 94.87 %"
        progress.finished(task)

    Args:
        size_of: work of a task, in any unit, for estimating the remaining time; default: all tasks are equal.
        total_size: work of all tasks together.
    """

    def __init__(
        self,
        what: str,
        total: int,
        size_of: Callable[[Any], float] = lambda task: 1.0,
        total_size: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.best = ""
        """Best result so far, in words."""
        self._what, self._total, self._size_of = what, total, size_of
        self._size = float(total) if total_size is None else total_size
        self._clock, self._start = clock, clock()
        self._said = self._start
        self._running: dict[Hashable, float] = {}
        self._done, self._done_size = 0, 0.0
        self._done_said, self._last = 0, ""
        is_drawn = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self._bar = _Bar(what, self._size) if is_drawn else None

    def __enter__(self) -> "Progress":
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()
        elif self._done > self._done_said:
            self._print(self._last, is_last=True)

    def working(self, task: Hashable, share: float, note: str) -> None:
        """Report that `share` in [0, 1] of `task` is done."""
        self._running[task] = share
        self._show(note)

    def finished(self, task: Hashable, note: str = "") -> None:
        self._running.pop(task, None)
        self._done += 1
        self._done_size += self._size_of(task)
        self._last = note
        self._show(note)

    def abandoned(self, task: Hashable) -> None:
        """Stop counting the work of `task`, which ended unfinished."""
        self._running.pop(task, None)

    def _show(self, note: str) -> None:
        if self._bar:
            self._bar.show(self._size_done, self._text(note, is_last=False))
        elif self._clock() - self._said >= LINE_SECONDS:
            self._print(note, is_last=self._done == self._total)

    def _print(self, note: str, *, is_last: bool) -> None:
        self._said, self._done_said = self._clock(), self._done
        print(f"{self._what}: {self._text(note, is_last=is_last)}", file=sys.stderr, flush=True)

    @property
    def _size_done(self) -> float:
        return self._done_size + sum(part * self._size_of(task) for task, part in self._running.items())

    def _text(self, note: str, *, is_last: bool) -> str:
        done, seconds = self._size_done, self._clock() - self._start
        left = "" if is_last or not done else f", {about(max(0.0, seconds * (self._size - done) / done))} left"
        head = f"{self._done} of {self._total} after {duration(seconds)}{left}"
        return "; ".join(part for part in (head, self.best, note) if part)


class _Bar:
    """A bar drawn by rich, which respects NO_COLOR."""

    def __init__(self, what: str, size: float):
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as RichProgress
        from rich.table import Column

        rest = Column(no_wrap=True, ratio=1)  # a narrow terminal cuts the text, not the bar
        self._progress = RichProgress(
            *(TextColumn(what, markup=False, table_column=Column(no_wrap=True)), BarColumn(BAR_WIDTH)),
            TextColumn("{task.fields[text]}", markup=False, table_column=rest),
            console=Console(stderr=True, highlight=False),
            expand=True,
            transient=True,
            redirect_stdout=sys.stdout.isatty(),  # output to a file still goes there
        )
        self._task = self._progress.add_task(what, total=size, text="")
        self.start, self.stop = self._progress.start, self._progress.stop

    def show(self, size_done: float, text: str) -> None:
        self._progress.update(self._task, completed=size_done, text=text)
