"""Running a sweep's cells on the workers, and logging each as it ends."""

import contextlib
from collections.abc import Callable, Iterator

from fmnist_transfer.console import Progress, Stopwatch, say
from fmnist_transfer.parallel import Outcome, Workers
from fmnist_transfer.stopping import Outage
from sweeps.cells import CellPlan, CellResult, train_cells
from sweeps.grid import Cell, by_fraction
from sweeps.ledger import Ledger

FIRST_STEP = "first_step_seconds"


def run_cells(
    ledger: Ledger,
    todo: dict[Cell, int],
    plan: CellPlan,
    *,
    workers: Workers,
    stopwatch: Stopwatch,
    on_finished: Callable[[], None],
    debug: bool,
) -> None:
    """Train the cells `todo` (with their numbers of training images), log each as it finishes.

    Args:
        on_finished: called after each task whose results are logged.
        debug: show the tracebacks of cells that failed.
    """
    tasks = by_fraction(todo) if plan.stack else [(cell,) for cell in todo]
    run_ids: dict[Cell, str] = {}
    outage = Outage(workers.stop)

    def claim(cells: tuple[Cell, ...]) -> None:
        with outage.held():
            for cell in cells:
                run_ids[cell] = ledger.claim(cell, todo[cell])  # until it has ended

    def show(cells: tuple[Cell, ...], epoch: int) -> None:
        stopwatch.mark(FIRST_STEP)
        epochs = plan.recipe.epochs
        progress.working(cells, epoch / epochs, f"{cells[0].name}: epoch {epoch}/{epochs}")

    try:
        with Progress("cells", len(tasks)) as progress:
            for outcome in workers.run(train_cells, plan, tasks, on_start=claim, on_report=show):
                if outcome.status != "lost":
                    progress.finished(outcome.task)
                for cell, one in _per_cell(outcome):
                    if cell in run_ids:
                        with outage.held():
                            _log_outcome(ledger, run_ids.pop(cell), one, debug=debug)
                if outcome.status == "done":
                    with outage.held():
                        on_finished()
    finally:
        # Empty, unless something else went wrong: perhaps the store itself, whose error is then the one to see.
        for run_id in run_ids.values():
            with contextlib.suppress(Exception):
                ledger.interrupt(run_id, "the sweep ended before it")
    outage.raise_if_any()


def _per_cell(
    outcome: Outcome[tuple[Cell, ...], list[CellResult | Exception]],
) -> Iterator[tuple[Cell, Outcome[Cell, CellResult]]]:
    """The outcome of a task as those of its cells, of which some may have diverged."""
    for i, cell in enumerate(outcome.task):
        result = outcome.result[i] if outcome.result else None
        if isinstance(result, Exception):
            yield cell, Outcome(cell, "failed", reason=f"{type(result).__name__}: {result}")
        else:
            yield cell, Outcome(cell, outcome.status, result, outcome.reason, outcome.details)


def _log_outcome(ledger: Ledger, run_id: str, outcome: Outcome[Cell, CellResult], *, debug: bool) -> None:
    if outcome.result is not None:
        ledger.finish(run_id, outcome.result)
    elif outcome.status == "failed":
        ledger.fail(run_id, outcome.reason, outcome.details)
        say(f"{outcome.task.name} failed: {outcome.reason}")
        if debug and outcome.details:
            say(outcome.details)
    else:
        if outcome.status == "lost":
            say(f"{outcome.task.name}: {outcome.reason}; once more")
        ledger.interrupt(run_id, outcome.reason)
