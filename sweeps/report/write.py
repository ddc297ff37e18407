"""The report: page, numbers and figures among the artifacts of the sweep's parent run, and the run's description."""

import base64
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import markdown
from matplotlib.figure import Figure

from fmnist_transfer.errors import SAME_COMMAND
from fmnist_transfer.store import links
from fmnist_transfer.store.roles import TRANSFER, VIEW_TAG
from fmnist_transfer.store.runs import Store
from fmnist_transfer.terminal.output import counted, duration, say, say_heading
from fmnist_transfer.training.recipe import REFERENCE_RECIPE
from fmnist_transfer.workers.stop import StopSignal
from sweeps import grid
from sweeps.analysis import claims, comparison
from sweeps.report import figures
from sweeps.report.findings import SCORES, Findings, beside, classes_csv, csv_of, find, summary
from sweeps.results.images import variances_csv
from sweeps.results.read import LoggedSweep
from sweeps.rows import to_csv
from sweeps.training import recipes

FOLDER = "report"  # among the artifacts of the sweep's parent run
PAGE, INLINE_COPY = f"{FOLDER}/report.html", f"{FOLDER}/inline.png"  # the run's description shows the copy


def write_report(store: Store, sweep: LoggedSweep, others: Sequence[LoggedSweep] = (), *, stop: StopSignal) -> Findings:
    """Log the page, its numbers and figures; print the claims; return the numbers. Raises Interrupted on a signal."""

    def check_stop() -> None:
        stop.raise_if_set(f"the report is not complete; {SAME_COMMAND}")

    check_stop()
    findings, images = find(sweep, others), dict[str, bytes]()
    curves = figures.read_curves(store, sweep.pair) if sweep.pair.n else {}

    def draw() -> dict[str, Figure]:
        drawn = figures.report_figures(sweep, others, curves)
        for name, figure in drawn.items():
            check_stop()
            content = io.BytesIO()
            figure.savefig(content, format="png", dpi=110)
            images[name] = content.getvalue()
        return {f"{FOLDER}/{name}.png": figure for name, figure in drawn.items()}

    store.log_figures(sweep.run_id, draw, (f"{FOLDER}/answer.png", INLINE_COPY))
    page = markdown_of(sweep, findings, images)
    texts = {"report.md": page, "report.html": html_of(page, images), "report.csv": csv_of(findings)}
    texts["cells.csv"] = to_csv([*sweep.rows, *sweep.tuning_rows])
    if sweep.confusions:
        texts |= {"classes.csv": classes_csv(sweep), "image_variances.csv": variances_csv(sweep)}
    for name, text in texts.items():
        check_stop()
        store.client.log_text(sweep.run_id, text, f"{FOLDER}/{name}")
    describe(store, sweep.run_id, sweep.params["split"], sweep)
    verdicts = {f"verdict.{name}": verdict.verdict for name, verdict in sweep.verdicts.items()}
    store.log(sweep.run_id, metrics=summary(findings), tags=verdicts)
    if sweep.is_complete and not sweep.pair.no_verdict:
        store.log(sweep.run_id, tags=grid.verdict_tags(sweep.tags, sweep.judged_grid))
    say_heading("The original report's four claims, as this sweep sees them")
    say(claims_text(sweep, findings))
    return findings


def _render(template: str, **values: Any) -> str:
    """Fill in a template of this folder."""
    options: dict[str, Any] = {"undefined": jinja2.StrictUndefined, "trim_blocks": True, "lstrip_blocks": True}
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(Path(__file__).parent), **options)
    environment.globals |= {"caveats": caveats, "more_text": more_text, "claims": claims}
    return environment.get_template(template).render(values).strip()


def markdown_of(sweep: LoggedSweep, findings: Findings, images: Iterable[str]) -> str:
    """The report as Markdown, with the figures of these names."""
    names = {"comparison": comparison, "figures": figures, "grid": grid, "recipes": recipes, "SCORES": SCORES}
    names |= {"sweep": sweep, "findings": findings, "images": images, "own": beside(sweep)}
    return _render("report.md.j2", REFERENCE_RECIPE=REFERENCE_RECIPE, **names)


def html_of(text: str, images: Mapping[str, bytes]) -> str:
    """Make a page that needs nothing else; HTML in the Markdown is shown and not obeyed. images: name -> PNG."""
    converter = markdown.Markdown(extensions=["tables"])
    converter.preprocessors.deregister("html_block")
    converter.inlinePatterns.deregister("html")
    body = converter.convert(text)
    for name, content in images.items():
        body = body.replace(f'src="{name}.png"', f'src="data:image/png;base64,{base64.b64encode(content).decode()}"')
    return _render("report.html.j2", title=text.partition("\n")[0].lstrip("# "), body=body)


def claims_text(sweep: LoggedSweep, findings: Findings) -> str:
    """The verdicts, or that there is none yet; then what limits them."""
    return _render("terminal.txt.j2", sweep=sweep, findings=findings)


def caveats(sweep: LoggedSweep) -> list[str]:
    """Sentences that belong beside the verdicts: of an unfinished or extended plan, and of a single source network."""
    return _render("caveats.txt.j2", sweep=sweep, counted=counted, duration=duration).splitlines()


def more_text(more: int | str, seconds_per_replicate: float) -> str:
    """`12 more replicates would tell, some 3 h 20 min`, or that none would; empty beside a verdict."""
    if isinstance(more, str):
        return more
    time = "" if math.isnan(seconds_per_replicate) else f", some {duration(more * seconds_per_replicate)}"
    return f"{counted(more, 'more replicate')} would tell{time}"


def place_of(run_id: str) -> str:
    return f"{PAGE} among the artifacts of run {run_id}"


def describe(store: Store, run_id: str, split: str, sweep: LoggedSweep | None = None) -> None:
    """Describe a sweep in the MLflow UI, with its report if there is one. The UI folds long texts: answer first."""
    experiment_id = store.experiment(TRANSFER)
    has_curves = f"{VIEW_TAG}{run_id}" in store.client.get_experiment(experiment_id).tags  # since its end
    places = {"links": links, "experiment_id": experiment_id, "PAGE": PAGE, "INLINE_COPY": INLINE_COPY}
    store.describe(run_id, _render("run.md.j2", split=split, sweep=sweep, has_curves=has_curves, **places))
