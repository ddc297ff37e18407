"""Thousands of tiny cells on a local sqlite store: does the rate stay constant? Errors, duplicates, losses, memory.

    python tests/faults/soak.py --cells 2000 --workers 2 --csv docs/results/soak.csv

The data is synthetic and a cell one epoch, so that all that is measured is what surrounds training.
"""

import argparse
import csv
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

import psutil
import synthetic
from proving import Site, register_model, small_model

from fmnist_transfer.data import files

FRACTIONS = [str(percent) for percent in range(5, 101, 5)]
CELLS_PER_REPLICATE = 2 * len(FRACTIONS)
CELLS_PER_RATE = 500
EVERY_SECONDS = 10.0
MEGABYTE = 2**20


def rate(ends_ms: list[int]) -> float:
    """Cells per second, by when the runs ended."""
    return 1_000 * (len(ends_ms) - 1) / (ends_ms[-1] - ends_ms[0])


def soak(folder: Path, n_cells: int, workers: str) -> tuple[dict[str, Any], list[dict[str, float]]]:
    """The result, and the samples over time."""
    files.FILES = synthetic.write(folder / "data")
    (folder / "scratch").mkdir()
    (folder / "store").mkdir()
    site = Site(folder / "store", folder / "data", folder / "scratch")
    register_model(site.open(), small_model())
    process = site.start_sweep(
        *("--fractions", *FRACTIONS, "--judged", *FRACTIONS, "--replicates", str(n_cells // CELLS_PER_REPLICATE)),
        *("--epochs", "1"),
        *("--workers", workers, "--json", str(site.json)),
    )
    samples = []
    while not process.ended_within(EVERY_SECONDS):
        driver = psutil.Process(process.pid).memory_full_info().pss / MEGABYTE
        samples.append({"finished": site.n_cells("FINISHED"), "driver_mb": round(driver)})
        print(samples[-1], flush=True)
    done = process.done(0, 1, 4)
    finished = site.cells(status="FINISHED")
    keys = {run.data.tags["cell_key"] for run in finished}
    ends = sorted(run.info.end_time for run in finished)
    first, last = rate(ends[:CELLS_PER_RATE]), rate(ends[-CELLS_PER_RATE:])
    result = {
        "cells": n_cells,
        "workers": workers,
        "exit_status": done.status,
        f"cells_per_second_of_the_first_{CELLS_PER_RATE}": round(first, 2),
        f"cells_per_second_of_the_last_{CELLS_PER_RATE}": round(last, 2),
        "ratio": round(last / first, 3),
        "notes": done.err.count("note: the store"),
        "duplicates": len(finished) - len(keys),
        "lost": n_cells - len(keys),
    }
    site.close()
    return result, samples


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, default=2_000)
    parser.add_argument("--workers", default="2")
    parser.add_argument("--csv", type=Path, help="samples over time")
    settings = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result, samples = soak(Path(folder), settings.cells, settings.workers)
    print(json.dumps(result, indent=2))
    if settings.csv and samples:
        with settings.csv.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, list(samples[0]))
            writer.writeheader()
            writer.writerows(samples)
