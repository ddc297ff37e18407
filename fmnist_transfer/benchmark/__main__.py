"""Compare training speed with this machine's limit and with the loop that people write in a notebook."""

import functools
import sys
from dataclasses import dataclass
from typing import Literal, get_args

from fmnist_transfer.data.split import DEFAULT_SPLIT
from fmnist_transfer.flags import CommandFlags, Flags, MachineFlags, OutputFlags, StoreFlags, count_workers
from fmnist_transfer.store.retry import RetryPolicy
from fmnist_transfer.terminal.command import check_distinct, run_command
from fmnist_transfer.terminal.output import print_table, say, write_json
from fmnist_transfer.terminal.progress import Stopwatch
from fmnist_transfer.workers.run import Workers
from fmnist_transfer.workers.stop import StopSignal

Part = Literal["loop", "goal"]


@dataclass(frozen=True, kw_only=True)
class BenchmarkFlags(Flags):
    quick: bool = False
    """Use few images and rounds, to finish within two minutes on two cores."""
    only: tuple[Part, ...] = get_args(Part)
    """Parts to measure; default: all.
    loop: images per second of the notebook's loop, one worker and all workers, and the machine's limit.
    goal: seconds until 93.33 % validation accuracy."""

    def __post_init__(self) -> None:
        check_distinct("--only", self.only)
        super().__post_init__()


@dataclass(frozen=True, kw_only=True)
class BenchmarkSettings(CommandFlags, OutputFlags, StoreFlags, MachineFlags, BenchmarkFlags):
    """Measure how fast this machine trains, compared with a notebook's loop and with plain matrix products."""


def main(settings: BenchmarkSettings) -> int:
    stopwatch = Stopwatch()
    say("Loading torch and mlflow ...")
    from fmnist_transfer.benchmark.loop import Contenders
    from fmnist_transfer.benchmark.measurements import COLUMNS, Measurements, describe
    from fmnist_transfer.data.examples import load_half
    from fmnist_transfer.data.files import default_data_dir
    from fmnist_transfer.store.opening import open_for_work
    from fmnist_transfer.store.roles import BENCHMARK
    from fmnist_transfer.training.device import choose_device

    device, data_dir = str(choose_device(settings.device)), settings.data_dir or default_data_dir()
    n_workers, measured = count_workers(settings.workers, device, 1_024), Measurements()
    with StopSignal() as stop:
        retry = RetryPolicy(settings.store_timeout, stop.is_set)
        store = open_for_work(settings.tracking_uri, BENCHMARK, retry, mend_copy=settings.mend_copy)
        half = load_half(data_dir, DEFAULT_SPLIT.source)
        with Workers(n_workers, stop, apart=True) as ours, Workers(1, stop, apart=True, prepare=False) as theirs:
            contenders = Contenders(ours, theirs, measured)
            contenders.measure(ours.share(half), data_dir, device, settings.only, settings.quick)
        stopwatch.lap("trainings")
        machine = describe(device)
        print_table(["", *COLUMNS[1:-1], ""], measured.rows())
        if settings.json:
            write_json(settings.json, measured.to_json(machine))
        measured.log(store, {"quick": settings.quick, "device": machine, "parts": " ".join(settings.only)})
    say(f"The benchmark took {stopwatch}")
    return 0


command = functools.partial(run_command, BenchmarkSettings, main, "fmnist_transfer.benchmark")


if __name__ == "__main__":
    sys.exit(command())
