"""The Optuna study: opening and resuming it, and running one of its trials in a worker.

Everything about a finished trial is in the study itself (its epochs too, as a user attribute), so that `study_log.py`
can log it at any later time.
"""

import contextlib
import dataclasses
import socket
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, cast

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from fmnist_transfer.data.examples import Half, fraction, on_device
from fmnist_transfer.errors import Interrupted, StoreError, UsageError
from fmnist_transfer.network.cnn2 import CNN2Spec, fresh_network
from fmnist_transfer.seeding import Streams
from fmnist_transfer.store.lock import Owner
from fmnist_transfer.store.places import sqlite_path
from fmnist_transfer.store.retry import RetryPolicy
from fmnist_transfer.terminal.output import masked, say
from fmnist_transfer.training.fit import Diverged, fit
from fmnist_transfer.training.recipe import Precision, Recipe
from fmnist_transfer.training.score import Epoch
from tuning.space import first_trial, suggest
from tuning.study.storage import AGAIN, FIXED, GRACE_SECONDS, LOST, NoRoom, PatientStorage, patient_storage

# User attributes
SETTINGS, ORDINAL, EPOCHS, DRIVER, HOST = "settings", "ordinal", "epochs", "driver", "trained_on"
INTERRUPTED, REASON = "interrupted", "reason"
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
N_STARTUP_TRIALS = 6  # before TPE models and before anything is pruned


@dataclass(frozen=True)
class TrialPlan:
    """What every trial of a study shares; sent to each worker once."""

    storage: str
    study_name: str
    seed: int
    epochs: int
    max_mflops: float | None
    device: str
    precision: Precision
    half: Half
    store_timeout: float
    """Seconds for which the study's database is waited for."""
    driver: Owner
    """The process that hands the trials out."""
    is_owners: bool
    """Whether that process owns the study, or helps its owner."""
    n_trials: int
    """Of the study, whoever runs them."""

    @property
    def is_shared(self) -> bool:
        """Whether other machines may be at the study, too."""
        return sqlite_path(self.storage) is None


def open_study(storage: PatientStorage, name: str, settings: dict[str, Any]) -> optuna.Study:
    """Create the study, or go on with it. Raises UsageError if it was begun with other settings."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # it would print the traceback of a stopped trial
    with storage.lock():
        return _open_study(storage, name, settings)


def _open_study(storage: PatientStorage, name: str, settings: dict[str, Any]) -> optuna.Study:
    study = optuna.create_study(study_name=name, storage=storage, direction="maximize", load_if_exists=True)
    before = study.user_attrs.get(SETTINGS)
    if before is None:
        study.enqueue_trial(first_trial(settings["max_mflops"]), skip_if_exists=True)
        study.set_user_attr(SETTINGS, settings)  # last: now it is begun
        return study
    differing = [key for key in settings | before if settings.get(key) != before.get(key)]
    if differing:
        changes = ", ".join(f"{key} {before.get(key)} (now {settings.get(key)})" for key in differing)
        raise UsageError(
            f"study {name!r} in {masked(storage.url)} was begun with {changes}. Its trials are kept; give the same "
            "values to go on with it, or another --study-name to begin anew"
        )
    return study


def find_study(storage: PatientStorage, name: str) -> optuna.Study | None:
    """The study, if there is one."""
    if name not in optuna.get_all_study_names(storage):
        return None
    return optuna.load_study(study_name=name, storage=storage)


def interrupt_dead(study: optuna.Study) -> None:
    """Count trials that nobody runs any more as interrupted, and run those again. No worker of this process is at one.

    On a file all that are running died, for the caller owns the study. On a server those of this process and of dead
    ones of this machine; other machines' are known by their heartbeats, or have never given one.
    """
    storage = storage_of(study)
    for trial in _running(study):
        driver = Owner(**trial.user_attrs[DRIVER]) if DRIVER in trial.user_attrs else None
        is_ours = driver == Owner.this_process()
        if not storage.is_shared or is_ours or (driver is not None and driver.is_dead()) or _is_nobodys(trial):
            _fail(study, trial, INTERRUPTED, True)
    if storage.is_shared:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            optuna.storages.fail_stale_trials(study)
    _enqueue_interrupted(study)


_nameless: dict[int, float] = {}  # trials that have not said whose they are: id -> when this process first saw it


def _is_nobodys(trial: FrozenTrial) -> bool:
    """Whether a trial was created by a call whose response was lost, so that nobody knows of it."""
    since = _nameless.setdefault(trial._trial_id, time.monotonic())
    return DRIVER not in trial.user_attrs and time.monotonic() - since > GRACE_SECONDS


def storage_of(study: optuna.Study) -> PatientStorage:
    """The storage itself, below Optuna's cache."""
    return cast(PatientStorage, getattr(study._storage, "_backend", study._storage))


def settle_lost(study: optuna.Study, ordinal: int) -> bool:
    """Fail this process's trial of this ordinal, whose worker died; run it again, unless its predecessor was lost, too.

    Returns whether it is run again: then it does not count.
    """
    again = True
    this_process = dataclasses.asdict(Owner.this_process())
    for trial in _running(study):
        if trial.user_attrs.get(ORDINAL) != ordinal or trial.user_attrs.get(DRIVER) != this_process:
            continue
        if LOST in trial.user_attrs:
            _fail(study, trial, REASON, "the worker process died, twice")
            again = False
        else:
            _fail(study, trial, INTERRUPTED, LOST)
    _enqueue_interrupted(study)
    return again


def _running(study: optuna.Study) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))


def _fail(study: optuna.Study, trial: FrozenTrial, key: str, value: Any) -> None:
    """Fail the trial, with a user attribute that says why; unless an orphan has just finished it."""
    with contextlib.suppress(UpdateFinishedTrialError, ValueError):
        study._storage.set_trial_user_attr(trial._trial_id, key, value)
        study.tell(trial.number, state=TrialState.FAIL)


def _enqueue_interrupted(study: optuna.Study) -> None:
    """Interrupted trials do not count: their parameters wait for the next ones.

    Of one that was stopped before it had all, only those that it was given are: the others are drawn again, alike.
    """
    with storage_of(study).lock():
        trials = study.get_trials(deepcopy=False)
        enqueued_again = _numbers_run_again(trials)
        for trial in trials:
            params = trial.params if "recipe" in trial.user_attrs else trial.system_attrs.get(FIXED)
            if INTERRUPTED in trial.user_attrs and params and trial.number not in enqueued_again:
                lost = {LOST: True} if trial.user_attrs[INTERRUPTED] == LOST else {}
                study.enqueue_trial(params, user_attrs={AGAIN: trial.number} | lost)


def _numbers_run_again(trials: Iterable[FrozenTrial]) -> set[int]:
    """Numbers of the trials that others run again."""
    return {trial.user_attrs[AGAIN] for trial in trials if AGAIN in trial.user_attrs}


def finished(study: optuna.Study) -> list[FrozenTrial]:
    """Trials that count towards `--trials`: completed, pruned, or failed of themselves; not interrupted ones."""
    return [trial for trial in begun(study) if trial.state in FINISHED]


def begun(study: optuna.Study) -> list[FrozenTrial]:
    """Finished ones, and those that anybody is running."""
    trials = study.get_trials(deepcopy=False)
    again = _numbers_run_again(trials)
    return [
        trial
        for trial in trials
        if trial.state in (*FINISHED, TrialState.RUNNING)
        and INTERRUPTED not in trial.user_attrs
        and trial.number not in again
    ]


def run_trial(
    plan: TrialPlan, ordinal: int, report: Callable[[Any], None], should_stop: Callable[[], bool]
) -> int | None:
    """Run the study's next trial and return its number; None if others have begun the last one meanwhile.

    Args:
        ordinal: how many trials came before it. With the seed it seeds the sampler, so that a stopped and resumed
            study does not repeat its first trials, and with one worker equals an uninterrupted one.
        report: receives (epoch, validation accuracy).
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # it would print the traceback of a stopped trial
    study = _opened(plan)
    storage = storage_of(study)
    storage.retry.should_stop = should_stop
    study.sampler = optuna.samplers.TPESampler(seed=_sampler_seed(plan, ordinal), n_startup_trials=N_STARTUP_TRIALS)
    study.pruner = optuna.pruners.MedianPruner(
        n_startup_trials=N_STARTUP_TRIALS, n_warmup_steps=max(1, plan.epochs // 5), n_min_trials=5
    )
    numbers: list[int] = []

    def objective(trial: optuna.Trial) -> float:
        numbers.append(trial.number)
        trial.set_user_attr(DRIVER, dataclasses.asdict(plan.driver))
        trial.set_user_attr(ORDINAL, ordinal)
        trial.set_user_attr(HOST, socket.gethostname())
        try:
            return _train_trial(plan, trial, report, should_stop)
        except (Interrupted, StoreError):
            with contextlib.suppress(StoreError):
                trial.set_user_attr(INTERRUPTED, True)
            raise
        except Diverged as error:  # pruned, so that the sampler learns to keep away
            trial.set_user_attr(REASON, f"Diverged: {error}")
            raise optuna.TrialPruned from error
        except Exception as error:
            trial.set_user_attr(REASON, f"{type(error).__name__}: {error}")
            raise

    storage.has_room = lambda: len(begun(study)) < plan.n_trials
    try:
        study.optimize(objective, n_trials=1)
    except NoRoom:
        return None
    except (UpdateFinishedTrialError, ValueError):
        if numbers and study.get_trials(deepcopy=False)[numbers[0]].state == TrialState.FAIL:
            say(f"Trial {numbers[0]}: another process took it over while this one was away")
            return None
        raise
    finally:
        if not plan.is_shared:
            _close(plan)
    return numbers[0]


_studies: dict[tuple[str, str], optuna.Study] = {}  # of this process, by storage and name


def _opened(plan: TrialPlan) -> optuna.Study:
    """The study; on a server opened once in a process, for reading 1,000 trials takes a second."""
    key = (plan.storage, plan.study_name)
    if key not in _studies:
        storage = patient_storage(plan.storage, RetryPolicy(plan.store_timeout))
        _studies[key] = optuna.load_study(study_name=plan.study_name, storage=storage)
    return _studies[key]


def _close(plan: TrialPlan) -> None:
    storage = storage_of(_studies.pop((plan.storage, plan.study_name)))
    storage.remove_session()
    storage.engine.dispose()


def _sampler_seed(plan: TrialPlan, ordinal: int) -> int:
    """The owner's depends on nothing else; helpers, who count as it does, are not to draw the same."""
    helper = 0 if plan.is_owners else int(plan.driver.name, 16)
    return (Streams(plan.seed, ordinal).seed("sampler") + helper) % 2**32


def _train_trial(
    plan: TrialPlan, trial: optuna.Trial, report: Callable[[Any], None], should_stop: Callable[[], bool]
) -> float:
    """Validation accuracy of the final epoch. Every trial draws from the same streams: only its parameters differ."""
    spec, recipe = suggest(trial, epochs=plan.epochs, max_mflops=plan.max_mflops)
    trial.set_user_attr("spec", spec.to_dict())
    trial.set_user_attr("recipe", recipe.to_dict())
    streams = Streams(plan.seed)
    half = on_device(plan.half, plan.device)
    epochs: list[Epoch] = []

    def on_epoch(epoch: Epoch) -> None:
        epochs.append(epoch)
        trial.report(epoch.val_accuracy, epoch.epoch)
        report((epoch.epoch, epoch.val_accuracy))
        if epoch.epoch < plan.epochs and trial.should_prune():
            raise optuna.TrialPruned

    try:
        history = fit(
            fresh_network(spec, streams).to(plan.device),
            fraction(half.train, 100, streams),
            half.val,
            recipe,
            streams,
            precision=plan.precision,
            on_epoch=on_epoch,
            should_stop=should_stop,
        )
    finally:
        trial.set_user_attr(EPOCHS, [dataclasses.asdict(epoch) for epoch in epochs])
    return history.final.val_accuracy


def spec_and_recipe(trial: FrozenTrial) -> tuple[CNN2Spec, Recipe]:
    return CNN2Spec.from_dict(trial.user_attrs["spec"]), Recipe.from_dict(trial.user_attrs["recipe"])
