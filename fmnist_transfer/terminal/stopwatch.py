"""A command's wall time by stage."""

import time

from fmnist_transfer.terminal.output import duration


class Stopwatch:
    """Wall time by stage, from its creation on."""

    def __init__(self) -> None:
        self.marks: dict[str, float] = {}
        """Seconds until something happened for the first time."""
        self._laps: dict[str, float] = {}
        self._start = self._last = time.perf_counter()

    def lap(self, stage: str) -> None:
        """The time since the last lap belongs to `stage`."""
        now = time.perf_counter()
        self._laps[stage] = self._laps.get(stage, 0.0) + now - self._last
        self._last = now

    def mark(self, event: str) -> None:
        """`event` happens now, unless it did before."""
        self.marks.setdefault(event, time.perf_counter() - self._start)

    @property
    def stages(self) -> dict[str, float]:
        """Seconds of each stage."""
        return dict(self._laps)

    @property
    def seconds(self) -> float:
        return sum(self._laps.values())

    def __str__(self) -> str:
        stages = [f"{stage} {duration(seconds)}" for stage, seconds in self._laps.items() if round(seconds)]
        return ": ".join([duration(self.seconds), ", ".join(stages)] if stages else [duration(self.seconds)])
