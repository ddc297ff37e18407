"""How long a study takes to draw its next trial, against the number of trials it has.

    python -m tuning.sampling                                      # on a sqlite file of its own
    python -m tuning.sampling --storage postgresql://USER@HOST/DB  # in a study that is deleted afterwards

A worker reads all trials when it opens the study (on PostgreSQL once, on a file for each trial); then the sampler (TPE)
fits its models to them, for each. Both are measured, over trials with random parameters and scores.
"""

import datetime
import json
import secrets
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import sqlalchemy

from fmnist_transfer.console import print_table, run_command, say
from fmnist_transfer.database import check_driver, masked

if TYPE_CHECKING:
    from tuning.storage import PatientStorage

EPOCHS, MAX_MFLOPS = 10, 4.0  # the search's defaults
EPOCH_FIELDS = ("epoch", "train_loss", "val_loss", "val_accuracy", "learning_rate", "seconds")


@dataclass(frozen=True)
class SamplingSettings:
    """Measure how many seconds a search needs to draw its next trial, against the number of trials it has. Nothing is
    trained."""

    trials: tuple[int, ...] = (100, 1_000, 10_000)
    """Numbers of trials to measure at."""
    repeats: int = 5
    """How often it is measured at each; the median is told."""
    storage: str | None = None
    """Database to measure on, in a study that is deleted afterwards; default: a sqlite file that is thrown away."""
    debug: bool = False
    """Show where in the code an error arose."""

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
    """Create a study of `n` completed trials, drawn at random from the search space, with random scores.

    They have the epochs and attributes of real ones, for all of it is read. In bulk, for which Optuna has no call.
    """
    import numpy as np
    import optuna
    from optuna.distributions import distribution_to_json
    from optuna.storages._rdb import models

    from tuning.space import suggest

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    drawn = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(n):
        trial = drawn.ask()
        spec, recipe = suggest(trial, epochs=EPOCHS, max_mflops=MAX_MFLOPS)
        trial.set_user_attr("spec", spec.to_dict())
        trial.set_user_attr("recipe", recipe.to_dict())
        trial.set_user_attr("epochs", [dict.fromkeys(EPOCH_FIELDS, 0.1) for _ in range(EPOCHS)])
    study = optuna.create_study(study_name=name, storage=storage, direction="maximize")
    scores = np.random.default_rng(0).uniform(0.85, 0.95, (n, EPOCHS))
    with storage.scoped_session() as session:
        first = (session.query(sqlalchemy.func.max(models.TrialModel.trial_id)).scalar() or 0) + 1
        now = datetime.datetime.now()
        finite = models.TrialIntermediateValueModel.TrialIntermediateValueType.FINITE
        rows: dict[type[Any], list[dict[str, Any]]] = defaultdict(list)
        for one, values in zip(drawn.get_trials(deepcopy=False), scores, strict=True):
            of_trial = {"trial_id": first + one.number}
            times = {"datetime_start": now, "datetime_complete": now}
            state = {"number": one.number, "study_id": study._study_id, "state": optuna.trial.TrialState.COMPLETE}
            rows[models.TrialModel].append(of_trial | state | times)
            finite_value = models.TrialValueModel.TrialValueType.FINITE
            value = {"objective": 0, "value": float(values[-1]), "value_type": finite_value}
            rows[models.TrialValueModel].append(of_trial | value)
            for key, param in one.params.items():
                distribution = one.distributions[key]
                of_param = {"param_name": key, "param_value": distribution.to_internal_repr(param)}
                of_param["distribution_json"] = distribution_to_json(distribution)
                rows[models.TrialParamModel].append(of_trial | of_param)
            for step, score in enumerate(values):
                of_step = {"step": step, "intermediate_value": float(score), "intermediate_value_type": finite}
                rows[models.TrialIntermediateValueModel].append(of_trial | of_step)
            for key, attribute in one.user_attrs.items():
                of_key = {"key": key, "value_json": json.dumps(attribute)}
                rows[models.TrialUserAttributeModel].append(of_trial | of_key)
        for model, those in rows.items():
            session.execute(sqlalchemy.insert(model), those)
        if session.get_bind().dialect.name == "postgresql":  # so that the next trial gets an id of its own
            session.execute(sqlalchemy.text("SELECT setval('trials_trial_id_seq', (SELECT max(trial_id) FROM trials))"))
        session.commit()


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
