"""Compare training speed with this machine's limit and with the loop that people write in a notebook."""

import platform
import re
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from fmnist_transfer.data.split import DEFAULT_SPLIT
from fmnist_transfer.flags import CommandFlags, Flags, MachineFlags, OutputFlags, StoreFlags, count_workers
from fmnist_transfer.store.retry import RetryPolicy
from fmnist_transfer.terminal.command import check_distinct, run_command
from fmnist_transfer.terminal.output import say, write_json
from fmnist_transfer.terminal.process import check_open_files
from fmnist_transfer.terminal.progress import Stopwatch
from fmnist_transfer.workers.run import Workers, available_cores
from fmnist_transfer.workers.stop import StopSignal

if TYPE_CHECKING:
    from fmnist_transfer.benchmark.measurements import Measurements
    from fmnist_transfer.store.runs import Store

Part = Literal["loop", "stack", "goal", "outside", "resume"]


@dataclass(frozen=True, kw_only=True)
class BenchmarkFlags(Flags):
    quick: bool = False
    """Use few images and rounds, to finish within two minutes on two cores."""
    only: tuple[Part, ...] = get_args(Part)
    """Parts to measure; default: all.
    loop: images per second of the notebook's loop, one worker and all workers, and the machine's limit.
    stack: several networks trained as one computation (not with --quick on a CPU).
    goal: seconds until 93.33 % validation accuracy.
    outside: share of a sweep's time not spent training.
    resume: seconds to find finished work in a store of many runs."""

    def __post_init__(self) -> None:
        check_distinct("--only", self.only)
        super().__post_init__()


@dataclass(frozen=True, kw_only=True)
class BenchmarkSettings(CommandFlags, OutputFlags, StoreFlags, MachineFlags, BenchmarkFlags):
    """Measure how fast this machine trains, compared with a notebook's loop and with plain matrix products."""


def main(settings: BenchmarkSettings) -> int:
    stopwatch = Stopwatch()
    say("Loading torch and mlflow ...")
    from fmnist_transfer.benchmark.commands import ScratchStore
    from fmnist_transfer.benchmark.loop import Contenders
    from fmnist_transfer.benchmark.measurements import Measurements
    from fmnist_transfer.data.examples import load_half
    from fmnist_transfer.data.files import default_data_dir
    from fmnist_transfer.store.opening import open_for_work
    from fmnist_transfer.store.roles import BENCHMARK
    from fmnist_transfer.training.device import choose_device

    device = str(choose_device(settings.device))
    data_dir = settings.data_dir or default_data_dir()
    n_workers = count_workers(settings.workers, device, 1_024)
    measured, parts = Measurements(), set[str](settings.only)
    if settings.quick and device == "cpu":
        parts.discard("stack")
    check_open_files(n_workers)
    with StopSignal() as stop:
        retry = RetryPolicy(settings.store_timeout, stop.is_set)
        store = open_for_work(settings.tracking_uri, BENCHMARK, retry, mend_copy=settings.mend_copy)
        if parts & {"loop", "stack", "goal"}:
            half = load_half(data_dir, DEFAULT_SPLIT.source)
            with Workers(n_workers, stop, apart=True) as ours, Workers(1, stop, apart=True, prepare=False) as theirs:
                Contenders(ours, theirs, measured).measure(ours.share(half), data_dir, device, parts, settings.quick)
            stopwatch.lap("trainings")
        if parts & {"outside", "resume"}:
            with tempfile.TemporaryDirectory(prefix="fmnist-benchmark-") as folder:
                ScratchStore(Path(folder), data_dir, n_workers, device, stop).measure(parts, measured)
            stopwatch.lap("commands")
        result = measured.to_json(describe(device))
        measured.print_table()
        if settings.json:
            write_json(settings.json, result)
        log(store, settings, measured, result)
    say(f"The benchmark took {stopwatch}")
    return 0


def describe(device: str) -> str:
    import torch

    cpus = Path("/proc/cpuinfo")
    names = re.findall(r"^model name\s*: (.*)", cpus.read_text(), re.MULTILINE) if cpus.exists() else []
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else [*names, platform.machine()][0]
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{device}: {name}, {available_cores()} cores, {capability}, torch {torch.__version__}"


def log(store: "Store", settings: BenchmarkSettings, measured: "Measurements", result: dict[str, Any]) -> None:
    from fmnist_transfer.store.roles import BENCHMARK, Role

    params = {"quick": settings.quick, "device": result["device"], "parts": " ".join(settings.only)}
    run_id = store.start(BENCHMARK, f"benchmark on {result['device']}", params=params, tags={"role": Role.BENCHMARK})
    with store.ending(run_id):
        store.log(run_id, metrics=measured.metrics())
        store.log_text(run_id, "benchmark.csv", measured.to_csv())
    say(f"Logged as run {run_id} of experiment {BENCHMARK}")


def command(args: Sequence[str] | None = None) -> int:
    return run_command(BenchmarkSettings, main, "fmnist_transfer.benchmark", args)


if __name__ == "__main__":
    sys.exit(command())
