"""Progress of a command's tasks, on the error stream, and its wall time by stage."""

import os
import sys
import time
from collections.abc import Callable, Hashable, Mapping
from typing import Any

from fmnist_transfer.terminal.output import duration

LINE_SECONDS = 30.0  # minimum between two plain lines


class Progress:
    """Shows finished tasks, elapsed time, time left by work done, and the latest note: a bar on a terminal, else lines.

    `sizes`: work of each task in any unit, if not equal.
    """

    def __init__(
        self,
        title: str,
        total: int,
        sizes: Mapping[Any, float] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._title, self._total, self._sizes, self._clock = title, total, sizes or {}, clock
        self._size = sum(self._sizes.values()) or float(total)
        self._start = self._printed = clock()
        self._shares: dict[Hashable, float] = {}  # task -> how much of it is done, in [0, 1]
        self._n_done = 0
        self._unsaid: str | None = None  # note of a finished task that no line has counted yet
        self._bar = self._draw() if sys.stderr.isatty() and os.environ.get("TERM") != "dumb" else None

    def __enter__(self) -> "Progress":
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()
        elif self._unsaid is not None:
            self._show(self._unsaid, is_due=True)

    def working(self, task: Hashable, share: float, note: str) -> None:
        """Report that `share` in [0, 1] of `task` is done."""
        self._shares[task] = share
        self._show(note)

    def finished(self, task: Hashable, note: str = "") -> None:
        self._n_done += 1
        self._unsaid = note
        self.working(task, 1.0, note)

    def abandoned(self, task: Hashable) -> None:
        """Stop counting the work of `task`, which ended unfinished."""
        self._shares.pop(task, None)

    def _show(self, note: str, is_due: bool = False) -> None:
        now, done = self._clock(), sum(share * self._sizes.get(task, 1.0) for task, share in self._shares.items())
        text = f"{self._title}: {self._n_done} of {self._total} after {duration(now - self._start)}"
        if done and self._n_done < self._total:
            text += f", about {duration((now - self._start) * (self._size - done) / done)} left"
        text = "; ".join(filter(None, (text, note)))
        if self._bar:
            self._bar.update(self._bar.task_ids[0], completed=done, description=text)
        elif is_due or now - self._printed >= LINE_SECONDS:
            self._printed, self._unsaid = now, None
            print(text, file=sys.stderr, flush=True)

    def _draw(self) -> Any:
        from rich import console, progress, table  # respects NO_COLOR

        cut = table.Column(no_wrap=True, ratio=1)  # a narrow terminal cuts the text, not the bar
        bar = progress.Progress(
            progress.BarColumn(bar_width=16),  # leaves room for the text in 80 columns
            progress.TextColumn("{task.description}", markup=False, table_column=cut),
            console=console.Console(stderr=True, highlight=False),
            expand=True,
            transient=True,
            redirect_stdout=sys.stdout.isatty(),  # output to a file still goes there
        )
        bar.add_task(self._title, total=self._size)
        return bar


class Stopwatch:
    def __init__(self) -> None:
        self.stages: dict[str, float] = {}  # seconds of each
        self.marks: dict[str, float] = {}  # event -> seconds until it first happened
        self._start = self._last = time.perf_counter()

    def lap(self, stage: str) -> None:
        """Add the time since the last lap to `stage`."""
        now = time.perf_counter()
        self.stages[stage] = self.stages.get(stage, 0.0) + now - self._last
        self._last = now

    def mark(self, event: str) -> None:
        self.marks.setdefault(event, time.perf_counter() - self._start)

    @property
    def seconds(self) -> float:
        return sum(self.stages.values())

    def __str__(self) -> str:
        stages = ", ".join(f"{stage} {duration(seconds)}" for stage, seconds in self.stages.items() if round(seconds))
        return ": ".join(filter(None, (duration(self.seconds), stages)))
