"""The report as a page: Markdown, and one self-contained HTML file; and the claims for the terminal."""

import base64
import html
from collections.abc import Mapping

from sweeps.analysis.claims import CLAIMS
from sweeps.report.findings import Findings
from sweeps.report.sections import named, sections, some

CLAIMS_HEAD = "The original report's four claims, as this sweep sees them"
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; margin: 1rem 0; font-size: 0.9rem; display: block; overflow-x: auto; }
th, td { border-bottom: 1px solid #ddd; padding: 0.3rem 0.6rem; text-align: left; vertical-align: top; }
img { max-width: 100%; }
code { background: #f4f4f4; padding: 0 0.2rem; overflow-wrap: anywhere; }
"""


def markdown_of(findings: Findings, captions: Mapping[str, str]) -> str:
    """The report as Markdown. captions: figure file -> caption, in order."""
    return "\n\n".join(sections(findings, captions)) + "\n"


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
    for i, (text, claim) in enumerate(named(CLAIMS, findings.claims), 1):
        lines += [f"{i}. {text}: {claim.verdict} ({claim.reason})."]
        lines += [f"   Observed: {claim.observed}."] if claim.observed else []
    if findings.missing:
        n = len(findings.missing)
        lines += ["", f"{n} of {len(findings.sweep.rows)} cells are missing: {some(findings.missing)}."]
    return "\n".join(lines)
