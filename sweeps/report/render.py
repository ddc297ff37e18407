"""The report as a page: Markdown by the template `report.md.j2`, and one self-contained HTML file; claims for the
terminal."""

import base64
import functools
import html
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import jinja2

from sweeps.analysis.claims import CLAIMS, MAX_MULTIPLIER
from sweeps.analysis.comparison import ACCURACY_MARGIN, LOSS_MARGIN
from sweeps.analysis.statistics import MIN_REPLICATES
from sweeps.grid import PERTURB, PROBING_SHARE, SHRINK
from sweeps.report import tables
from sweeps.report.findings import Findings, kind_of
from sweeps.rows import VAL_LOSS
from sweeps.training.recipes import PERCENTS as TUNED_PERCENTS

CLAIMS_HEAD = "The original report's four claims, as this sweep sees them"
TITLES = {"train_loss": "training loss", "val_loss": "validation loss", "val_accuracy": "accuracy"}
MOST_NAMES = 12
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; margin: 1rem 0; font-size: 0.9rem; display: block; overflow-x: auto; }
th, td { border-bottom: 1px solid #ddd; padding: 0.3rem 0.6rem; text-align: left; vertical-align: top; }
img { max-width: 100%; }
code { background: #f4f4f4; padding: 0 0.2rem; overflow-wrap: anywhere; }
"""


@functools.cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    environment.filters |= {"code": tables.code, "listed": listed, "some": some}
    environment.globals |= {
        "tables": tables,
        "table": table,
        "kind_of": kind_of,
        "ACCURACIES": tables.ACCURACIES,
        "ACCURACY_MARGIN": ACCURACY_MARGIN,
        "CLAIMS": CLAIMS,
        "LOSS_MARGIN": LOSS_MARGIN,
        "MAX_MULTIPLIER": MAX_MULTIPLIER,
        "MIN_REPLICATES": MIN_REPLICATES,
        "PERTURB": PERTURB,
        "PROBING_SHARE": PROBING_SHARE,
        "SHRINK": SHRINK,
        "TITLES": TITLES,
        "TUNED_PERCENTS": TUNED_PERCENTS,
        "VAL_LOSS": VAL_LOSS,
    }
    return environment.from_string(Path(__file__).with_name("report.md.j2").read_text())


def markdown_of(findings: Findings, captions: Mapping[str, str]) -> str:
    """The report as Markdown. captions: figure file -> caption, in order."""
    return _template().render(findings=findings, captions=captions)


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def listed(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, numbers))


def some(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return ", ".join(names[:MOST_NAMES]) + more


def html_of(text: str, images: Mapping[str, bytes]) -> str:
    """The Markdown as a page that needs nothing else; HTML within it is shown and not obeyed.

    images: path in the Markdown -> PNG.
    """
    import markdown

    converter = markdown.Markdown(extensions=["tables"])
    converter.preprocessors.deregister("html_block")
    converter.inlinePatterns.deregister("html")
    body = converter.convert(text)
    for path, content in images.items():
        body = body.replace(f'src="{path}"', f'src="data:image/png;base64,{base64.b64encode(content).decode()}"')
    title = html.escape(text.partition("\n")[0].lstrip("# "))
    head = f'<meta charset="utf-8"><title>{title}</title><style>{STYLE}</style>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body>\n{body}\n</body></html>\n'


def claims_text(findings: Findings) -> str:
    """The claims for the terminal, below `CLAIMS_HEAD`, and how many cells are missing."""
    lines = []
    for i, (text, claim) in enumerate(tables.named(CLAIMS, findings.claims), 1):
        lines += [f"{i}. {text}: {claim.verdict} ({claim.reason})."]
        lines += [f"   Observed: {claim.observed}."] if claim.observed else []
    if findings.missing:
        n = len(findings.missing)
        lines += ["", f"{n} of {len(findings.sweep.rows)} cells are missing: {some(findings.missing)}."]
    return "\n".join(lines)
