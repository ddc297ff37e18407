"""The report: page, numbers and figures among the artifacts of the sweep's parent run, and the run's description."""

import base64
import html
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import jinja2
import markdown
from matplotlib.figure import Figure

from fmnist_transfer.data.split import Split, digits
from fmnist_transfer.errors import SAME_COMMAND
from fmnist_transfer.store.links import curves_page, experiment_page, picture, run_page
from fmnist_transfer.store.roles import TRANSFER, VIEW_TAG, View
from fmnist_transfer.store.runs import Store
from fmnist_transfer.terminal.output import counted, duration, say, say_heading
from fmnist_transfer.workers.stop import StopSignal
from sweeps import grid
from sweeps.analysis import claims, comparison
from sweeps.report import tables
from sweeps.report.epochs import read_curves
from sweeps.report.figures import CAPTIONS, report_figures
from sweeps.report.findings import Findings, beside, csv_of, find
from sweeps.results.plans import note_verdict
from sweeps.results.read import LoggedSweep
from sweeps.rows import to_csv
from sweeps.training import recipes

FOLDER = "report"  # among the artifacts of the sweep's parent run
PAGE, INLINE_COPY = f"{FOLDER}/report.html", f"{FOLDER}/inline.png"  # the run's description shows the copy
MOST_NAMES = 12  # of missing cells
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; margin: 1rem 0; font-size: 0.9rem; display: block; overflow-x: auto; }
th, td { border-bottom: 1px solid #ddd; padding: 0.3rem 0.6rem; text-align: left; vertical-align: top; }
img { max-width: 100%; }
code { background: #f4f4f4; padding: 0 0.2rem; overflow-wrap: anywhere; }
"""


def write_report(store: Store, sweep: LoggedSweep, others: Sequence[LoggedSweep] = (), *, stop: StopSignal) -> Findings:
    """Log the page, its numbers and figures; print the claims; return the numbers. Raises Interrupted on a signal."""

    def check_stop() -> None:
        stop.raise_if_set(f"the report is not complete; {SAME_COMMAND}")

    check_stop()
    findings = find(sweep, others)
    images, captions = {}, {}
    curves = read_curves(store, sweep.pair) if sweep.pair.n else []

    def draw() -> dict[str, Figure]:
        figures = {}
        for name, figure in report_figures(sweep, others, curves).items():
            check_stop()
            content = io.BytesIO()
            figure.savefig(content, format="png", dpi=110)
            images[f"{name}.png"], captions[f"{name}.png"] = content.getvalue(), CAPTIONS[name]
            figures[f"{FOLDER}/{name}.png"] = figure
        return figures

    store.log_figures(sweep.run_id, draw, (f"{FOLDER}/answer.png", INLINE_COPY))
    page = markdown_of(sweep, findings, captions)
    texts = {"report.md": page, "report.html": html_of(page, images), "report.csv": csv_of(findings)}
    for name, text in (texts | {"cells.csv": to_csv([*sweep.rows, *sweep.tuning_rows])}).items():
        check_stop()
        store.log_text(sweep.run_id, f"{FOLDER}/{name}", text)
    store.describe(sweep.run_id, judged(store, sweep, findings))
    if sweep.is_complete and not sweep.pair.no_verdict:
        note_verdict(store, sweep.run_id, sweep.judged_grid)
    say_heading("The original report's four claims, as this sweep sees them")
    say(claims_text(sweep, findings))
    return findings


def markdown_of(sweep: LoggedSweep, findings: Findings, captions: Mapping[str, str]) -> str:
    """The report as Markdown. captions: figure file -> caption, in order."""
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"code": tables.code, "some": some}
    environment.globals |= {"caveats": caveats, "MARGIN": math.expm1(comparison.LOSS_MARGIN)}
    modules = {"claims": claims, "comparison": comparison, "grid": grid, "recipes": recipes, "tables": tables}
    template = environment.from_string(Path(__file__).with_name("report.md.j2").read_text())
    return template.render(modules, sweep=sweep, own=beside(sweep), findings=findings, captions=captions)


def some(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return ", ".join(names[:MOST_NAMES]) + more


def html_of(text: str, images: Mapping[str, bytes]) -> str:
    """Make a page that needs nothing else; HTML in the Markdown is shown and not obeyed. images: path -> PNG."""
    converter = markdown.Markdown(extensions=["tables"])
    converter.preprocessors.deregister("html_block")
    converter.inlinePatterns.deregister("html")
    body = converter.convert(text)
    for path, content in images.items():
        body = body.replace(f'src="{path}"', f'src="data:image/png;base64,{base64.b64encode(content).decode()}"')
    title = html.escape(text.partition("\n")[0].lstrip("# "))
    head = f'<meta charset="utf-8"><title>{title}</title><style>{STYLE}</style>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body>\n{body}\n</body></html>\n'


def claims_text(sweep: LoggedSweep, findings: Findings) -> str:
    """The verdicts, or that there is none yet; then what limits them."""
    lines = [] if sweep.is_complete else ["No verdict yet."]
    for i, (name, claim) in enumerate(findings["claims"].items() if sweep.is_complete else (), 1):
        reasons = claim["reason"], tables.more_text(claim, findings["seconds_per_replicate"])
        lines.append(f"{i}. {claims.CLAIMS[name]}: {claim['verdict']} ({'; '.join(filter(None, reasons))}).")
        signs = f", on validation {claim['val_sign']}, on test {claim['test_sign']}" if claim["val_sign"] else ""
        if effect := claims.effect_text(claim):
            lines.append(f"   Random against pretrained: {effect} (N = {claim['n_replicates']}{signs}).")
    lines += ["", *caveats(sweep)] if caveats(sweep) else []
    if missing := findings["missing"]:
        lines += ["", f"{len(missing)} of {len(sweep.rows)} cells are missing: {some(missing)}."]
    return "\n".join(lines)


def caveats(sweep: LoggedSweep) -> list[str]:
    """Sentences that belong beside the verdicts: of an unfinished or extended plan, and of a single source network."""
    sentences = []
    if not sweep.is_complete:
        forecast = "" if math.isnan(sweep.seconds_left) else f", some {duration(sweep.seconds_left)} of training"
        plan, n_left = f"{sweep.judged_grid.n_replicates} replicates", counted(len(sweep.open_rows), "cell")
        sentences.append(
            f"The plan of {plan} lacks {n_left}{forecast}; repeat the sweep's command. Verdicts come at its end."
        )
    if sweep.is_extended:
        sentences.append("The sweep was extended after a first verdict: levels are nominal.")
    if sweep.pair.n > 1 and not sweep.pair.image_variances:
        sentences.append("Intervals do not allow for other images (files of per-image scores are missing): too narrow.")
    if sweep.pair.n and "sources" not in sweep.params:
        sentences.append(
            "All replicates start from one source network, which is one draw: another may change the verdicts. "
            "--pretrain-replicates gives each its own."
        )
    return sentences


def place_of(run_id: str) -> str:
    return f"{PAGE} among the artifacts of run {run_id}"


def begun(store: Store, split: Split) -> str:
    """Describe, in the MLflow UI, a sweep that is running or was stopped."""
    question = _question(digits(split.source), digits(split.target))
    results = "results so far are in `figures/` and `results.csv` among its artifacts"
    return f"{question} **Not finished yet**; {results}.\n\nLook at: {_tables(store.experiment(TRANSFER))}"


def judged(store: Store, sweep: LoggedSweep, findings: Findings) -> str:
    """Describe, in the MLflow UI, a sweep with a report. The UI folds long texts, so the answer comes first."""
    experiment_id, run_id, n_missing = store.experiment(TRANSFER), sweep.run_id, len(findings["missing"])
    missing = f" **{n_missing} of {len(sweep.rows)} cells are missing.**" if n_missing else ""
    has_curves = f"{VIEW_TAG}{run_id}" in store.client.get_experiment(experiment_id).tags  # since the sweep's end
    curves = f"[the curves, compared]({curves_page(experiment_id, run_id)}) · " if has_curves else ""
    report = f"[the report]({run_page(experiment_id, run_id, PAGE)})"
    verdicts = "; ".join(f"{claims.CLAIMS[name]}: **{it['verdict']}**" for name, it in findings["claims"].items())
    answer = f"Claims of the original report: {verdicts}." if sweep.is_complete else "**No verdict yet.**"
    shown = picture(run_id, INLINE_COPY, "random's loss against pretrained's, and the verdicts")
    paragraphs = [
        f"{_question(*sweep.halves)} {answer}{missing}",
        f"Look at: {curves}{report} · {_tables(experiment_id)}",
        " ".join(caveats(sweep)),
        *([shown] if sweep.pair.n else []),
        "To extend this sweep, run the same command with more replicates (`--replicates`), fractions or inits.",
    ]
    return "\n\n".join(filter(None, paragraphs))


def _question(source: str, target: str) -> str:
    return f"Is a network that was trained on Fashion-MNIST classes {source} a better start for classes {target}?"


def _tables(experiment_id: str) -> str:
    cells, means = (experiment_page(experiment_id, view) for view in (View.CELLS, View.MEANS))
    return f"[cells by percent]({cells}) · [means by init and percent]({means})"
