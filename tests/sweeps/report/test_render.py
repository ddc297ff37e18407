"""The page on constructed sweeps: what it says, and that it says something wherever little is known."""

import dataclasses
import re

import pytest
from constructed import rows, sweep

from sweeps.analysis.claims import CLAIMS
from sweeps.grid import Cell, RecipeChange
from sweeps.report.figures import report_figures
from sweeps.report.findings import csv_of, find
from sweeps.report.write import claims_text, html_of, markdown_of
from sweeps.results.read import LoggedSweep
from sweeps.rows import Row

CROSSING = (0.1, 0.05, -0.05, -0.05, -0.05)


def page(of: LoggedSweep, *others: LoggedSweep) -> str:
    return markdown_of(of, find(of, others), {})


@pytest.mark.parametrize("n", [0, 1, 2, 5, 6])
def test_any_number_of_replicates_makes_a_page(n: int) -> None:
    text = page(sweep(rows(n, {"final/val_loss": CROSSING})))
    assert re.match("# .*01234.*56789", text)
    for absent in ("nan", "inf ", "None", "at  %"):
        assert absent not in text
    assert (text.count("**cannot be told**") == 4) == (n < 4)


def test_the_verdict_stands_with_its_numbers() -> None:
    text = page(sweep(rows(8, {"final/train_loss": 0.1, "final/val_loss": CROSSING})))
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {CLAIMS['train_loss']} |")]
    assert re.search(r"\*\*holds\*\* \| \+\d", line)
    assert "0 of 80" in text


def test_one_fraction_and_one_init_are_no_error() -> None:
    table = rows(6, {"final/val_loss": 0.1})
    assert "| 100 % |" in page(sweep([row for row in table if row.cell.percent == 100]))
    alone = page(sweep([row for row in table if row.cell.init == "random"]))
    assert alone.count("**cannot be told**") == 4
    assert "| random | 5 % | 6 |" in alone


def test_cells_of_an_earlier_version_leave_a_gap() -> None:
    known = {"final/train_loss", "final/val_loss", "final/val_accuracy", "best/val_loss", "test/accuracy"}
    table = [
        dataclasses.replace(row, scores={key: value for key, value in row.scores.items() if key in known})
        for row in rows(6, {})
    ]
    old = sweep(table)
    findings = find(old)
    assert "scaled_val_loss" not in findings["band"]
    assert "calibration" not in report_figures(old, findings)
    assert "val ece" not in page(old)


def test_failed_and_open_cells_are_named() -> None:
    table = rows(7, {})
    table[3] = Row(table[3].cell, 2_500, "id", "failed", {})
    text = page(sweep(table))
    for words in (text, claims_text(sweep(table), find(sweep(table)))):
        assert re.search(rf"1 of 70\b.*\n?.*{table[3].cell.name} \(failed\)", words)
    assert "Replicates 0 " in text


def test_controls_are_compared_to_random() -> None:
    three = sweep(rows(8, {"heldout/loss": 0.1}, inits=("pretrained", "random", "frozen")))
    findings = find(three)
    (control,) = findings["controls"]
    assert (control["init"], control["n_replicates"]) == ("frozen", 8)
    assert control["points"][0]["mean"] == pytest.approx(0.118, abs=0.005)  # log(0.9 / 0.8)
    assert "| frozen | 8 | 5 % | +12." in page(three)
    assert "inits" in report_figures(three, findings)


def test_sweeps_side_by_side() -> None:
    one = sweep(rows(8, {"final/val_loss": 0.1}))
    other = sweep(rows(3, {"final/val_loss": -0.1}), run_id="fedcba9876543210", budget="steps")
    findings = find(one, [other])
    text = page(one, other)
    assert "|  | `01234567` | `fedcba98` |" in text
    assert "| replicates | 8 | 3 |" in text
    assert re.search(r"\bsteps\b", text)
    assert "sweeps" in report_figures(one, findings)
    assert findings["compared_with"][0]["run_id"] == "fedcba9876543210"
    assert "fedcba9876543210" in csv_of(findings)


def test_tuned_recipes_and_their_edges() -> None:
    tuned = dataclasses.replace(
        sweep(rows(6, {}), recipe_mode="tuned"),
        chosen={"random": {5: RecipeChange(3e-3, 0.25), 100: RecipeChange(10 * 3e-3, 0.25)}},
        n_tuning=(108, 3, 108),
    )
    text = page(tuned)
    assert re.search(r"\b108 of 108\b.*\n?.*\b3\b", text)
    assert "| random | 5 % | 0.003 | 0.25 |  |" in text
    assert "| random | 100 % | 0.03 | 0.25 | yes |" in text


def test_what_a_store_holds_is_shown_and_not_obeyed() -> None:
    hostile = dataclasses.replace(sweep(rows(1, {})), name="<script>alert(1)</script>`<b>")
    shown = html_of(page(hostile), {})
    assert "<script" not in shown
    assert "<b>" not in shown
    named = dataclasses.replace(
        hostile,
        rows=(*hostile.rows, Row(Cell(5, "<img src=x>", 0), 1, "", "open", {})),  # type: ignore[arg-type]
    )
    assert "<img src=x" not in html_of(page(named), {})


def test_images_are_inside_the_page() -> None:
    shown = html_of("# Title\n\n![caption](losses.png)\n", {"losses.png": b"png"})
    assert 'src="data:image/png;base64,cG5n"' in shown
    assert "<title>Title</title>" in shown
