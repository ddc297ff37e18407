"""Description of a sweep's parent run in the MLflow UI, with links to its pages.

The UI folds all but the first lines, so the answer comes first.
"""

from fmnist_transfer.data.split import Split, digits
from fmnist_transfer.store.links import curves_page, experiment_page, picture, run_page
from fmnist_transfer.store.roles import TRANSFER, Role, View
from fmnist_transfer.store.runs import Store
from sweeps.analysis.claims import CLAIMS, effect_text
from sweeps.report.findings import Findings
from sweeps.results.read import LoggedSweep

FOLDER = "report"  # of the page among the run's artifacts
PAGE, INLINE_COPY = f"{FOLDER}/report.html", f"{FOLDER}/inline.png"
INLINE = "losses"  # the figure of the report that is shown inline
PICTURED = "losses against the share of the target's training images"


def place_of(run_id: str) -> str:
    """Location of the page, in words."""
    return f"{PAGE} among the artifacts of run {run_id}"


def begun(store: Store, split: Split) -> str:
    """Describe a sweep that is running or was stopped."""
    question = _question(digits(split.source), digits(split.target))
    results = "results so far are in `figures/` and `results.csv` among its artifacts"
    return f"{question} **Not finished yet**; {results}.\n\nLook at: {_tables(store.experiment(TRANSFER))}"


def judged(store: Store, sweep: LoggedSweep, findings: Findings) -> str:
    """Describe a sweep with a report."""
    experiment_id, run_id, n_missing = store.experiment(TRANSFER), sweep.run_id, len(findings["missing"])
    missing = f" **{n_missing} of {len(sweep.rows)} cells are missing.**" if n_missing else ""
    has_curves = store.find(TRANSFER, role=Role.CURVE, parent=run_id)  # curve runs are made when the sweep ends
    curves = f"[the curves, compared]({curves_page(experiment_id, run_id)}) · " if has_curves else ""
    report = f"[the report]({run_page(experiment_id, run_id, PAGE)})"
    verdicts = {f"{CLAIMS[name]}: **{claim['verdict']}**": claim for name, claim in findings["claims"].items()}
    lines = [
        f"- {text} ({claim['reason']})" + (f"; {effect}" if (effect := effect_text(claim)) else "")
        for text, claim in verdicts.items()
    ]
    paragraphs = [
        f"{_question(*sweep.halves)} Claims of the original report: {'; '.join(verdicts)}.{missing}",
        f"Look at: {curves}{report} · {_tables(experiment_id)}",
        picture(run_id, INLINE_COPY, PICTURED) if sweep.pair.n else "",  # otherwise there are no figures
        "\n".join(lines),
        "Effects are random minus pretrained: a loss above 0 means that pretraining helps. To extend this sweep, run "
        "the same command with more replicates (`--replicates`, six or more for a verdict), fractions or inits.",
    ]
    return "\n\n".join(filter(None, paragraphs))


def _question(source: str, target: str) -> str:
    return f"Is a network that was trained on Fashion-MNIST classes {source} a better start for classes {target}?"


def _tables(experiment_id: str) -> str:
    cells, means = (experiment_page(experiment_id, view) for view in (View.CELLS, View.MEANS))
    return f"[cells by percent]({cells}) · [means by init and percent]({means})"
