"""Thousands of tiny cells through a real MLflow server on a real PostgreSQL: rate, memory, errors, duplicates, losses.

    python tests/faults/soak.py --cells 2000 --workers 4 --csv docs/results/soak.csv

The data is synthetic and a cell one epoch, so that all that is measured is what surrounds training.
"""

import argparse
import contextlib
import csv
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

import psutil
import synthetic
from postgres import MODEL_DATABASE, PostgreSQL, SharedSite, find_programs
from proving import Server, register_model, small_model

from fmnist_transfer.data import files

FRACTIONS = [str(percent) for percent in range(5, 101, 5)]
CELLS_A_REPLICATE = 2 * len(FRACTIONS)
EVERY_SECONDS = 10.0
MEGABYTE = 2**20


def megabytes(pid: int) -> float:
    """Memory of the process and those below it that nothing else has (a shared page counts once)."""
    total = 0.0
    with contextlib.suppress(psutil.NoSuchProcess):
        for process in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                total += process.memory_full_info().pss / MEGABYTE
    return total


def soak(folder: Path, n_cells: int, workers: str, engine: str) -> tuple[dict[str, Any], list[dict[str, float]]]:
    """What came out, and the samples over time."""
    programs = find_programs()
    assert programs, "PostgreSQL is not installed (apt-get install postgresql)"
    files.FILES = synthetic.write(folder / "data")
    with contextlib.ExitStack() as stack:
        postgres = PostgreSQL(programs)
        stack.callback(postgres.close)
        postgres.start()
        postgres.create(MODEL_DATABASE)
        postgres.create(f"{MODEL_DATABASE}-study")
        (folder / "scratch").mkdir()
        (folder / "store").mkdir()
        site = SharedSite(folder / "store", folder / "data", folder / "scratch", postgres, MODEL_DATABASE)
        stack.callback(site.close)
        site.server.start()
        register_model(site.open(), small_model())
        calls = folder / "calls"
        process = site.start_sweep(
            *("--fractions", *FRACTIONS, "--replicates", str(n_cells // CELLS_A_REPLICATE), "--epochs", "1"),
            *("--workers", workers, "--engine", engine, "--json", str(site.json)),
            fault=f"count-calls:{calls}",
        )
        samples = []
        begin = time.monotonic()
        while not process.ended_within(EVERY_SECONDS):
            driver = psutil.Process(process.pid).memory_full_info().pss / MEGABYTE
            samples.append(
                {
                    "seconds": round(time.monotonic() - begin, 1),
                    "finished": site.n_cells("FINISHED"),
                    "driver_mb": round(driver),
                    "workers_mb": round(megabytes(process.pid) - driver),
                    "server_mb": round(megabytes(server_pid(site.server))),
                }
            )
            print(samples[-1], flush=True)
        done = process.done()
        site.processes.clear()
        finished = site.cells(status="FINISHED")
        keys = [run.data.tags["cell_key"] for run in finished]
        stages = site.result()["stages"] if done.status == 0 else {}
        result = {
            "cells": n_cells,
            "workers": workers,
            "engine": engine,
            "exit_status": done.status,
            "cells_per_second": round(n_cells / stages["cells"], 2) if stages else None,
            "stages": {name: round(seconds, 1) for name, seconds in stages.items()},
            "calls_per_cell": round(int(calls.read_text()) / n_cells, 1) if calls.exists() else None,
            "calls_per_second": round(int(calls.read_text()) / stages["cells"], 1) if stages else None,
            "notes": done.err.count("note: the store"),
            "duplicates": len(keys) - len(set(keys)),
            "lost": n_cells - len(set(keys)),
        }
        return result, samples


def server_pid(server: Server) -> int:
    assert server._process is not None
    return server._process.pid


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, default=2_000)
    parser.add_argument("--workers", default="4")
    parser.add_argument("--engine", default="local")
    parser.add_argument("--csv", type=Path, help="samples over time")
    settings = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result, samples = soak(Path(folder), settings.cells, settings.workers, settings.engine)
    print(json.dumps(result, indent=2))
    if settings.csv and samples:
        with settings.csv.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, list(samples[0]))
            writer.writeheader()
            writer.writerows(samples)
