"""Running a study's trials on the workers until there are as many as were asked for."""

import itertools
import time
from collections.abc import Iterator

import optuna

from fmnist_transfer.console import Progress, say
from fmnist_transfer.errors import UserError
from fmnist_transfer.parallel import Workers
from fmnist_transfer.stopping import Outage
from tuning.study import TrialPlan, finished, interrupt_running, run_trial, settle_lost
from tuning.study_log import StudyLog


def run_trials(
    study: optuna.Study,
    log: StudyLog,
    plan: TrialPlan,
    *,
    n: int,
    timeout: float | None,
    workers: Workers,
    debug: bool,
) -> None:
    """Top the study up to `n` trials, and log each as it ends.

    Raises StoreError if a store is lost, UserError if no trial can be begun.

    Args:
        timeout: seconds after which no further trial is started; None for no limit.
        debug: show the tracebacks of trials that failed.
    """
    deadline = time.monotonic() + (float("inf") if timeout is None else timeout)
    outage = Outage(workers.stop)
    reason = ""
    # Once is enough, unless a worker dies late, or before it has said which trial it has begun.
    while (n_done := len(finished(study))) < n and time.monotonic() < deadline and not workers.stop.is_set():
        lost: list[int] = []  # ordinals of trials that are run again under others

        def ordinals(first: int = n_done, lost: list[int] = lost) -> Iterator[int]:
            for ordinal in itertools.count(first):
                if ordinal >= n + len(lost) or time.monotonic() >= deadline:
                    return
                yield ordinal

        with Progress("trials", n - n_done) as progress:

            def show(ordinal: int, news: tuple[int, float], progress: Progress = progress) -> None:
                epoch, accuracy = news
                progress.working(ordinal, epoch / plan.epochs, f"epoch {epoch}/{plan.epochs}, {accuracy:.2%}")

            for outcome in workers.run(run_trial, plan, ordinals(), on_report=show, retry_lost=False):
                reason = outcome.reason or reason
                with outage.held():
                    if outcome.outage:
                        raise outcome.outage
                    if outcome.status == "lost" and settle_lost(study, outcome.task):
                        lost.append(outcome.task)
                        say(f"a trial was lost: {outcome.reason}; once more")
                    else:
                        progress.finished(outcome.task)
                        if outcome.status in ("failed", "lost"):
                            say(f"a trial failed: {outcome.reason}")
                    log.log_finished()
                if debug and outcome.details:
                    say(outcome.details)
        with outage.held():
            interrupt_running(study)
            log.log_finished()
            if len(finished(study)) == n_done and time.monotonic() < deadline and not workers.stop.is_set():
                raise UserError(f"no trial of study {study.study_name!r} can be begun: {reason}")
    outage.raise_if_any()
