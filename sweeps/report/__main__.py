"""Report on a sweep: a verdict on each claim, with effects, intervals and the runs behind it.

    python -m sweeps.report                                  # the latest sweep
    python -m sweeps.report --sweep RUN_ID --vs RUN_ID ...   # with other sweeps beside it

Reads only logged runs; logs a page, its numbers and figures to `report/` among the artifacts of the sweep's parent run.
"""

import functools
import sys
from dataclasses import dataclass

from fmnist_transfer.flags import CommandFlags, OutputFlags, StoreFlags, SweepFlags
from fmnist_transfer.store.retry import RetryPolicy
from fmnist_transfer.terminal.command import check_distinct, run_command
from fmnist_transfer.terminal.output import print_pairs, say, write_json
from fmnist_transfer.workers.stop import StopSignal


@dataclass(frozen=True, kw_only=True)
class ReportSettings(CommandFlags, OutputFlags, StoreFlags, SweepFlags):
    """Judge the original report's four claims from the logged runs of one sweep, finished or not, and save the result
    as an HTML page among the sweep's artifacts."""

    vs: tuple[str, ...] = ()
    """Run ids of other sweeps to show beside it, for example of another recipe, budget or split; default: none."""


def main(settings: ReportSettings) -> int:
    """Make the report. Returns exit status 0, whatever the verdicts."""
    say("Loading mlflow ...")
    with StopSignal() as stop:
        from fmnist_transfer.store.opening import open_for_work
        from fmnist_transfer.store.roles import TRANSFER
        from sweeps.report.write import place_of, write_report
        from sweeps.results.images import with_image_scores
        from sweeps.results.read import find_sweep, read_sweep

        retry = RetryPolicy(settings.store_timeout, stop.is_set)
        store = open_for_work(settings.tracking_uri, TRANSFER, retry, mend_copy=settings.mend_copy)
        logged = [read_sweep(store, find_sweep(store, run)) for run in (settings.sweep, *settings.vs)]
        sweep, *others = (with_image_scores(store, each) for each in logged)
        check_distinct("--vs", [each.run_id for each in logged])
        findings = write_report(store, sweep, others, stop=stop)
        print_pairs("Look next", {"in a browser": store.show_command, "report": place_of(sweep.run_id)})
        if settings.json:
            write_json(settings.json, findings)
    return 0


command = functools.partial(run_command, ReportSettings, main, "sweeps.report")


if __name__ == "__main__":
    sys.exit(command())
