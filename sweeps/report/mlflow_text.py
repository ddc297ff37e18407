"""Description of a sweep's parent run in the MLflow UI, with links to its pages.

A sweep and its findings in, Markdown out. The UI folds all but the first lines, so the answer comes first.
"""

from fmnist_transfer.data.split import Split, digits
from fmnist_transfer.store.links import curves_page, experiment_page, picture, run_page
from fmnist_transfer.store.roles import TRANSFER, Role, View
from fmnist_transfer.store.runs import Store
from sweeps.analysis.claims import CLAIMS
from sweeps.report.files import INLINE_COPY, PAGE
from sweeps.report.findings import Findings
from sweeps.report.tables import effect_of, named

INLINE = "losses"  # the figure of the report that is shown inline
PICTURED = "losses against the share of the target's training images"


def begun(store: Store, split: Split) -> str:
    """Describe a sweep that is running or was stopped."""
    experiment_id = store.experiment(TRANSFER)
    return (
        f"{_question(digits(split.source), digits(split.target))} **Not finished yet**; results so far are in "
        f"`figures/` and `results.csv` among its artifacts.\n\nLook at: {_tables(experiment_id)}"
    )


def judged(store: Store, findings: Findings) -> str:
    """Describe a sweep with a report."""
    experiment_id, run_id = store.experiment(TRANSFER), findings.sweep.run_id
    source, target = findings.sweep.halves
    claims = named(CLAIMS, findings.claims)
    short = "; ".join(f"{text}: **{claim.verdict}**" for text, claim in claims)
    n_missing, n = len(findings.missing), len(findings.sweep.rows)
    missing = f" **{n_missing} of {n} cells are missing.**" if n_missing else ""
    has_curves = store.find(TRANSFER, role=Role.CURVE, parent=run_id)  # curve runs are made when the sweep ends
    curves = f"[the curves, compared]({curves_page(experiment_id, run_id)}) · " if has_curves else ""
    report = f"[the report]({run_page(experiment_id, run_id, PAGE)})"
    lines = [
        f"- {text}: **{claim.verdict}** ({claim.reason})" + (f"; {effect}" if (effect := effect_of(claim)) else "")
        for text, claim in claims
    ]
    shown = [picture(run_id, INLINE_COPY, PICTURED)] if findings.pair.n else []  # otherwise there are no figures
    return "\n\n".join(
        [
            f"{_question(source, target)} Claims of the original report: {short}.{missing}",
            f"Look at: {curves}{report} · {_tables(experiment_id)}",
            *shown,
            "\n".join(lines),
            "Effects are random minus pretrained: a loss above 0 means that pretraining helps. To extend "
            "this sweep, run the same command with more replicates (`--replicates`, six or more for a verdict), "
            "fractions or inits.",
        ]
    )


def _question(source: str, target: str) -> str:
    return f"Is a network that was trained on Fashion-MNIST classes {source} a better start for classes {target}?"


def _tables(experiment_id: str) -> str:
    cells, means = (experiment_page(experiment_id, view) for view in (View.CELLS, View.MEANS))
    return f"[cells by percent]({cells}) · [means by init and percent]({means})"
