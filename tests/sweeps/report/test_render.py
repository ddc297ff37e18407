"""The page on constructed sweeps: what it says, and that it says something wherever little is known."""

import dataclasses
import math
import re

import pytest
from constructed import RECIPE, rows, sweep

from sweeps.analysis.claims import CLAIMS, NO_HELP
from sweeps.analysis.statistics import FLOOR
from sweeps.grid import Cell, RecipeChange
from sweeps.report.answer import VERDICT_COLOURS
from sweeps.report.figures import report_figures
from sweeps.report.findings import csv_of, find
from sweeps.report.write import claims_text, html_of, markdown_of, more_text
from sweeps.results.read import LoggedSweep
from sweeps.rows import Row
from sweeps.training.recipes import tuning_cells

CROSSING = (0.1, 0.05, -0.05, -0.05, -0.05)


def page(of: LoggedSweep, *others: LoggedSweep) -> str:
    return markdown_of(of, find(of, others), {})


@pytest.mark.parametrize("n", [0, 1, 2, 5, 6])
def test_any_number_of_replicates_makes_a_page(n: int) -> None:
    text = page(sweep(rows(n, {"heldout/loss": CROSSING})))
    assert re.match("# .*01234.*56789", text)
    for absent in ("nan", "inf ", "None", "at  %"):
        assert absent not in text
    assert (text.count("**cannot be told**") == 4) == (n < FLOOR)


def test_the_verdict_stands_with_its_numbers() -> None:
    text = page(sweep(rows(8, {"final/train_loss": 0.08, "heldout/loss": CROSSING})))
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {CLAIMS['train_loss']} |")]
    assert re.search(r"\*\*holds\*\* \| \+(9\.9|10\.0)\d \[", line)  # 0.08 of 0.8 nats, the smallest effect
    assert "one source network" in line
    assert re.search(r"\| 5 % \| 0\.8000 \| 0\.8\d+ \| \+(9\.9|10\.0)\d \[.*\] \| \+0\.0", text)
    assert "0 of 80" in text


def test_an_open_verdict_says_what_would_tell() -> None:
    assert more_text(3, 60.0) == "3 more replicates would tell, some 3 min 00 s"
    assert more_text(3, math.nan) == "3 more replicates would tell"
    assert more_text(NO_HELP, 60.0) == NO_HELP
    assert more_text("", 60.0) == ""


def test_an_unfinished_plan_has_numbers_and_no_verdict() -> None:
    table = rows(6, {"heldout/loss": CROSSING})
    table[-1] = Row(table[-1].cell, 25_000, "", "open", {})
    unfinished = sweep(table)
    findings = find(unfinished)
    for text in (page(unfinished), claims_text(unfinished, findings)):
        assert "No verdict yet" in text
        assert not any(f"{name}: " in text or f"**{name}**" in text for name in VERDICT_COLOURS)
        assert "1 of 60" in text
    assert len(findings["differences"]["heldout_loss"]) == 5
    assert "losses" in report_figures(unfinished)


def test_marks_stand_beside_verdicts() -> None:
    extended = dataclasses.replace(sweep(rows(6, {}), sources="one a replicate"), is_extended=True)
    text = page(extended)
    assert "| 6, extended |" in text
    assert "one source network" not in text


def test_one_fraction_and_one_init_are_no_error() -> None:
    table = rows(6, {"heldout/loss": 0.1})
    one = sweep([row for row in table if row.cell.percent == 100])
    assert "| 100 % |" in page(one)
    assert "effective_data" not in report_figures(one)
    alone = page(sweep([row for row in table if row.cell.init == "random"]))
    assert alone.count("**cannot be told**") == 4
    assert "| random | 5 % | 6 |" in alone


def test_scores_that_cells_lack_leave_a_gap() -> None:
    known = {"final/train_loss", "final/val_loss", "final/val_accuracy", "best/val_loss", "test/accuracy"}
    table = [
        dataclasses.replace(row, scores={key: value for key, value in row.scores.items() if key in known})
        for row in rows(6, {})
    ]
    old = sweep(table)
    assert "heldout_loss" not in find(old)["differences"]
    assert set(report_figures(old)) == {"answer", "losses"}
    assert " temperature |" not in page(old)


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
    assert findings["crossover"] is None  # claim 2 does not hold
    (control,) = findings["controls"]
    assert (control["init"], control["n_replicates"]) == ("frozen", 8)
    assert control["points"][0]["mean"] == pytest.approx(math.log(0.9 / 0.8), abs=0.005)
    assert re.search(r"\| frozen \| 8 \| 5 % \| 0\.8000 \| 0\.(90|89)", page(three))
    assert "controls" not in report_figures(three)  # far below the others, frozen is in the tables alone


def test_sweeps_side_by_side() -> None:
    one = sweep(rows(8, {"heldout/loss": 0.1}))
    other = sweep(rows(3, {"heldout/loss": -0.05}), run_id="fedcba9876543210", budget="steps")
    findings = find(one, [other])
    text = page(one, other)
    assert "| `fedcba9876543210` |" in text
    assert re.search(r"\bsteps\b", text)
    assert "sweeps" in report_figures(one, [other])
    assert findings["compared_with"][0]["run_id"] == "fedcba9876543210"


def test_the_table_of_differences_is_a_csv_file() -> None:
    head, first, *others = csv_of(find(sweep(rows(6, {"final/train_loss": 0.1})))).splitlines()
    assert head == "score,percent,pretrained,random,difference,mean,low,high,image_variance"
    assert first.startswith("train_loss,5,0.8,")
    assert len(others) == 7 * 5 - 1
    assert csv_of(find(sweep(rows(1, {})[:1]))) == "\n"


def test_tuned_recipes_and_their_edges() -> None:
    tried = tuning_cells(("pretrained", "random"), RECIPE)
    tuned = dataclasses.replace(
        sweep(rows(6, {}), recipe_mode="tuned"),
        chosen={"random": {5: RecipeChange(3e-3, 0.25), 100: RecipeChange(10 * 3e-3, 0.25)}},
        tuning_rows=[Row(cell, 1, "id", "failed" if i < 3 else "finished", {}) for i, cell in enumerate(tried)],
    )
    text = page(tuned)
    assert re.search(r"\b192 of 192\b.*\n?.*\b3\b", text)
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
    shown = html_of("# Title\n\n![caption](losses.png)\n", {"losses": b"png"})
    assert 'src="data:image/png;base64,cG5n"' in shown
    assert "<title>Title</title>" in shown
