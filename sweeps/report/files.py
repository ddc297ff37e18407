"""Paths of a report among the artifacts of the sweep's parent run."""

FOLDER = "report"
PAGE, INLINE_COPY = f"{FOLDER}/report.html", f"{FOLDER}/inline.png"


def place_of(run_id: str) -> str:
    """Location of the page, in words."""
    return f"{PAGE} among the artifacts of run {run_id}"
