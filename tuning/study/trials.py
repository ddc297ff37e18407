"""Running a study's trials on the workers until there are as many as were asked for."""

import itertools
import time
from collections.abc import Callable, Iterator

import optuna

from fmnist_transfer.errors import UserError
from fmnist_transfer.terminal.output import say
from fmnist_transfer.terminal.progress import Progress
from fmnist_transfer.workers.run import Workers
from fmnist_transfer.workers.stop import Outage
from tuning.study.study import TrialPlan, begun, finished, interrupt_dead, run_trial, settle_lost
from tuning.study.study_log import StudyLog

LOOK_SECONDS = 5.0  # between looks at what other processes do


def run_trials(
    study: optuna.Study,
    log: StudyLog | None,
    plan: TrialPlan,
    *,
    timeout: float | None,
    workers: Workers,
    debug: bool,
) -> None:
    """Top the study up to the plan's number of trials, and log each as it ends, whoever ran it.

    Raises StoreError if a store is lost, TakenOver if the study is, UserError if no trial can be begun.

    Args:
        log: None leaves the logging to the study's owner.
        timeout: seconds after which no further trial is started; None for no limit.
        debug: show the tracebacks of trials that failed.
    """
    deadline = time.monotonic() + (float("inf") if timeout is None else timeout)
    outage = Outage(workers.stop)

    def is_over() -> bool:
        return time.monotonic() >= deadline or workers.stop.is_set()

    def log_finished() -> None:
        if log is not None:
            log.log_finished()

    # Once is enough, unless a worker dies late, or before it has said which trial it has begun, or others are at some.
    while (n_done := len(finished(study))) < plan.n_trials and not is_over():
        reason = ""
        lost: list[int] = []  # ordinals of trials that are run again under others

        def ordinals(first: int = n_done, lost: list[int] = lost) -> Iterator[int]:
            for ordinal in itertools.count(first):
                is_full = plan.is_shared and len(begun(study)) >= plan.n_trials
                if ordinal >= plan.n_trials + len(lost) or is_full or time.monotonic() >= deadline:
                    return
                yield ordinal

        with Progress("trials", plan.n_trials - n_done) as progress:
            progress.best = best_of(study)

            def show(ordinal: int, news: tuple[int, float], progress: Progress = progress) -> None:
                epoch, accuracy = news
                progress.working(ordinal, epoch / plan.epochs, f"epoch {epoch}/{plan.epochs}: {accuracy:.2%}")

            for outcome in workers.run(run_trial, plan, ordinals(), on_report=show, retry_lost=False):
                reason = outcome.reason or reason
                with outage.held():
                    if outcome.outage:
                        raise outcome.outage
                    if outcome.status == "interrupted":
                        progress.abandoned(outcome.task)
                    elif outcome.status == "lost" and settle_lost(study, outcome.task):
                        progress.abandoned(outcome.task)
                        lost.append(outcome.task)
                        say(f"a trial was lost: {outcome.reason}; once more")
                    else:
                        progress.best = best_of(study)
                        progress.finished(outcome.task)
                        if outcome.status in ("failed", "lost"):
                            say(f"a trial failed: {outcome.reason}")
                    log_finished()
                if debug and outcome.details:
                    say(outcome.details)
        with outage.held():
            interrupt_dead(study)
            log_finished()
            if len(begun(study)) == n_done and reason and not is_over():
                raise UserError(f"no trial of study {study.study_name!r} can be begun: {reason}")
            _wait_for_others(study, plan, is_over)
    with outage.held():
        log_finished()  # what others have run meanwhile
    outage.raise_if_any()


def best_of(study: optuna.Study) -> str:
    """The best complete trial so far, in words."""
    complete = [trial for trial in finished(study) if trial.state == optuna.trial.TrialState.COMPLETE]
    best = max(complete, key=lambda trial: trial.value or 0.0, default=None)
    return "none is complete yet" if best is None else f"best {best.value:.2%} (trial {best.number})"


def _wait_for_others(study: optuna.Study, plan: TrialPlan, is_over: Callable[[], bool]) -> None:
    """Until one of the trials that other processes are at has ended, or a while has passed."""
    n_done, until = len(finished(study)), time.monotonic() + LOOK_SECONDS
    while plan.is_shared and len(begun(study)) >= plan.n_trials > len(finished(study)) == n_done:
        if is_over() or time.monotonic() >= until:
            return
        time.sleep(0.5)
