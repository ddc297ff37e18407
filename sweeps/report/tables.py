"""Cells of the tables of the report's page, as text."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from sweeps.analysis.claims import CLAIMS, Verdict
from sweeps.report.findings import DIAGNOSIS, Beside, Control, InitLine, Point
from sweeps.results.read import LoggedSweep
from sweeps.training.recipes import is_on_edge

Line = list[str]
ACCURACIES = ("val_accuracy", "test_accuracy")  # shown in percent


def named(names: Mapping[str, str], verdicts: Mapping[str, Verdict]) -> list[tuple[str, Verdict]]:
    """Each claim in words, with its verdict."""
    return [(names[key], claim) for key, claim in verdicts.items()]


def effect_of(claim: Verdict) -> str:
    """`+0.0123 [+0.0100, +0.0146] nats at 5 %`."""
    if claim.effect is None:
        return ""
    unit, digits, name = (100, 2, "points") if claim.unit == "accuracy" else (1, 4, claim.unit)
    interval = ""
    if claim.interval:
        interval = f" [{unit * claim.interval[0]:+.{digits}f}, {unit * claim.interval[1]:+.{digits}f}]"
    where = "" if claim.percent is None else f" at {claim.percent} %"
    return f"{unit * claim.effect:+.{digits}f}{interval} {name}{where}"


def claims(verdicts: Iterable[tuple[str, Verdict]]) -> Iterator[Line]:
    for text, claim in verdicts:
        yield [text, f"**{claim.verdict}**", effect_of(claim), claim.reason]


def points(of: Iterable[Point], score: str = "") -> list[Line]:
    """Fraction, mean, t-interval, band and p; in points for an accuracy."""
    return [_point(point, in_points=score in ACCURACIES) for point in of]


def _point(point: Point, *, in_points: bool = False) -> Line:
    unit, digits = (100, 2) if in_points else (1, 4)

    def between(low: float | None, high: float | None) -> str:
        return "-" if low is None or high is None else f"{unit * low:+.{digits}f} to {unit * high:+.{digits}f}"

    mean = f"{unit * point.mean:+.{digits}f}"
    p = "-" if point.p is None else f"{point.p:.4f}"
    return [f"{point.percent} %", mean, between(point.t_low, point.t_high), between(point.low, point.high), p]


def effective_data(rows: Iterable[Mapping[str, Any]]) -> Iterator[Line]:
    for row in rows:
        bound = "≥ " if row["at_least"] else "≤ " if row["at_most"] else ""
        low, high = row["low"], row["high"]  # 0 and None are no bounds
        interval = f"≥ {low:.2f}" if high is None else f"{low:.2f} to {high:.2f}" if low else f"≤ {high:.2f}"
        effective, transferred = row["effective_percent"], row["transferred_percent"]
        numbers = [f"{bound}{effective:.1f} %", f"{bound}{transferred:+.1f}", f"{bound}{row['multiplier']:.2f}"]
        yield [f"{row['percent']} %", *numbers, interval]


def inits(lines: Sequence[InitLine]) -> tuple[Line, list[Line]]:
    """Header and rows; the columns are the scores that some init has."""
    columns = [name for name in DIAGNOSIS if any(name in line.means for line in lines)]
    header = ["init", "data", "n", *(name.replace("_", " ") for name in columns), "sd of val loss"]
    rows = []
    for line in lines:
        sd = "" if line.val_loss_sd is None else f"{line.val_loss_sd:.4f}"
        numbers = [_number(name, line.means.get(name)) for name in columns]
        rows.append([line.init, f"{line.percent} %", str(line.n_replicates), *numbers, sd])
    return header, rows


def _number(name: str, value: float | None) -> str:
    if value is None:
        return ""
    return f"{100 * value:.2f}" if name in ACCURACIES else f"{value:.4f}" if abs(value) < 10 else f"{value:.2f}"


def controls(of: Iterable[Control]) -> list[Line]:
    return [[control.init, str(control.n_replicates), *_point(point)] for control in of for point in control.points]


def recipes(sweep: LoggedSweep) -> Iterator[Line]:
    for init, of_init in sweep.chosen.items():
        for percent, change in sorted(of_init.items()):
            numbers = [f"{change.learning_rate:.3g}", f"{change.trunk_factor:.2g}", f"{change.warm_up:.2g}"]
            yield [init, f"{percent} %", *numbers, "yes" if is_on_edge(change, init, sweep.recipe) else ""]


def beside(sweeps: Sequence[Beside]) -> tuple[Line, list[Line]]:
    """Header and rows; a column per sweep."""
    at = [{point.percent: point for point in sweep.points} for sweep in sweeps]
    rows = [
        ["run", *(f"`{sweep.run_id}`" for sweep in sweeps)],
        ["of", *(code(sweep.name) for sweep in sweeps)],
        ["kind", *(sweep.kind for sweep in sweeps)],
        ["replicates", *(str(sweep.n_replicates) for sweep in sweeps)],
        *([text, *(sweep.verdicts[name] for sweep in sweeps)] for name, text in CLAIMS.items()),
    ]
    for percent in sorted({percent for own in at for percent in own}):
        rows.append([f"{percent} %", *(_mean_and_band(own.get(percent)) for own in at)])
    return ["", *(f"`{sweep.run_id[:8]}`" for sweep in sweeps)], rows


def _mean_and_band(point: Point | None) -> str:
    if point is None:
        return ""
    _, mean, _, band, _ = _point(point)
    return mean if band == "-" else f"{mean} ({band})"


def settings(sweep: LoggedSweep) -> list[Line]:
    """Spec and recipe first, then what else identifies the sweep, and where its cells were trained."""
    values = sorted(sweep.params.items(), key=lambda item: not item[0].startswith(("spec.", "recipe.")))
    values += [(key, sweep.tags.get(key, "")) for key in ("model_uri", "model_uri_pinned")]
    values += [(key, ", ".join(found)) for key, found in sweep.provenance.items()]
    return [[code(key), code(value)] for key, value in values]


def code(text: str) -> str:
    """The text as code: names, params and tags of a store may hold anything."""
    return f"`{text.replace('`', chr(39))}`" if text else ""
