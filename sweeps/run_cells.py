"""Run a sweep's cells on the workers and log each as it ends."""

from collections.abc import Callable, Iterator, Mapping

from fmnist_transfer.logged_tasks import run_logged
from fmnist_transfer.terminal.output import say
from fmnist_transfer.terminal.progress import Progress
from fmnist_transfer.terminal.stopwatch import Stopwatch
from fmnist_transfer.workers.run import Workers
from fmnist_transfer.workers.task import Outcome
from sweeps.grid import Cell, by_fraction
from sweeps.results.ledger import Ledger
from sweeps.training.cells import CellPlan, CellResult, passes, train_cells

FIRST_STEP = "first_step_seconds"
Cells = tuple[Cell, ...]  # a task: one cell, or with `--stack` all cells of a fraction
CellsOutcome = Outcome[Cells, list[CellResult | Exception]]


class CellLog:
    """Log of one command's cells, as `run_logged` requires.

    Args:
        images: number of training images per cell.
    """

    def __init__(
        self,
        ledger: Ledger,
        images: Mapping[Cell, int],
        epochs: int,
        stopwatch: Stopwatch,
        on_finished: Callable[[], None],
    ):
        self._ledger, self._images, self._epochs = ledger, images, epochs
        self._stopwatch, self._on_finished = stopwatch, on_finished

    def name(self, task: Cells) -> str:
        return task[0].name if len(task) == 1 else f"{len(task)} cells of {task[0].percent} %"

    def begin(self, task: Cells) -> None:
        for cell in task:
            self._ledger.begin(cell, self._images[cell])

    def report(self, task: Cells, news: int) -> tuple[float, str]:
        self._stopwatch.mark(FIRST_STEP)
        return news / self._epochs, f"{task[0].name}: epoch {news}/{self._epochs}"

    def end(self, outcome: CellsOutcome) -> str | None:
        if outcome.status == "interrupted":
            for cell in outcome.task:
                self._ledger.kill(cell, outcome.reason)
            return None
        for cell, result in _results(outcome):
            if isinstance(result, CellResult):
                self._ledger.finish(cell, self._images[cell], result)
            elif isinstance(result, Exception):
                reason = f"{type(result).__name__}: {result}"
                say(f"{cell.name} failed: {reason}")
                self._ledger.fail(cell, self._images[cell], reason)
            else:
                self._ledger.fail(cell, self._images[cell], outcome.reason, outcome.details)
        self._on_finished()
        return _score(outcome)

    def close(self) -> None:
        self._ledger.kill_rest()


def run_cells(
    ledger: Ledger,
    todo: Mapping[Cell, int],
    plan: CellPlan,
    *,
    workers: Workers,
    stopwatch: Stopwatch,
    on_finished: Callable[[], None],
    debug: bool,
) -> None:
    """Train the cells of `todo` (cell -> number of training images) and log each as it finishes.

    Args:
        on_finished: called after each task whose results are logged.
        debug: show tracebacks of failed cells.
    """
    tasks: list[Cells] = by_fraction(todo) if plan.stack else [(cell,) for cell in todo]
    sizes = {cells: sum(passes(plan, cell, todo[cell]) for cell in cells) for cells in tasks}
    log = CellLog(ledger, todo, plan.recipe.epochs, stopwatch, on_finished)
    with Progress("cells", len(tasks), sizes) as progress:
        run_logged(workers, train_cells, plan, tasks, log=log, progress=progress, debug=debug)


def _results(outcome: CellsOutcome) -> Iterator[tuple[Cell, CellResult | Exception | None]]:
    """Each cell with its result, its `Diverged` error, or None if the whole task failed."""
    for i, cell in enumerate(outcome.task):
        yield cell, outcome.result[i] if outcome.result else None


def _score(outcome: CellsOutcome) -> str:
    """Final score of the task's first cell, in words; empty if it failed."""
    first = outcome.result[0] if outcome.result else None
    if first is None or isinstance(first, Exception):
        return ""
    val = first.result.final.val
    return f"{outcome.task[0].name}: validation loss {val.loss:.4f}, accuracy {val.accuracy:.2%}"
