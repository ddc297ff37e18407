"""Write a report among the artifacts of the sweep's parent run."""

import io
from collections.abc import Sequence

from matplotlib.figure import Figure

from fmnist_transfer.errors import SAME_COMMAND
from fmnist_transfer.store.runs import Store
from fmnist_transfer.workers.stop import StopSignal
from sweeps.report.figures import report_figures
from sweeps.report.files import FOLDER, INLINE_COPY, PAGE
from sweeps.report.findings import Findings, find
from sweeps.report.mlflow_text import INLINE, judged
from sweeps.report.render import html_of, markdown_of
from sweeps.results.read import LoggedSweep
from sweeps.rows import to_csv

PAGE_DPI = 110


def write_report(store: Store, sweep: LoggedSweep, others: Sequence[LoggedSweep] = (), *, stop: StopSignal) -> Findings:
    """Compute the findings; log the page, its Markdown, the numbers and the figures. Raises Interrupted on a signal."""

    def check_stop() -> None:
        stop.raise_if_set(f"the report is not complete; {SAME_COMMAND}")

    check_stop()
    findings = find(sweep, others)
    images, captions = {}, {}

    def draw() -> dict[str, Figure]:
        figures = {}
        for name, (figure, caption) in report_figures(findings).items():
            check_stop()
            content = io.BytesIO()
            figure.savefig(content, format="png", dpi=PAGE_DPI)
            images[f"{name}.png"], captions[f"{name}.png"] = content.getvalue(), caption
            figures[f"{FOLDER}/{name}.png"] = figure
        return figures

    store.log_figures(sweep.run_id, draw, (f"{FOLDER}/{INLINE}.png", INLINE_COPY))
    markdown = markdown_of(findings, captions)
    for path, text in {
        f"{FOLDER}/report.md": markdown,
        PAGE: html_of(markdown, images),
        f"{FOLDER}/report.csv": findings.to_csv(),
        f"{FOLDER}/cells.csv": to_csv([*sweep.rows, *sweep.tuning_rows]),
    }.items():
        check_stop()
        store.log_text(sweep.run_id, path, text)
    store.describe(sweep.run_id, judged(store, findings))
    return findings
