"""Compare training speed with this machine's limit and with the loop that people write in a notebook.

    python -m fmnist_transfer.benchmark --quick      # within two minutes on two cores
    python -m fmnist_transfer.benchmark              # the loops on all images, five rounds

Prints ratios of interleaved runs and logs them as an MLflow run; `--json` also writes them to a file.
"""

import dataclasses
import platform
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
from fmnist_transfer.terminal.stopwatch import Stopwatch
from fmnist_transfer.workers.run import Workers, available_cores
from fmnist_transfer.workers.stop import StopSignal

if TYPE_CHECKING:
    from fmnist_transfer.benchmark.loop import Contenders
    from fmnist_transfer.benchmark.measurements import Measurements
    from fmnist_transfer.data.examples import Half
    from fmnist_transfer.store.runs import Store

Part = Literal["loop", "stack", "goal", "outside", "resume"]
PARTS: tuple[Part, ...] = get_args(Part)


@dataclass(frozen=True, kw_only=True)
class BenchmarkFlags(Flags):
    quick: bool = False
    """Use few images and rounds, to finish within two minutes on two cores."""
    only: tuple[Part, ...] = PARTS
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
    """Measure how fast this machine trains, compared with a notebook's loop and with the machine's own limit."""


def main(settings: BenchmarkSettings) -> int:
    """Measure, print and log. Returns 0."""
    stopwatch = Stopwatch()
    say("Loading torch and mlflow ...")
    from fmnist_transfer.benchmark.commands import ScratchStore, measure_commands
    from fmnist_transfer.benchmark.measurements import Measurements
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
            from fmnist_transfer.benchmark.loop import Contenders
            from fmnist_transfer.data.examples import load_half

            half = load_half(data_dir, DEFAULT_SPLIT.source)
            with Workers(n_workers, stop, apart=True) as ours, Workers(1, stop, apart=True, prepare=False) as theirs:
                ours.share(half)
                contenders = Contenders(ours, theirs, measured)
                measure_trainings(half, data_dir, device, contenders, parts=parts, quick=settings.quick)
            stopwatch.lap("trainings")
        if parts & {"outside", "resume"}:
            with tempfile.TemporaryDirectory(prefix="fmnist-benchmark-") as folder:
                scratch = ScratchStore(Path(folder), data_dir, n_workers, device, stop)
                measure_commands(scratch, parts, measured)
            stopwatch.lap("commands")
        result = measured.to_json(describe(device))
        measured.print_table()
        if settings.json:
            write_json(settings.json, result)
        log(store, settings, measured, result)
    say(f"The benchmark took {stopwatch}")
    return 0


def measure_trainings(
    half: "Half", data_dir: Path, device: str, contenders: "Contenders", *, parts: set[str], quick: bool
) -> None:
    """Measure the parts that train in this command's workers."""
    from fmnist_transfer.benchmark import loop
    from fmnist_transfer.benchmark.notebook_loop import NotebookPlan

    train, val = half.train, half.val
    n_train, n_val, n_rounds = (5_000, 1_000, 3) if quick else (len(train), len(val), 5)
    plan = NotebookPlan(data_dir, half.classes, n_train, n_val, device=device, n_threads=available_cores())
    if "loop" in parts:
        recipe = dataclasses.replace(loop.SPEED_RECIPE, epochs=2 if quick else 3)
        work = loop.Workload(loop.SPEED_SPEC, recipe, train.first(n_train), val.first(n_val), device)
        contenders.measure_loop(work, dataclasses.replace(plan, spec=work.spec, recipe=recipe), n_rounds)
    if "stack" in parts:
        contenders.measure_stack(train.first(2_500 if device == "cpu" else len(train)), val, device)
    if "goal" in parts:
        work = loop.Workload(loop.GOAL_SPEC, loop.GOAL_RECIPE, train, val, device)
        contenders.measure_goal(work, dataclasses.replace(plan, n_train=2_560, n_val=512, max_epochs=2))


def describe(device: str) -> str:
    """Describe the machine: device, processor, cores, torch."""
    import torch

    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else _processor()
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{device}: {name}, {available_cores()} cores, {capability}, torch {torch.__version__}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def log(store: "Store", settings: BenchmarkSettings, measured: "Measurements", result: dict[str, Any]) -> None:
    """Log the table and the medians as an MLflow run."""
    from fmnist_transfer.store.roles import BENCHMARK, Role

    params = {"quick": settings.quick, "device": result["device"], "parts": " ".join(settings.only)}
    run_id = store.start(BENCHMARK, f"benchmark on {result['device']}", params=params, tags={"role": Role.BENCHMARK})
    with store.ending(run_id):
        store.log(run_id, metrics=measured.metrics())
        store.log_text(run_id, "benchmark.csv", measured.to_csv())
    say(f"Logged as run {run_id} of experiment {BENCHMARK}")


def command(args: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    return run_command(BenchmarkSettings, main, "fmnist_transfer.benchmark", args)


if __name__ == "__main__":
    sys.exit(command())
