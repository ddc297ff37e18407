"""A command's wall time by stage."""

import time

from fmnist_transfer.terminal.output import duration


class Stopwatch:
    """Wall time by stage, starting at creation."""

    def __init__(self) -> None:
        self.stages: dict[str, float] = {}
        """Stage -> seconds."""
        self.marks: dict[str, float] = {}
        """Event -> seconds until it first happened."""
        self._start = self._last = time.perf_counter()

    def lap(self, stage: str) -> None:
        """Add the time since the last lap to `stage`."""
        now = time.perf_counter()
        self.stages[stage] = self.stages.get(stage, 0.0) + now - self._last
        self._last = now

    def mark(self, event: str) -> None:
        """Record the time of the first `event` of this name."""
        self.marks.setdefault(event, time.perf_counter() - self._start)

    @property
    def seconds(self) -> float:
        return sum(self.stages.values())

    def __str__(self) -> str:
        stages = ", ".join(f"{stage} {duration(seconds)}" for stage, seconds in self.stages.items() if round(seconds))
        return ": ".join(filter(None, (duration(self.seconds), stages)))
