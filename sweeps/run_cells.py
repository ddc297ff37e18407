"""Running a sweep's cells on the workers, and logging each as it ends."""

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping

from fmnist_transfer.terminal.output import say
from fmnist_transfer.terminal.progress import Progress
from fmnist_transfer.terminal.stopwatch import Stopwatch
from fmnist_transfer.workers.run import Workers
from fmnist_transfer.workers.stop import Outage
from fmnist_transfer.workers.task import Outcome
from sweeps.grid import Cell, by_fraction
from sweeps.results.ledger import Ledger
from sweeps.training.cells import CellPlan, CellResult, passes, train_cells

FIRST_STEP = "first_step_seconds"
LOOK_SECONDS = 2.0  # at least, between looks at what other processes do
LOOK_SHARE = 50  # or so many times what a look takes: those who wait are not to be the store's work


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
    """Train the cells `todo` (with their numbers of training images), log each as it finishes.

    Cells that other processes are at are left to them, and waited for; those of processes that die are taken over.

    Args:
        on_finished: called after each task whose results are logged.
        debug: show the tracebacks of cells that failed.
    """
    sizes = {cell: passes(plan, cell, n_train) for cell, n_train in todo.items()}

    def size_of(cells: tuple[Cell, ...]) -> float:
        return sum(sizes[cell] for cell in cells)

    n_tasks = len(by_fraction(todo)) if plan.stack else len(todo)
    with Progress("cells", n_tasks, size_of, sum(sizes.values())) as progress:
        running = _Running(ledger, todo, plan, workers, progress=progress, stopwatch=stopwatch, debug=debug)
        try:
            while running.open and not workers.stop.is_set():
                running.run_open(on_finished)
                with running.outage.held():
                    running.look_at_others()
        finally:
            running.abandon()
    running.outage.raise_if_any()


class _Running:
    """One `run_cells`: which cells are open, and which runs this process has open."""

    def __init__(
        self,
        ledger: Ledger,
        todo: Mapping[Cell, int],
        plan: CellPlan,
        workers: Workers,
        *,
        progress: Progress,
        stopwatch: Stopwatch,
        debug: bool,
    ):
        self._ledger, self._todo, self._plan, self._workers = ledger, todo, plan, workers
        self._progress, self._stopwatch, self._debug = progress, stopwatch, debug
        self.open = dict.fromkeys(todo)  # a set in order
        self.outage = Outage(workers.stop)
        self._run_ids: dict[Cell, str] = {}
        self._n_lost: Counter[Cell] = Counter()

    def run_open(self, on_finished: Callable[[], None]) -> None:
        """Hand out every open cell that nobody else is at."""
        tasks: list[tuple[Cell, ...]] = [(cell,) for cell in self.open]
        if self._plan.stack:
            tasks = by_fraction(self.open)
        outcomes = self._workers.run(
            train_cells, self._plan, self._claimed(tasks), on_report=self._show, retry_lost=False
        )
        for outcome in outcomes:
            for cell, ended in _per_cell(outcome):
                with self.outage.held():
                    self._end(cell, self._run_ids.pop(cell), ended)
            if any(cell in self.open for cell in outcome.task):
                self._progress.abandoned(outcome.task)
            else:
                self._progress.finished(outcome.task, _score(outcome))
            if outcome.status == "done":
                with self.outage.held():
                    on_finished()

    def _claimed(self, tasks: list[tuple[Cell, ...]]) -> Iterator[tuple[Cell, ...]]:
        """Of each task the cells that nobody else has, claimed when a worker is free."""
        for cells in tasks:
            with self.outage.held():
                for cell in cells:
                    if run_id := self._ledger.claim(cell, self._todo[cell]):
                        self._run_ids[cell] = run_id  # until it has ended
            if self._workers.stop.is_set():
                return
            if mine := tuple(cell for cell in cells if cell in self._run_ids):
                yield mine

    def _show(self, cells: tuple[Cell, ...], epoch: int) -> None:
        self._stopwatch.mark(FIRST_STEP)
        epochs = self._plan.recipe.epochs
        self._progress.working(cells, epoch / epochs, f"{cells[0].name}: epoch {epoch}/{epochs}")

    def _end(self, cell: Cell, run_id: str, outcome: Outcome[Cell, CellResult]) -> None:
        """Log how the cell ended; it stays open if it is to be run again."""
        if outcome.result is not None:
            if self._ledger.finish(run_id, outcome.result):
                del self.open[cell]
            else:
                say(f"{cell.name}: another process took it over while this one was away; its result is not needed")
        elif outcome.status == "lost" and self._n_lost[cell] == 0:
            self._n_lost[cell] += 1
            say(f"{cell.name}: {outcome.reason}; once more")
            self._ledger.interrupt(run_id, outcome.reason)
        elif outcome.status in ("failed", "lost"):
            reason = outcome.reason if outcome.status == "failed" else f"{outcome.reason}, twice"
            del self.open[cell]
            say(f"{cell.name} failed: {reason}")
            if self._debug and outcome.details:
                say(outcome.details)
            self._ledger.fail(run_id, reason, outcome.details)
        else:
            self._ledger.interrupt(run_id, outcome.reason)

    def look_at_others(self) -> None:
        """Strike the open cells that other processes have ended; wait a while if they are at all of the others."""
        if not self.open or self._workers.stop.is_set():
            return
        begin = time.monotonic()
        self._ledger.refresh()
        self._ledger.end_dead()
        wait_seconds = max(LOOK_SECONDS, LOOK_SHARE * (time.monotonic() - begin))
        for cell in list(self.open):
            if self._ledger.row(cell, self._todo[cell]).status != "open":
                del self.open[cell]
                if not self._plan.stack:  # whose progress counts fractions
                    self._progress.finished((cell,))
        if self.open and all(self._ledger.is_anothers(cell, self._todo[cell]) for cell in self.open):
            deadline = time.monotonic() + wait_seconds
            while time.monotonic() < deadline and not self._workers.stop.is_set():
                time.sleep(0.05)

    def abandon(self) -> None:
        """End what is still open, which nothing is unless something else went wrong: that is then the one to see."""
        for run_id in self._run_ids.values():
            with contextlib.suppress(Exception):
                self._ledger.interrupt(run_id, "the sweep ended before it")


def _score(outcome: Outcome[tuple[Cell, ...], list[CellResult | Exception]]) -> str:
    """What the task's first cell came to, in a few words."""
    first = outcome.result[0] if outcome.result else None
    if first is None or isinstance(first, Exception):
        return ""
    val = first.result.final.val
    return f"{outcome.task[0].name}: validation loss {val.loss:.4f}, accuracy {val.accuracy:.2%}"


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
