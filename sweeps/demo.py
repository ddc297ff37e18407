"""Make a store from the published table of the reference sweep, to see a result before the first training.

    python -m sweeps.demo          # takes seconds; prints the command that shows the store

Reads docs/results/ of the repository; writes mlruns/demo/, apart from the results of this machine.
"""

import dataclasses
import functools
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fmnist_transfer.errors import SAME_COMMAND, DataError
from fmnist_transfer.flags import CommandFlags, StoreFlags
from fmnist_transfer.store.places import PROJECT, default_folder
from fmnist_transfer.store.retry import RetryPolicy
from fmnist_transfer.terminal.command import run_command
from fmnist_transfer.terminal.output import print_pairs, say
from fmnist_transfer.workers.stop import StopSignal
from sweeps.grid import REPORTED, Grid, grid_tags

if TYPE_CHECKING:
    from fmnist_transfer.store.runs import Store

TABLES = PROJECT / "docs" / "results"
CELLS, IMAGE_VARIANCES = "reference.csv", "reference-images.csv"
NAME = "Copy of the published reference sweep"


@dataclass(frozen=True, kw_only=True)
class DemoSettings(CommandFlags, StoreFlags):
    """Make a store with a copy of the published reference sweep: its runs, curves, report and verdicts, no models. It
    is mlruns/demo/mlflow.db unless --tracking-uri names another."""


def main(settings: DemoSettings) -> int:
    """Make the copy unless it is there. Returns exit status 0."""
    if missing := [name for name in (CELLS, IMAGE_VARIANCES) if not (TABLES / name).exists()]:
        raise DataError(f"no {' and no '.join(missing)} in {TABLES}: run this command in a clone of the repository")
    say("Loading mlflow ...")
    with StopSignal() as stop:
        from fmnist_transfer.store.lock import locked
        from fmnist_transfer.store.opening import open_for_work
        from fmnist_transfer.store.roles import TRANSFER, Role

        uri = settings.tracking_uri or str(default_folder() / "demo" / "mlflow.db")
        retry = RetryPolicy(settings.store_timeout, stop.is_set)
        store = open_for_work(uri, TRANSFER, retry, mend_copy=settings.mend_copy)
        with locked(store.uri, "demo", "demo"):
            copies = store.find(TRANSFER, role=Role.SWEEP, copy_of=CELLS)
            for unfinished in [run for run in copies if run.info.status != "FINISHED"]:
                for run in [*store.find(TRANSFER, parent=unfinished.info.run_id), unfinished]:
                    store.client.delete_run(run.info.run_id)
                copies.remove(unfinished)
            if not copies:
                _copy(store, stop)
        print_pairs("Look next", {"in a browser": store.show_command})
    return 0


def _copy(store: "Store", stop: StopSignal) -> None:
    """Log the table's cells below a parent with the reference as its params, then what a sweep logs at its end."""
    from fmnist_transfer.network.cnn2 import REFERENCE_SPEC
    from fmnist_transfer.store.roles import TRANSFER, Role, settings_params
    from fmnist_transfer.training.recipe import REFERENCE_RECIPE
    from sweeps.report.write import write_report
    from sweeps.results.curve_runs import log_curves
    from sweeps.results.figures import SweepFigures
    from sweeps.results.images import variances_from_csv
    from sweeps.results.read import read_sweep
    from sweeps.rows import finished_percents, from_csv

    rows = from_csv((TABLES / CELLS).read_text())
    params = settings_params(REFERENCE_SPEC, REFERENCE_RECIPE)
    params |= {"split": "01234/56789", "budget": "epochs", "seed": 0, "sources": "one per replicate"}
    run_id = store.start(TRANSFER, NAME, params=params, tags={"role": Role.SWEEP, "copy_of": CELLS})
    with store.ending(run_id):
        percents, n = tuple(finished_percents(rows)), 1 + max(row.cell.replicate for row in rows)
        store.log(run_id, tags=grid_tags({}, Grid(percents, REPORTED, n, judged=percents, n_curve_replicates=n)))
        for row in rows:
            stop.raise_if_set(f"the copy is not complete; {SAME_COMMAND}")
            cell = row.cell
            tags = cell.labels | {"role": Role.CELL, "parent": run_id, "cell_key": cell.name}
            own = store.start(
                TRANSFER, cell.name, parent=run_id, params=cell.labels | {"n_train": row.n_train}, tags=tags
            )
            store.log(own, metrics=[(key, value, 0) for key, value in row.scores.items()])
            store.end(own)
        SweepFigures(store, run_id, NAME).draw(rows)
        variances = variances_from_csv((TABLES / IMAGE_VARIANCES).read_text())
        sweep = dataclasses.replace(read_sweep(store, run_id), image_variances={"pretrained": variances})
        log_curves(store, sweep)
        write_report(store, sweep, stop=stop)


command = functools.partial(run_command, DemoSettings, main, "sweeps.demo")


if __name__ == "__main__":
    sys.exit(command())
