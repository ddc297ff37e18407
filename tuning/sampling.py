"""How long a study takes to draw its next trial, against the number of trials it has.

    python -m tuning.sampling                                      # on a sqlite file of its own
    python -m tuning.sampling --storage postgresql://USER@HOST/DB  # in a study that is deleted afterwards

A worker opens the study anew for every trial, so that nothing of a dead one is left: it reads all trials, and then the
sampler (TPE) fits its models to them. Both are measured, over trials with random parameters and scores.
"""

import secrets
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from fmnist_transfer.console import print_table, run_command, say
from fmnist_transfer.database import check_driver, masked

if TYPE_CHECKING:
    from tuning.storage import PatientStorage

EPOCHS, MAX_MFLOPS = 10, 4.0  # the search's defaults


@dataclass(frozen=True)
class SamplingSettings:
    """Measure the seconds that a study takes to draw its next trial."""

    trials: tuple[int, ...] = (100, 1_000, 10_000)
    """Lengths of the study."""
    repeats: int = 5
    """Draws at each length."""
    storage: str | None = None
    """Study database; default: a sqlite file that is thrown away."""
    debug: bool = False
    """Show the traceback of an error."""

    def __post_init__(self) -> None:
        check_driver("--storage", self.storage)


class Draw(NamedTuple):
    """Seconds of one draw."""

    read: float
    """Opening the study and reading its trials."""
    sample: float
    """Beginning a trial and drawing all of its parameters."""


def main(settings: SamplingSettings) -> int:
    """Measure and print; 0."""
    from fmnist_transfer.patience import Patience
    from tuning.storage import patient_storage, storage_uri

    with tempfile.TemporaryDirectory() as folder:
        uri = storage_uri(settings.storage, Path(folder), Patience())
        say(f"Seconds to draw a trial, median of {settings.repeats}, on {masked(uri).partition(':')[0]}")
        rows = []
        for n in sorted(settings.trials):
            storage = patient_storage(uri, Patience())
            name = f"sampling-{secrets.token_hex(4)}"
            try:
                fill(storage, name, n)
                draws = [draw(uri, name, seed) for seed in range(settings.repeats)]
            finally:
                _delete(storage, name)
            read, sample = (statistics.median(times) for times in zip(*draws, strict=True))
            rows.append([f"{n:,}", f"{read:.3f}", f"{sample:.3f}"])
            say(f"  {n:,} trials: read {read:.3f}, sample {sample:.3f}")
    print_table(["trials", "read", "sample"], rows)
    return 0


def fill(storage: "PatientStorage", name: str, n: int) -> None:
    """Create a study of `n` completed trials, drawn at random from the search space, with random scores."""
    import numpy as np
    import optuna

    from tuning.space import suggest

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    drawn = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    scores = np.random.default_rng(0).uniform(0.85, 0.95, n)
    for score in scores:
        trial = drawn.ask()
        suggest(trial, epochs=EPOCHS, max_mflops=MAX_MFLOPS)
        drawn.tell(trial, float(score))
    optuna.create_study(study_name=name, storage=storage, direction="maximize").add_trials(drawn.trials)


def draw(uri: str, name: str, seed: int) -> Draw:
    """One draw, as a worker does it."""
    import optuna

    from fmnist_transfer.patience import Patience
    from tuning.space import suggest
    from tuning.storage import patient_storage
    from tuning.study import N_STARTUP_TRIALS

    begin = time.perf_counter()
    storage = patient_storage(uri, Patience())
    sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=N_STARTUP_TRIALS)
    study = optuna.load_study(study_name=name, storage=storage, sampler=sampler)
    study.get_trials(deepcopy=False)
    read = time.perf_counter()
    trial = study.ask()
    suggest(trial, epochs=EPOCHS, max_mflops=MAX_MFLOPS)
    end = time.perf_counter()
    study.tell(trial, 0.9)
    storage.remove_session()
    storage.engine.dispose()
    return Draw(read - begin, end - read)


def _delete(storage: "PatientStorage", name: str) -> None:
    import optuna

    optuna.delete_study(study_name=name, storage=storage)
    storage.remove_session()
    storage.engine.dispose()


def command(args: Sequence[str] | None = None) -> int:
    """The command line."""
    return run_command(SamplingSettings, main, "tuning.sampling", args)


if __name__ == "__main__":
    sys.exit(command())
