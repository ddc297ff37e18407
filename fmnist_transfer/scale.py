"""What a cluster of any size would do, simulated from measured costs of single calls: where the first bottleneck is.

    python -m fmnist_transfer.scale                                   # 10 to 10,000 workers
    python -m fmnist_transfer.scale --cell-seconds 300 --drivers 4    # longer cells; four commands with --join

One queue for each driver, which claims a cell before a worker may begin it and logs it before the worker gets another;
workers that train meanwhile, each cell's length drawn anew. For a search, one queue for the lock under which trials
are begun. Nothing here was run on a cluster: docs/scale.md says which costs were measured, and how.
"""

import heapq
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from fmnist_transfer.console import check_range, print_table, run_command, say

CELLS_A_WORKER = 20  # simulated, enough for a steady state
SPREAD = 0.5  # standard deviation of a cell's length over its mean: fractions differ
CONNECTIONS_A_WORKER = 2  # of a search: its own and its heartbeat's


@dataclass(frozen=True)
class ScaleSettings:
    """Simulate a sweep and a search on clusters of several sizes: how much they would do in an hour, and what would
    limit them. Nothing is trained; the defaults were measured (docs/scale.md)."""

    workers: tuple[int, ...] = (10, 100, 1_000, 10_000)
    """Sizes of the cluster: trainings at once, 1 to 100000 each."""
    cell_seconds: float = 35.0
    """Seconds of training of a sweep's cell, on average."""
    claim_ms: float = 75.0
    """Milliseconds the sweep's command needs for a cell before it begins."""
    finish_ms: float = 75.0
    """Milliseconds the sweep's command needs for a cell after it has ended."""
    drivers: int = 1
    """Commands that share the sweep (as by sweeps.transfer --join)."""
    trial_seconds: float = 60.0
    """Seconds of training of a search's trial, on average."""
    begin_ms: float = 30.0
    """Milliseconds for which a trial that begins keeps others from beginning."""
    trials: int = 1_000
    """Trials that the search has already."""
    sample_ms: float = 95.0
    """Milliseconds to draw a trial's parameters when there are none yet."""
    sample_ms_a_trial: float = 0.065
    """Milliseconds more for each trial that there is."""
    connections: int = 100
    """Connections that the PostgreSQL server of the search allows (max_connections)."""
    debug: bool = False
    """Show where in the code an error arose."""

    def __post_init__(self) -> None:
        for flag, value in (
            ("--drivers", self.drivers),
            ("--trials", self.trials),
            ("--connections", self.connections),
        ):
            check_range(flag, value, 1)
        for n in self.workers:
            check_range("--workers", n, 1, 100_000)


class Throughput(NamedTuple):
    """Of a simulated sweep or search."""

    per_hour: float
    worker_share: float
    """Of the workers' time that is training."""
    queue_share: float
    """Of the time that the drivers, or the lock, are busy."""


def simulate(
    n_workers: int, n_queues: int, before: float, seconds: float, after: float, *, seed: int = 0
) -> Throughput:
    """Tasks of `seconds` on `n_workers`, each of which waits for its queue `before` it begins and `after` it ends.

    Args:
        n_queues: worker i uses queue i modulo this.
        before: seconds of service in the queue; after: likewise.
    """
    rng = random.Random(0)
    free_at = [0.0] * n_queues
    busy = 0.0
    trained = 0.0
    ready = [(0.0, worker, False) for worker in range(n_workers)]  # when, who, whether it comes with a result
    n_done, n_tasks, end = 0, CELLS_A_WORKER * n_workers, 0.0
    while n_done < n_tasks:
        now, worker, has_result = heapq.heappop(ready)
        queue = worker % n_queues
        service = (after if has_result else 0.0) + before
        n_done += has_result
        begin = max(now, free_at[queue])
        free_at[queue] = end = begin + service
        busy += service
        length = max(0.1 * seconds, rng.gauss(seconds, SPREAD * seconds))
        trained += length
        heapq.heappush(ready, (end + length, worker, True))
    return Throughput(3_600 * n_done / end, min(1.0, trained / (end * n_workers)), busy / (end * n_queues))


def main(settings: ScaleSettings) -> int:
    """Print both tables; 0."""
    say(f"A sweep: cells of {settings.cell_seconds:g} s, {settings.drivers} driver(s)")
    rows = []
    per_cell = (settings.claim_ms + settings.finish_ms) / 1e3
    for n in settings.workers:
        done = simulate(
            n,
            settings.drivers,
            before=settings.claim_ms / 1e3,
            seconds=settings.cell_seconds,
            after=settings.finish_ms / 1e3,
        )
        most = settings.drivers * settings.cell_seconds / per_cell
        rows.append(_row(n, done, "the driver" if n > most else "the workers"))
    print_table(["workers", "cells an hour", "workers busy", "driver busy", "bottleneck"], rows)
    say(f"\nA search: trials of {settings.trial_seconds:g} s, {settings.trials:,} of them there")
    rows = []
    drawing = (settings.sample_ms + settings.trials * settings.sample_ms_a_trial) / 1e3
    for n in settings.workers:
        done = simulate(n, 1, before=settings.begin_ms / 1e3, seconds=settings.trial_seconds + drawing, after=0.0)
        bottlenecks = {
            "connections": CONNECTIONS_A_WORKER * n > settings.connections,
            "the lock": n * settings.begin_ms / 1e3 > settings.trial_seconds + drawing,
            "drawing": drawing > settings.trial_seconds / 4,
        }
        rows.append(_row(n, done, next((name for name, is_one in bottlenecks.items() if is_one), "the workers")))
    print_table(["workers", "trials an hour", "workers busy", "lock busy", "bottleneck"], rows)
    say(f"Drawing takes {drawing:.2f} s of each trial; {CONNECTIONS_A_WORKER} connections a worker")
    return 0


def _row(n: int, done: Throughput, bottleneck: str) -> list[str]:
    return [f"{n:,}", f"{done.per_hour:,.0f}", f"{done.worker_share:.0%}", f"{done.queue_share:.0%}", bottleneck]


def command(args: Sequence[str] | None = None) -> int:
    """The command line."""
    return run_command(ScaleSettings, main, "fmnist_transfer.scale", args)


if __name__ == "__main__":
    sys.exit(command())
