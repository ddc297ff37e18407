"""How far a command is: a bar on a terminal, and where the output is piped a plain line now and then.

Both are on the error stream, and say how much is done, for how long, about how long it still takes, and what was last.
"""

import sys
import time
from collections.abc import Callable, Hashable
from typing import Any

from fmnist_transfer.console import duration

LINE_SECONDS = 30.0  # at least, between two plain lines


class Progress:
    """Of `total` tasks. A context manager.

    with Progress("trials", 24) as progress:
        progress.working(task, 0.3, "epoch 3/10")
        progress.best = "best 94.87 %"
        progress.finished(task)

    Args:
        size_of: how much work a task is, in any unit; what is left is judged by it. Default: all the same.
        total_size: of all tasks together.
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
        """What is best so far, in words."""
        self._what, self._total, self._size_of = what, total, size_of
        self._size = float(total) if total_size is None else total_size
        self._clock, self._start = clock, clock()
        self._said = self._start
        self._running: dict[Hashable, float] = {}
        self._done, self._done_size = 0, 0.0
        self._bar = _Bar(what, self._size) if sys.stderr.isatty() else None

    def __enter__(self) -> "Progress":
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()

    def working(self, task: Hashable, share: float, note: str) -> None:
        """`task` is under way: `share` in [0, 1] of it is done."""
        self._running[task] = share
        self._show(note)

    def finished(self, task: Hashable, note: str = "") -> None:
        self._running.pop(task, None)
        self._done += 1
        self._done_size += self._size_of(task)
        self._show(note, is_last=self._done == self._total)

    def _show(self, note: str, is_last: bool = False) -> None:
        share = self._done_size + sum(part * self._size_of(task) for task, part in self._running.items())
        seconds = self._clock() - self._start
        left = seconds * (self._size - share) / share if share else None
        times = duration(seconds) + ("" if left is None or is_last else f", about {duration(left)} left")
        text = f"{self._done} of {self._total}, {times}" + (f"; {self.best}" if self.best else "")
        if self._bar:
            self._bar.show(share, text, note)
        elif is_last or self._clock() - self._said >= LINE_SECONDS:
            self._said = self._clock()
            print(f"{self._what}: {text}" + (f"; {note}" if note else ""), file=sys.stderr, flush=True)


class _Bar:
    """The same on a terminal, drawn by rich, which knows NO_COLOR and dumb terminals."""

    def __init__(self, what: str, size: float):
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as RichProgress

        columns = (TextColumn(what), BarColumn(), TextColumn("{task.fields[text]}"), TextColumn("{task.fields[note]}"))
        self._progress = RichProgress(*columns, console=Console(stderr=True, highlight=False), transient=True)
        self._task = self._progress.add_task(what, total=size, text="", note="")
        self.start, self.stop = self._progress.start, self._progress.stop

    def show(self, share: float, text: str, note: str) -> None:
        self._progress.update(self._task, completed=share, text=text, note=note)
