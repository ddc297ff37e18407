"""What each engine costs: its start, what surrounds a task, and how training scales on it, side by side."""

import importlib.util
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import numpy as np

from fmnist_transfer.console import say
from fmnist_transfer.findings import Findings
from fmnist_transfer.parallel import Workers
from fmnist_transfer.speed import Workload, fit_once
from fmnist_transfer.stopping import StopSignal

N_TASKS = 200
N_REPORTS = 10  # of a task: a cell's epochs
RESULT_FLOATS = 500  # of a task's result: a cell's curves and scores


class Engine(NamedTuple):
    """An engine with its options."""

    name: str
    options: dict[str, Any]


def engines() -> list[Engine]:
    """Those that are installed."""
    there = [Engine("this process", {}), Engine("worker processes", {"apart": True})]
    return there + ([Engine("ray", {"engine": "ray"})] if importlib.util.find_spec("ray") else [])


def empty_task(shared: Any, task: int, report: Callable[[Any], None], should_stop: Callable[[], bool]) -> Any:
    """Report and return as a cell does, without training."""
    for epoch in range(N_REPORTS):
        report(epoch)
    return np.zeros(RESULT_FLOATS)


def measure_engines(work: Workload, n_workers: int, findings: Findings, *, n_rounds: int) -> None:
    """Start-up, milliseconds of an empty task on one worker, and images a second on one and on all workers.

    Args:
        work: what is trained to measure the scaling.
    """
    starts: dict[str, list[float]] = {engine.name: [] for engine in engines()}
    overheads: dict[str, list[float]] = {engine.name: [] for engine in engines()}
    images: dict[tuple[str, int], list[float]] = {}
    for _ in range(n_rounds):
        for engine in engines():
            begin = time.perf_counter()
            with StopSignal() as stop, Workers(1, stop, **engine.options) as workers:
                list(workers.run(empty_task, None, [0]))
                starts[engine.name].append(time.perf_counter() - begin)
                begin = time.perf_counter()
                list(workers.run(empty_task, None, range(N_TASKS)))
                overheads[engine.name].append(1e3 * (time.perf_counter() - begin) / N_TASKS)
    for engine in engines():
        findings.add(f"start-up, {engine.name}", "s", starts[engine.name])
        findings.add(f"overhead of a task, {engine.name}", "ms", overheads[engine.name])
    say(f"Images a second on {n_workers} workers of each engine, and on one")
    for name, n, value in _scaling(work, n_workers, n_rounds):
        images.setdefault((name, n), []).append(value)
    local = images["worker processes", n_workers]
    for name in sorted({name for name, _ in images}):
        all_workers, one_worker = images[name, n_workers], images[name, 1]
        findings.add(f"{n_workers} workers to one, {name}", "x", _ratios(all_workers, one_worker))
        if all_workers is not local:
            findings.add(f"{name} to worker processes, {n_workers} workers", "x", _ratios(all_workers, local))


def _ratios(ones: Sequence[float], others: Sequence[float]) -> list[float]:
    return [one / other for one, other in zip(ones, others, strict=True)]


def _scaling(work: Workload, n_workers: int, n_rounds: int) -> Iterator[tuple[str, int, float]]:
    """(engine, workers, images a second), round by round; the workers of all engines stay."""
    with ExitStack() as stack:
        stop = stack.enter_context(StopSignal())
        pools = {
            engine.name: stack.enter_context(Workers(n_workers, stop, **engine.options)) for engine in engines()[1:]
        }
        for number in range(-1, n_rounds):  # the first warms up
            for name, workers in pools.items():
                for n in (1, n_workers):
                    outcomes = list(workers.run(fit_once, work, range(n)))
                    if number >= 0:
                        yield name, n, sum(one.result.images_per_s for one in outcomes if one.result)
