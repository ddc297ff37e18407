"""The MLflow UI as a user meets it: a real server on a small store that the commands made, in a headless browser."""

import os
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import synthetic

import sweeps.transfer
import tuning.search
from fmnist_transfer.store.opening import open_store
from fmnist_transfer.store.roles import TRANSFER
from fmnist_transfer.store.runs import Store
from sweeps.results.images import with_image_scores
from sweeps.results.read import read_sweep
from sweeps.rows import Score, by_replicate

if has_playwright := find_spec("playwright") is not None:
    import tour

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module", autouse=True)
def _tools() -> None:
    """Skip without a browser and what drives it; in CI that is a failure."""
    missing = [] if has_playwright else ["playwright (pip install -e '.[browser]')"]
    missing += [] if has_playwright and tour.find_browser() else ["Chromium (Debian's package: chromium)"]
    if missing:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"needs {' and '.join(missing)}")


@pytest.fixture(scope="module")
def store(_empty_store: Path, data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """After a small search and a sweep of all twenty fractions."""
    path = synthetic.copy_database(_empty_store, tmp_path_factory.mktemp("ui") / "mlflow.db")
    common = ["--tracking-uri", str(path), "--data-dir", str(data_dir), "--workers", "1", "--device", "cpu"]
    assert tuning.search.command([*common, "--trials", "3", "--epochs", "2", "--retrain-seeds", "1"]) == 0
    sweep = ["--model-uri", "models:/cnn2/best", "--epochs", "2", "--replicates", "2", "--curve-replicates", "1"]
    assert sweeps.transfer.command([*common, *sweep]) == 0
    return open_store(str(path))


@pytest.fixture(scope="module")
def sweep_run_id(store: Store) -> str:
    return str(store.find(TRANSFER, role="sweep")[0].info.run_id)


@pytest.fixture(scope="module")
def browser(store: Store) -> Iterator["tour.Visit"]:
    with tour.browsing(store) as visit:
        yield visit


@pytest.fixture
def visit(browser: "tour.Visit") -> Iterator["tour.Visit"]:
    """The browser; afterwards no page may have complained."""
    browser.errors.clear()
    yield browser
    assert browser.errors == []


def test_every_page_shows_what_it_should(visit: "tour.Visit", store: Store, sweep_run_id: str) -> None:
    tour.the_lists(visit, store)
    tour.the_search(visit, store)
    tour.the_sweep(visit, store, sweep_run_id)
    tour.the_model(visit, store, "cnn2", sweep_run_id)


def test_a_sweeps_view_draws_lines_with_bands(visit: "tour.Visit", store: Store, sweep_run_id: str) -> None:
    """Both inits have a point at each fraction, in a band over the replicates; the difference has its interval."""
    sweep = with_image_scores(store, read_sweep(store, sweep_run_id))
    charts = tour.the_curves(visit, store, sweep_run_id)
    scores = Score.TRAIN_LOSS, Score.HELDOUT_LOSS, Score.HELDOUT_ACCURACY
    assert [chart.metric for chart in charts[:3]] == [score.label for score in scores]
    assert [chart.is_log for chart in charts] == [True, True, True, True, False]
    *of_scores, of_difference, by_images = charts
    percents = list(range(5, 101, 5))
    for chart, score in zip(of_scores, scores, strict=True):
        assert set(chart.lines) == set(chart.bands) == {"pretrained", "random"}
        for init, line in chart.lines.items():
            values = by_replicate(sweep.rows, init, score, percents)
            expected = np.nanmean(values, axis=0), np.nanmin(values, axis=0), np.nanmax(values, axis=0)
            for points, at in zip((line, *chart.bands[init]), expected, strict=True):
                assert points == [(p, pytest.approx(value)) for p, value in zip(percents, at, strict=True)]
    intervals = sweep.pair.intervals(Score.HELDOUT_LOSS)
    assert intervals is not None
    assert "random - pretrained" in of_difference.metric
    ((group, line),) = of_difference.lines.items()
    expected = intervals.mean, intervals.low, intervals.high
    for points, at in zip((line, *of_difference.bands[group]), expected, strict=True):
        assert points == [(p, pytest.approx(value)) for p, value in zip(sweep.pair.percents, at, strict=True)]
    assert set(by_images.lines) == {"pretrained", "random"}
    for line in by_images.lines.values():
        assert [x for x, _ in line] == sorted({row.n_train for row in sweep.rows})


def test_what_is_missing_is_not_overlooked(browser: "tour.Visit", store: Store) -> None:
    """An image that is not there, and an error of a script, are both heard of."""
    browser.errors.clear()
    browser.open("#/experiments")
    browser.page.evaluate("new Image().src = 'get-artifact?path=none.png&run_uuid=none'")
    browser.page.evaluate("setTimeout(() => { throw Error('on purpose') })")
    browser.page.wait_for_timeout(2_000)
    assert any("status 404" in error for error in browser.errors) or any("none.png" in e for e in browser.errors)
    assert any("on purpose" in error for error in browser.errors)
    browser.errors.clear()
