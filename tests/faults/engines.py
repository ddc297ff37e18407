"""Start-up of an engine, and what it adds to a task, in interleaved rounds; Ray against worker processes as a ratio.

    python tests/faults/engines.py --rounds 3

Start-up: until the first task has returned. Overhead: a task reports ten times and returns 500 numbers, as a cell does,
but trains nothing.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

from fmnist_transfer.workers.run import Workers
from fmnist_transfer.workers.stop import StopSignal

N_TASKS = 200
ENGINES: dict[str, dict[str, Any]] = {
    "this process": {},
    "worker processes": {"apart": True},
    "Ray": {"engine": "ray"},
}


def work(shared: None, task: int, report: Callable[[Any], None], should_stop: Callable[[], bool]) -> list[float]:
    for number in range(10):
        report(number)
    return [float(task)] * 500


def measure(options: dict[str, Any]) -> tuple[float, float]:
    """Seconds of start-up, and milliseconds per task after it, with one worker."""
    start = time.perf_counter()
    with StopSignal() as stop, Workers(1, stop, **options) as workers:
        list(workers.run(work, None, [0]))
        ready = time.perf_counter()
        assert len(list(workers.run(work, None, range(N_TASKS)))) == N_TASKS
        return ready - start, 1_000 * (time.perf_counter() - ready) / N_TASKS


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.3g} ({min(values):.3g} to {max(values):.3g})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = [{name: measure(options) for name, options in ENGINES.items()} for _ in range(parser.parse_args().rounds)]
    for name in ENGINES:
        startups, overheads = zip(*(measured[name] for measured in rounds), strict=True)
        print(f"{name}: start-up {spread(list(startups))} s, overhead {spread(list(overheads))} ms per task")
    for i, what in enumerate(("start-up", "overhead")):
        ratios = [measured["Ray"][i] / measured["worker processes"][i] for measured in rounds]
        print(f"Ray to worker processes, {what}: {spread(ratios)}")


if __name__ == "__main__":
    main()
