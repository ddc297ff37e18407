"""How far the program is from what this machine can do, and how it compares with the loop people write in a notebook.

    python -m fmnist_transfer.benchmark --quick      # within two minutes on two cores
    python -m fmnist_transfer.benchmark              # about an hour: also trains the reference and a default sweep

Nothing in; ratios of interleaved runs out, as a table, a picture, an MLflow run and, with `--json`, a file.
"""

import csv
import dataclasses
import io
import platform
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from fmnist_transfer.console import Stopwatch, check_distinct, print_table, run_command, say, write_json
from fmnist_transfer.parallel import Workers, available_cores, count_workers, parse_workers
from fmnist_transfer.stopping import StopSignal

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from fmnist_transfer.data import Half
    from fmnist_transfer.speed import Spread

Part = Literal["loop", "stack", "goal", "outside", "resume"]
PARTS: tuple[Part, ...] = get_args(Part)
# The reference recipe's validation first reaches 93.33 % after so many epochs in the notebook's loop: what `--quick`
# multiplies its measured seconds with. From a run without `--quick`.
NOTEBOOK_EPOCHS_TO_GOAL = 60


@dataclass(frozen=True)
class BenchmarkSettings:
    """Compare fmnist-transfer with a notebook's training loop and with this machine's limit."""

    quick: bool = False
    """Small samples, and computed instead of run where a run takes long."""
    only: tuple[Part, ...] = PARTS
    """loop: images a second, limit and scaling; stack: cells trained as one computation (left out by --quick on a CPU);
    goal: time to 93.33 %; outside: a sweep's wall time; resume: finding what is done."""
    workers: str = "auto"
    """Training processes, one thread each; auto: one per core."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""
    tracking_uri: str | None = None
    """MLflow store for the result; default: MLFLOW_TRACKING_URI, else mlruns/mlflow.db."""
    data_dir: Path | None = None
    """Fashion-MNIST's folder; default: FMNIST_DATA_DIR, else the user's cache directory."""
    json: Path | None = None
    """Write the result to this file."""
    debug: bool = False
    """Show the traceback of an error."""

    def __post_init__(self) -> None:
        check_distinct("--only", self.only)
        parse_workers(self.workers)


@dataclass(frozen=True)
class Line:
    """One line of the table. `goal`: what it should be, in words."""

    name: str
    unit: str
    spread: "Spread"
    goal: str = ""
    comment: str = ""


@dataclass
class Findings:
    """What was measured so far."""

    lines: list[Line] = field(default_factory=list)
    cells_per_hour: dict[int, float] = field(default_factory=dict)
    """Number of workers -> median."""
    resume_seconds: dict[int, "Spread"] = field(default_factory=dict)
    """Number of logged runs -> seconds."""

    def add(self, name: str, unit: str, values: Sequence[float], goal: str = "", comment: str = "") -> None:
        from fmnist_transfer.speed import Spread

        self.lines.append(Line(name, unit, Spread.of(values), goal, comment))
        spread = self.lines[-1].spread
        say(f"{name}: {spread.median:.4g} {unit} ({spread.min:.4g} to {spread.max:.4g}, n = {spread.n})")

    def spread(self, name: str) -> dict[str, float] | None:
        """Of the line of that name, None if it was not measured."""
        return next((line.spread.to_dict() for line in self.lines if line.name == name), None)


@dataclass(frozen=True)
class Bed:
    """What every part of the benchmark needs."""

    settings: BenchmarkSettings
    data_dir: Path
    half: "Half"
    device: str
    n_workers: int
    workers: Workers

    @property
    def n_threads(self) -> int:
        return available_cores()


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
        with Workers(n_workers, stop) as workers:
            bed = Bed(settings, data_dir, half, device, n_workers, workers)
            if "loop" in settings.only:
                measure_loop(bed, findings)
                stopwatch.lap("loop")
            if "stack" in settings.only and not (settings.quick and device == "cpu"):
                measure_stack(bed, findings)
                stopwatch.lap("stack")
            if "goal" in settings.only:
                measure_goal(bed, findings)
                stopwatch.lap("goal")
        if {"outside", "resume"} & set(settings.only):
            measure_commands(bed, findings)
            stopwatch.lap("commands")
    result = to_json(findings, describe(device))
    print_lines(findings)
    log(settings, findings, result, device)
    stopwatch.lap("logging")
    say(f"The benchmark took {stopwatch}")
    if settings.json:
        write_json(settings.json, result)
    return 0


def measure_loop(bed: Bed, findings: Findings) -> None:
    """Images a second of the notebook's loop and of `fit`, beside the matrix product."""
    from fmnist_transfer.notebook_loop import notebook_data
    from fmnist_transfer.speed import SPEED_RECIPE, SPEED_SPEC, Workload, fraction_of_limit, measure_rounds

    quick = bed.settings.quick
    n_train, n_val, n_rounds = (5_000, 1_000, 3) if quick else (len(bed.half.train), len(bed.half.val), 5)
    n_train, n_val = min(n_train, len(bed.half.train)), min(n_val, len(bed.half.val))
    recipe = dataclasses.replace(SPEED_RECIPE, epochs=2 if quick else 3)
    counts = sorted({1, bed.n_workers} | {2**k for k in range(11) if 2**k < bed.n_workers})
    say(f"Images a second: the notebook's loop, then `fit` on {', '.join(map(str, counts))} workers, {n_rounds} rounds")
    work = Workload(SPEED_SPEC, recipe, bed.half.train.first(n_train), bed.half.val.first(n_val), bed.device)
    notebook = notebook_data(bed.data_dir, bed.half.classes, n_train, n_val)
    rounds = list(measure_rounds(bed.workers, counts, work, notebook, n_rounds=n_rounds, n_threads=bed.n_threads))
    n = counts[-1]
    images = "images/s"
    findings.add("naive_images_per_s", images, [one.notebook_images_per_s for one in rounds])
    findings.add("ours_images_per_s, one worker", images, [one.ours[1] for one in rounds])
    findings.add("ours_images_per_s", images, [one.ours[n] for one in rounds], comment=f"{n} workers")
    ratios = [one.ours[n] / one.notebook_images_per_s for one in rounds]
    findings.add("ratio_vs_naive", "times", ratios, ">= 3.5 on two cores")
    findings.add("fraction_of_limit", "", [fraction_of_limit(one, SPEED_SPEC) for one in rounds], ">= 0.85")
    findings.add("matrix product", "GFLOP/s", [one.gflops[n] for one in rounds], comment=f"float32, {n} workers")
    scaling = [one.ours[n] / one.ours[1] for one in rounds]
    findings.add("worker_scaling", "times", scaling, f">= {0.95 * n:.2g}" if n > 1 else "", f"{n} workers to one")
    epochs = f"after {recipe.epochs} epochs of {n_train} images"
    findings.add("validation accuracy, naive", "", [one.notebook_accuracy for one in rounds], comment=epochs)
    findings.add("validation accuracy, ours", "", [one.our_accuracy for one in rounds], "as naive", epochs)
    a_cell = n_train * recipe.epochs
    for count in counts:
        per_hour = [3_600 * one.ours[count] / a_cell for one in rounds]
        comment = f"cells of {n_train} images x {recipe.epochs} epochs, training alone"
        findings.add(f"cells per hour, {count} workers", "", per_hour, comment=comment)
        findings.cells_per_hour[count] = findings.lines[-1].spread.median


def measure_stack(bed: Bed, findings: Findings) -> None:
    """The cells of one fraction as one computation, beside one cell alone."""
    from fmnist_transfer.overheads import DEFAULT_CELLS_A_FRACTION, DEFAULT_RECIPE, DEFAULT_SPEC
    from fmnist_transfer.speed import Workload, stacked_speedup

    recipe = dataclasses.replace(DEFAULT_RECIPE, epochs=2)
    work = Workload(DEFAULT_SPEC, recipe, bed.half.train.first(2_500), bed.half.val.first(500), bed.device)
    speedups = [stacked_speedup(bed.workers, work, DEFAULT_CELLS_A_FRACTION, seed) for seed in range(3)]
    comment = f"images/s of {DEFAULT_CELLS_A_FRACTION} networks as one computation to one network's, one worker"
    findings.add("stacked_speedup", "times", speedups, ">= 2 on a GPU", comment)


def measure_goal(bed: Bed, findings: Findings) -> None:
    """Seconds to 93.33 % on FMNIST-2: `fit` with a tuned recipe, the notebook's loop with the reference recipe."""
    from fmnist_transfer import speed
    from fmnist_transfer.notebook_loop import notebook_data

    work = speed.Workload(speed.GOAL_SPEC, speed.GOAL_RECIPE, bed.half.train, bed.half.val, bed.device)
    whole = len(bed.half.train), len(bed.half.val)
    quick = bed.settings.quick
    seeds = range(1 if quick else 3)
    say(f"Seconds to {speed.GOAL:.2%} validation accuracy ...")
    if quick:
        sample = notebook_data(bed.data_dir, bed.half.classes, min(2_560, whole[0]), min(512, whole[1]))
        epoch_seconds = speed.notebook_epoch_seconds(sample, whole, bed.device, bed.n_threads)
        naive, comment = NOTEBOOK_EPOCHS_TO_GOAL * epoch_seconds, f"extrapolated: {NOTEBOOK_EPOCHS_TO_GOAL} epochs"
    else:
        sample = notebook_data(bed.data_dir, bed.half.classes, *whole)
        naive, n_epochs = speed.notebook_seconds_to_goal(sample, bed.device, bed.n_threads)
        comment = f"{n_epochs} epochs"
    ours = [speed.seconds_to_goal(bed.workers, work, seed) for seed in seeds]
    findings.add("seconds to 93.33 %, naive with the reference recipe", "s", [naive], comment=comment)
    findings.add("seconds to 93.33 %, ours with a tuned recipe", "s", ours, comment="one worker")
    findings.add("time_to_reference_ratio", "", [one / naive for one in ours], "<= 0.02")


def measure_commands(bed: Bed, findings: Findings) -> None:
    """The commands: start-up, store, figures and idle workers of a sweep; finding what is done."""
    from fmnist_transfer import overheads

    quick, only = bed.settings.quick, bed.settings.only
    with tempfile.TemporaryDirectory(prefix="fmnist-benchmark-") as folder:
        say("Making a store for the commands ...")
        bench = overheads.Bench(Path(folder), bed.data_dir, bed.n_workers, bed.device)
        store = bench.prepare()
        small = ["--fractions", "1", "20", "--replicates", "2", "--epochs", "1"]
        times = bench.sweep(*small)
        if "outside" in only:
            findings.add(
                "seconds to the first step", "s", [times.first_step_seconds], "<= 10", "a sweep on a new store"
            )
            comment = "default sweep, computed from 8 cells"
            shares = overheads.predicted_shares(times, bed.n_workers)
            if not quick:
                say("A default sweep ...")
                comment = "default sweep, run"
                shares = overheads.shares(bench.sweep(), bed.n_workers)
            findings.add("outside_training_percent", "%", [shares.outside], "<= 5", comment)
            findings.add("evaluation_percent", "%", [shares.evaluation], comment=comment)
        if "resume" in only:
            n_runs = (100,) if quick else (100, 1_000, 10_000)
            for n, seconds in overheads.resume_seconds(bench, store, small, n_runs, n_repeats=2 if quick else 3):
                findings.add(f"resume_seconds, {n} runs", "s", seconds, comment="to find 8 finished cells")
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


def to_json(findings: Findings, device: str) -> dict[str, Any]:
    """The result as `--json` writes it; a part that was not measured is null."""
    names = ("naive_images_per_s", "ours_images_per_s", "ratio_vs_naive", "fraction_of_limit", "worker_scaling")
    more = ("time_to_reference_ratio", "outside_training_percent")
    resume = {str(n): spread.to_dict() for n, spread in findings.resume_seconds.items()}
    largest = max(findings.resume_seconds, default=None)
    result: dict[str, Any] = {name: findings.spread(name) for name in names + more}
    result["resume_seconds"] = None if largest is None else resume[str(largest)] | {"by_runs": resume}
    result["device"] = device
    result["lines"] = [dataclasses.asdict(line) for line in findings.lines]
    return result


def print_lines(findings: Findings) -> None:
    """The table."""
    say("")
    rows = [
        [line.name, f"{s.median:.4g}", f"{s.min:.4g}", f"{s.max:.4g}", str(s.n), line.unit, line.goal, line.comment]
        for line in findings.lines
        for s in (line.spread,)
    ]
    print_table(["", "median", "min", "max", "n", "unit", "goal", ""], rows)


def to_csv(findings: Findings) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["name", "median", "min", "max", "n", "unit", "goal", "comment"])
    for line in findings.lines:
        s = line.spread
        numbers = [f"{value:.6g}" for value in (s.median, s.min, s.max)]
        writer.writerow([line.name, *numbers, s.n, line.unit, line.goal, line.comment])
    return stream.getvalue()


def picture(findings: Findings, title: str) -> "Figure":
    """Images a second of each contender, cells per hour against workers, seconds to resume against runs."""
    import matplotlib.pyplot as plt

    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
    figure.suptitle(title, fontsize=9)
    bars = [line for line in findings.lines if line.unit == "images/s"]
    labels = ["notebook", "one worker", "all workers"][: len(bars)]
    medians = [line.spread.median for line in bars]
    errors = [[line.spread.median - line.spread.min, line.spread.max - line.spread.median] for line in bars]
    left.bar(labels, medians, yerr=list(zip(*errors, strict=True)) if errors else None, capsize=4)
    if (fraction := findings.spread("fraction_of_limit")) and medians:
        left.axhline(medians[-1] / fraction["median"], color="black", linestyle="--", label="matrix-product limit")
        left.legend()
    left.set_ylabel("training images per second")
    counts = list(findings.cells_per_hour)
    middle.plot(counts, list(findings.cells_per_hour.values()), "o-", label="measured")
    if counts:
        middle.plot(counts, [findings.cells_per_hour[counts[0]] * n for n in counts], "k--", label="ideal")
        middle.legend()
    middle.set(xlabel="workers", ylabel="cells per hour")
    runs = list(findings.resume_seconds)
    right.plot(runs, [findings.resume_seconds[n].median for n in runs], "o-")
    right.set(xlabel="runs in the store", ylabel="seconds to find what is done", xscale="log", ylim=(0, None))
    return figure


def log(settings: BenchmarkSettings, findings: Findings, result: dict[str, Any], device: str) -> None:
    """An MLflow run with the table, the picture and the medians."""
    import matplotlib.pyplot as plt

    from fmnist_transfer.tracking import BENCHMARK, open_store

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


def metric_name(name: str) -> str:
    """What MLflow takes: `resume_seconds, 100 runs` -> `resume_seconds 100 runs`."""
    return "".join(c for c in name.replace("%", "percent") if c.isalnum() or c in "_-. /")


def command(args: Sequence[str] | None = None) -> int:
    """The command line."""
    return run_command(BenchmarkSettings, main, "fmnist_transfer.benchmark", args)


if __name__ == "__main__":
    sys.exit(command())
