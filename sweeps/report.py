"""The answer of a sweep: a verdict on each claim, with effects, intervals and the runs behind it.

    python -m sweeps.report                                  # of the latest sweep
    python -m sweeps.report --sweep RUN_ID --vs RUN_ID ...   # with others beside it

Logged runs in, and nothing else: it works on a sweep that was run elsewhere or is still running. On the sweep's parent
run it leaves `report/report.html` (one page, needs nothing else), `report.md`, `report.csv`, `cells.csv` with the run
of each cell, and the figures.
"""

import io
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fmnist_transfer.console import check_distinct, check_range, print_pairs, run_command, say, say_heading, write_json
from fmnist_transfer.patience import LONGEST_TIMEOUT_SECONDS, TIMEOUT_SECONDS, Patience
from fmnist_transfer.stopping import StopSignal

if TYPE_CHECKING:
    from fmnist_transfer.tracking import Store
    from sweeps.findings import Findings
    from sweeps.logged import LoggedSweep

FOLDER = "report"  # of the artifacts of the sweep's parent run
PAGE, INLINE_COPY = f"{FOLDER}/report.html", f"{FOLDER}/inline.png"


@dataclass(frozen=True)
class ReportSettings:
    """Say of each of the original report's claims whether a sweep shows it, from its logged runs alone, with effects
    and intervals; leave the report as a page among the sweep's artifacts. The sweep may be unfinished."""

    sweep: str = "latest"
    """Which sweep: the id of its run, or latest."""
    vs: tuple[str, ...] = ()
    """Ids of sweeps to lay beside it, which differ in recipe, budget, augmentation or split; default: none."""
    tracking_uri: str | None = None
    """Where runs and models are kept: a file or a server's URI; default: MLFLOW_TRACKING_URI, else mlruns/mlflow.db."""
    store_timeout: float = TIMEOUT_SECONDS
    """Seconds to wait for a store that does not answer, before giving up."""
    json: Path | None = None
    """Also write the result to this file, as JSON."""
    debug: bool = False
    """Show where in the code an error arose."""

    def __post_init__(self) -> None:
        check_range("--store-timeout", self.store_timeout, 0, LONGEST_TIMEOUT_SECONDS)


def main(settings: ReportSettings) -> int:
    """Make the report; 0, whatever the verdicts."""
    say("Loading mlflow ...")
    with StopSignal() as stop:
        from fmnist_transfer.tracking import open_store
        from sweeps.logged import find_sweep, read_sweep
        from sweeps.page import CLAIMS_HEAD, claims_text

        store = open_store(settings.tracking_uri, Patience(settings.store_timeout, stop.is_set))
        sweep, *others = (read_sweep(store, find_sweep(store, asked)) for asked in (settings.sweep, *settings.vs))
        check_distinct("--vs", [one.run_id for one in (sweep, *others)])
        findings = report(store, sweep, others)
        say_heading(CLAIMS_HEAD)
        say(claims_text(findings))
        print_pairs("Look next", {"in a browser": store.show_command, "on paper": place_of(sweep.run_id)})
        if settings.json:
            write_json(settings.json, findings.to_dict())
    return 0


def place_of(run_id: str) -> str:
    """Where the page is, in words."""
    return f"{PAGE} among the artifacts of run {run_id}"


def report(store: "Store", sweep: "LoggedSweep", others: "Sequence[LoggedSweep]" = ()) -> "Findings":
    """Compute everything anew and log the page, its Markdown, the numbers and the figures on the sweep's parent."""
    from fmnist_transfer.ui import INLINE_DPI
    from sweeps.description import INLINE, judged
    from sweeps.figures import report_figures
    from sweeps.findings import find
    from sweeps.page import html_of, markdown_of
    from sweeps.table import to_csv

    findings = find(sweep, others)
    figures = report_figures(findings)
    images, captions = {}, {}
    for name, (figure, caption) in figures.items():
        content = io.BytesIO()
        figure.savefig(content, format="png", dpi=110)
        images[f"{name}.png"], captions[f"{name}.png"] = content.getvalue(), caption
        store.log_figure(sweep.run_id, f"{FOLDER}/{name}.png", figure)
        if name == INLINE:
            store.log_figure(sweep.run_id, INLINE_COPY, figure, INLINE_DPI)
    text = markdown_of(findings, captions)
    store.log_text(sweep.run_id, f"{FOLDER}/report.md", text)
    store.log_text(sweep.run_id, PAGE, html_of(text, images))
    store.log_text(sweep.run_id, f"{FOLDER}/report.csv", findings.to_csv())
    store.log_text(sweep.run_id, f"{FOLDER}/cells.csv", to_csv([*sweep.rows, *sweep.tuning_rows]))
    store.describe(sweep.run_id, judged(store, findings))
    return findings


def command(args: Sequence[str] | None = None) -> int:
    """The command line."""
    return run_command(ReportSettings, main, "sweeps.report", args)


if __name__ == "__main__":
    sys.exit(command())
