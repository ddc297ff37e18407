"""How far the program is from what this machine can do, and how it compares with the loop people write in a notebook.

    python -m fmnist_transfer.benchmark --quick      # within two minutes on two cores
    python -m fmnist_transfer.benchmark              # about an hour: also trains the reference and a default sweep

Nothing in; ratios of interleaved runs out, as a table, a picture, an MLflow run and, with `--json`, a file.
"""

import dataclasses
import platform
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from fmnist_transfer.console import Stopwatch, check_distinct, run_command, say, write_json
from fmnist_transfer.findings import Findings, metric_name, picture, print_lines, to_csv, to_json
from fmnist_transfer.parallel import Workers, available_cores, count_workers, parse_workers
from fmnist_transfer.stopping import StopSignal

if TYPE_CHECKING:
    from fmnist_transfer.data import Half
    from fmnist_transfer.notebook_loop import NotebookPlan

Part = Literal["loop", "stack", "goal", "outside", "resume", "engines"]
PARTS: tuple[Part, ...] = get_args(Part)
# The reference recipe's validation first reaches 93.33 % after so many epochs in the notebook's loop: what `--quick`
# multiplies its measured seconds with. One run, seed 0: python -m fmnist_transfer.benchmark --only goal
NOTEBOOK_EPOCHS_TO_GOAL = 43


@dataclass(frozen=True)
class BenchmarkSettings:
    """Measure how fast this machine trains, beside the loop that people write in a notebook and beside the machine's
    own limit. About an hour on two cores; with --quick two minutes."""

    quick: bool = False
    """End within two minutes on two cores: few images, and what takes long is computed from them."""
    only: tuple[Part, ...] = PARTS
    """What to measure; default: all.
    loop: images a second, the limit, one worker and several.
    stack: several networks trained as one computation (not with --quick on a CPU).
    goal: seconds until 93.33 % validation accuracy.
    outside: what a sweep's time holds besides training.
    resume: seconds to find what is done in a store of many runs.
    engines: one process, worker processes, and Ray if it is installed (not with --quick)."""
    workers: str = "auto"
    """Trainings at once, each a process of one thread; auto: one for each core that this command may use."""
    device: str = "auto"
    """What to compute on: cpu, cuda, cuda:N, mps, or auto (a GPU if there is one, else the CPU)."""
    tracking_uri: str | None = None
    """Where the result is logged; default: MLFLOW_TRACKING_URI, else mlruns/mlflow.db."""
    data_dir: Path | None = None
    """Folder of Fashion-MNIST, which is fetched if it is not there; default: FMNIST_DATA_DIR, else the user's cache."""
    json: Path | None = None
    """Also write the result to this file, as JSON."""
    debug: bool = False
    """Show where in the code an error arose."""

    def __post_init__(self) -> None:
        check_distinct("--only", self.only)
        parse_workers(self.workers)


@dataclass(frozen=True)
class Machine:
    """What every part of the benchmark runs on."""

    settings: BenchmarkSettings
    data_dir: Path
    half: "Half"
    device: str
    n_workers: int
    workers: Workers
    notebook_worker: Workers
    """One process as torch comes, for the notebook's loop."""

    def notebook_plan(self, n_train: int, n_val: int, **rest: Any) -> "NotebookPlan":
        """The notebook's loop with all threads on the first of the source's images."""
        from fmnist_transfer.notebook_loop import NotebookPlan

        threads = available_cores()
        return NotebookPlan(
            self.data_dir, self.half.classes, n_train, n_val, device=self.device, n_threads=threads, **rest
        )


def main(settings: BenchmarkSettings) -> int:
    """Measure, print, log; 0."""
    stopwatch = Stopwatch()
    say("Loading torch and mlflow ...")
    from fmnist_transfer.data import default_data_dir, load_half
    from fmnist_transfer.split import parse_split
    from fmnist_transfer.training import choose_device

    device = str(choose_device(settings.device))
    data_dir = settings.data_dir or default_data_dir()
    n_workers = count_workers(settings.workers, device, 1_024)
    half = load_half(data_dir, parse_split("0-4/5-9").source).share_memory()
    findings = Findings()
    stopwatch.lap("start")
    with StopSignal() as stop:
        with Workers(n_workers, stop, apart=True) as workers, Workers(1, stop, apart=True, prepare=False) as other:
            machine = Machine(settings, data_dir, half, device, n_workers, workers, other)
            if "loop" in settings.only:
                measure_loop(machine, findings)
                stopwatch.lap("loop")
            if "stack" in settings.only and not (settings.quick and device == "cpu"):
                measure_stack(machine, findings)
                stopwatch.lap("stack")
            if "goal" in settings.only:
                measure_goal(machine, findings)
                stopwatch.lap("goal")
        if "engines" in settings.only and not settings.quick:
            from fmnist_transfer import speed
            from fmnist_transfer.engines import measure_engines

            recipe = dataclasses.replace(speed.SPEED_RECIPE, epochs=2)
            work = speed.Workload(speed.SPEED_SPEC, recipe, half.train.first(10_000), half.val.first(1_000), device)
            measure_engines(work, n_workers, findings, n_rounds=3)
            stopwatch.lap("engines")
        if {"outside", "resume"} & set(settings.only):
            measure_commands(machine, findings, stop)
            stopwatch.lap("commands")
    result = to_json(findings, describe(device))
    print_lines(findings)
    log(settings, findings, result, device)
    stopwatch.lap("logging")
    say(f"The benchmark took {stopwatch}")
    if settings.json:
        write_json(settings.json, result)
    return 0


def measure_loop(machine: Machine, findings: Findings) -> None:
    """Images a second of the notebook's loop and of `fit`, beside the matrix product."""
    from fmnist_transfer import speed

    half, quick, n = machine.half, machine.settings.quick, machine.n_workers
    n_train, n_val, n_rounds = (5_000, 1_000, 3) if quick else (len(half.train), len(half.val), 5)
    recipe = dataclasses.replace(speed.SPEED_RECIPE, epochs=2 if quick else 3)
    counts = sorted({1, n} | {2**k for k in range(11) if 2**k < n})
    say(f"Images a second: the notebook's loop, then `fit` on {', '.join(map(str, counts))} workers, {n_rounds} rounds")
    work = speed.Workload(speed.SPEED_SPEC, recipe, half.train.first(n_train), half.val.first(n_val), machine.device)
    notebook = machine.notebook_plan(n_train, n_val, spec=work.spec, recipe=recipe)
    rounds = list(
        speed.measure_rounds(machine.workers, machine.notebook_worker, counts, work, notebook, n_rounds=n_rounds)
    )
    images = "images/s"
    findings.add("naive_images_per_s", images, [one.notebook_images_per_s for one in rounds])
    findings.add("ours_images_per_s, one worker", images, [one.ours[1] for one in rounds])
    findings.add("ours_images_per_s", images, [one.ours[n] for one in rounds], comment=f"{n} workers")
    ratios = [one.ours[n] / one.notebook_images_per_s for one in rounds]
    findings.add("ratio_vs_naive", "times", ratios, ">= 3.5" if machine.device == "cpu" else ">= 20")
    findings.add("fraction_of_limit", "", [speed.fraction_of_limit(one, work.spec) for one in rounds], ">= 0.85")
    findings.add("matrix product", "GFLOP/s", [one.gflops[n] for one in rounds], comment=f"float32, {n} workers")
    scaling = [one.fits_per_hour[n] / one.fits_per_hour[1] for one in rounds]
    findings.add("worker_scaling", "times", scaling, f">= {0.95 * n:.2g}" if n > 1 else "", f"{n} workers to one")
    epochs = f"after {recipe.epochs} epochs of {n_train} images"
    findings.add("validation accuracy, naive", "", [one.notebook_accuracy for one in rounds], comment=epochs)
    findings.add("validation accuracy, ours", "", [one.our_accuracy for one in rounds], "as naive", epochs)
    for count in counts:
        comment = f"{n_train} images x {recipe.epochs} epochs, with evaluation"
        findings.add(f"cells per hour, workers: {count}", "", [o.fits_per_hour[count] for o in rounds], "", comment)
        findings.cells_per_hour[count] = findings.lines[-1].spread.median


def measure_stack(machine: Machine, findings: Findings) -> None:
    """The cells of one fraction as one computation, beside one cell alone."""
    from fmnist_transfer.overheads import DEFAULT_RECIPE, DEFAULT_SPEC
    from fmnist_transfer.speed import Workload, stacked_speedup

    say("The six cells of a fraction as one computation ...")
    recipe = dataclasses.replace(DEFAULT_RECIPE, epochs=3)
    train = machine.half.train.first(2_500 if machine.device == "cpu" else 25_000)
    work = Workload(DEFAULT_SPEC, recipe, train, machine.half.val, machine.device)
    speedups = [stacked_speedup(machine.workers, work, seed) for seed in range(3)]
    comment = "images/s of six networks as one computation to one network's, one worker"
    findings.add("stacked_speedup", "times", speedups, ">= 2 on a GPU", comment)


def measure_goal(machine: Machine, findings: Findings) -> None:
    """Seconds to 93.33 % on FMNIST-2: `fit` with a tuned recipe, the notebook's loop with the reference recipe."""
    from fmnist_transfer import speed
    from fmnist_transfer.model import REFERENCE_SPEC
    from fmnist_transfer.recipe import REFERENCE_RECIPE

    say(f"Seconds to {speed.GOAL:.2%} validation accuracy ...")
    half, quick = machine.half, machine.settings.quick
    work = speed.Workload(speed.GOAL_SPEC, speed.GOAL_RECIPE, half.train, half.val, machine.device)
    n_train, n_val = (2_560, 512) if quick else (len(half.train), len(half.val))
    plan = machine.notebook_plan(
        *(n_train, n_val),
        spec=REFERENCE_SPEC,
        recipe=REFERENCE_RECIPE,
        goal=speed.GOAL,
        max_epochs=2 if quick else None,
    )
    ours = [speed.seconds_to_goal(machine.workers, work, 0)]
    epochs = speed.run_reference(machine.notebook_worker, plan)
    if quick:
        last = epochs[-1]  # the first one warmed up
        epoch_seconds = last.train_seconds * len(half.train) / n_train + last.val_seconds * len(half.val) / n_val
        naive, comment = NOTEBOOK_EPOCHS_TO_GOAL * epoch_seconds, f"extrapolated: {NOTEBOOK_EPOCHS_TO_GOAL} epochs"
    else:
        naive = sum(epoch.train_seconds + epoch.val_seconds for epoch in epochs)
        comment = f"{len(epochs)} epochs, to {epochs[-1].val_accuracy:.2%}"
        ours += [speed.seconds_to_goal(machine.workers, work, seed) for seed in (1, 2)]
    findings.add("seconds to 93.33 %, naive with the reference recipe", "s", [naive], comment=comment)
    findings.add("seconds to 93.33 %, ours with a tuned recipe", "s", ours, comment="one worker")
    findings.add("time_to_reference_ratio", "", [one / naive for one in ours], "<= 0.02")


def measure_commands(machine: Machine, findings: Findings, stop: StopSignal) -> None:
    """The commands: start-up, store, figures and idle workers of a sweep; finding what is done."""
    from fmnist_transfer import overheads

    quick, only, n_workers = machine.settings.quick, machine.settings.only, machine.n_workers
    with tempfile.TemporaryDirectory(prefix="fmnist-benchmark-") as folder:
        say("Making a store for the commands ...")
        scratch = overheads.ScratchStore(Path(folder), machine.data_dir, n_workers, machine.device, stop)
        store = scratch.prepare()
        small = ["--fractions", "1", "20", "--replicates", "2", "--epochs", "1"]
        times = scratch.sweep(*small)
        if "outside" in only:
            findings.add("seconds to the first step", "s", [times.first_step_seconds], "<= 10", "of a sweep")
            comment = "default sweep, computed from 8 cells"
            shares = overheads.predicted_shares(times, n_workers)
            if not quick:
                say("A default sweep ...")
                comment = "default sweep, run"
                shares = overheads.shares(scratch.sweep(), n_workers)
            findings.add("outside_training_percent", "%", [shares.outside], "<= 5", comment)
            findings.add("evaluation_percent", "%", [shares.evaluation], comment=comment)
        if "resume" in only:
            n_runs = (100,) if quick else (100, 1_000, 10_000)
            for n, seconds in scratch.resume_seconds(store, small, n_runs, n_repeats=2 if quick else 3):
                comment = "to find 8 finished cells beside so many runs of other sweeps"
                findings.add(f"resume_seconds, {n} runs", "s", seconds, comment=comment)
                findings.resume_seconds[n] = findings.lines[-1].spread


def describe(device: str) -> str:
    """The machine in words: device, processor, cores, torch."""
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


def log(settings: BenchmarkSettings, findings: Findings, result: dict[str, Any], device: str) -> None:
    """An MLflow run with the table, the picture and the medians."""
    import matplotlib.pyplot as plt

    from fmnist_transfer.tracking import open_store
    from fmnist_transfer.ui import BENCHMARK

    store = open_store(settings.tracking_uri)
    params = {"quick": settings.quick, "device": result["device"], "parts": " ".join(settings.only)}
    run_id = store.start(BENCHMARK, f"benchmark on {device}", params=params, tags={"role": "benchmark"})
    with store.ending(run_id):
        rows = [(metric_name(line.name), line.spread.median, 0) for line in findings.lines]
        store.log(run_id, metrics=rows)
        store.log_text(run_id, "benchmark.csv", to_csv(findings))
        figure = picture(findings, result["device"])
        store.log_figure(run_id, "benchmark.png", figure)
        plt.close(figure)
    say(f"Logged as run {run_id} of experiment {BENCHMARK}")


def command(args: Sequence[str] | None = None) -> int:
    """The command line."""
    return run_command(BenchmarkSettings, main, "fmnist_transfer.benchmark", args)


if __name__ == "__main__":
    sys.exit(command())
