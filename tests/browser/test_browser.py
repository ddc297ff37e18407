"""The MLflow UI as a user meets it: a real server on a small store that the commands made, in a headless browser."""

import os
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import synthetic

import sweeps.transfer
import tuning.search
from fmnist_transfer.store.opening import open_store
from fmnist_transfer.store.roles import TRANSFER
from fmnist_transfer.store.runs import Store

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
    sweep = ["--model-uri", "models:/cnn2/best", "--epochs", "2", "--replicates", "1"]
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


def test_comparing_the_curves_draws_the_reports_graphs(visit: "tour.Visit", store: Store, sweep_run_id: str) -> None:
    """Every chart has both lines, with a point for each of the twenty fractions: those that were logged."""
    charts = tour.the_curves(visit, store, sweep_run_id)
    assert len(charts) >= 2
    for chart in charts:
        assert set(chart) == {"pretrained", "random"}
        for points in chart.values():
            assert [x for x, _ in points] == list(range(5, 101, 5))
    runs = {run.info.run_name: run.info.run_id for run in store.find(TRANSFER, role="curve", parent=sweep_run_id)}
    for key in ("curve/train_loss", "curve/val_loss"):
        histories = {name: store.client.get_metric_history(run_id, key) for name, run_id in runs.items()}
        assert {name: [(m.step, pytest.approx(m.value)) for m in of] for name, of in histories.items()} in charts


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
