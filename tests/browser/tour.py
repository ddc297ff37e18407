"""A tour of a store in MLflow's UI, as a user takes it in a browser: every page is checked, and may be pictured.

    python tests/browser/tour.py --pictures docs/results      # of the checkout's store: the README's pictures

`test_browser.py` takes the same tour of a small store. A page that lacks what it should show raises AssertionError.
"""

import argparse
import contextlib
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from playwright.sync_api import Page, Response, expect, sync_playwright

from fmnist_transfer.show import HOST, free_port, is_free, mlflow_server, served
from fmnist_transfer.store.links import VIEWS, curves_page, experiment_page, model_page, run_page
from fmnist_transfer.store.opening import open_store
from fmnist_transfer.store.registry import SWEEP_TAG, best_version
from fmnist_transfer.store.roles import NOTE, TRANSFER, TUNING, View
from fmnist_transfer.store.runs import Store

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
WAIT_MS = 60_000
SIZE = {"width": 1500, "height": 950}
# MLflow's own: a page about users that a server without accounts has not, since 3.18 its assistant and downloads by a
# presigned address, which a local store has not, and what Chromium says of a busy layout.
ABSENT = ("/mlflow/users/current", "/mlflow/assistant/", "presigned")
HARMLESS = ("ResizeObserver loop",)
# So that a first visit looks like later ones: no assistant beside the page, and pages of training, not of chat models.
FIRST_VISIT = """if (window === top && location.protocol === 'http:') {
    localStorage.setItem('mlflow.assistant.fab.autoOpenedOnFirstLoad_v1', 'true');
    localStorage.setItem('mlflow.workflowType_v1', '"machine_learning"');
}"""
# The traces of each chart, in the order of the page: lines, and bands (filled; empty where a group lacks the metric).
CHARTS = """() => [...document.querySelectorAll('.js-plotly-plot')].map(chart => ({
    log: chart.layout.xaxis.type == 'log',
    traces: chart.data.map(trace => ({
        group: trace.uuid ?? '', metric: trace.metricKey ?? '', fill: trace.fill ?? '', x: trace.x, y: trace.y
    }))
}))"""
AXES = "[...document.querySelectorAll('.parcoords .dimension .label')].map(axis => axis.textContent)"
Points = list[tuple[float, float]]


class Chart(NamedTuple):
    """One chart of a sweep's view, with its lines and bands by curve."""

    metric: str
    is_log: bool  # of the x axis
    lines: dict[str, Points]
    bands: dict[str, tuple[Points, Points]]  # lower and upper edge


def find_browser() -> str | None:
    """The path of a Chromium; None if there is none."""
    return next((path for name in BROWSERS if (path := shutil.which(name))), None)


@dataclass
class Visit:
    """A browser at a server's pages. What goes wrong meanwhile is collected in `errors`."""

    page: Page
    address: str
    pictures: Path | None = None
    errors: list[str] = field(default_factory=list)

    def listen(self) -> None:
        self.page.on("console", lambda message: self._hear(message.type, message.text, message.location["url"]))
        self.page.on("pageerror", lambda error: self._hear("error", str(error), self.page.url))
        self.page.on("response", self._look)

    def _hear(self, kind: str, text: str, url: str) -> None:
        if kind == "error" and not any(one in url for one in ABSENT) and not any(one in text for one in HARMLESS):
            self.errors.append(f"{url}: {text}")

    def _look(self, response: Response) -> None:
        if response.status >= 400 and not any(one in response.url for one in ABSENT):
            self.errors.append(f"{response.url}: status {response.status}")

    def open(self, path: str) -> Page:
        """A page, loaded from the start."""
        self.page.goto("about:blank")  # another fragment alone would load nothing
        self.page.goto(f"{self.address}/{path}", timeout=WAIT_MS)
        return self.page

    def sees(self, text: str | re.Pattern[str]) -> None:
        """Wait until the page shows the text."""
        expect(self.page.get_by_text(text).first).to_be_visible(timeout=WAIT_MS)

    def picture(self, name: str) -> None:
        if self.pictures:
            self.page.wait_for_timeout(1_000)  # charts move into place
            self.page.screenshot(path=self.pictures / f"{name}.png")


@contextlib.contextmanager
def browsing(store: Store, pictures: Path | None = None) -> Iterator[Visit]:
    """A headless browser at a server of its own on the store."""
    port = free_port(5_600)
    with served(*mlflow_server(store, port)) as server, sync_playwright() as playwright:
        while is_free(port):  # it listens before it can answer; the first page waits
            assert server.poll() is None
            time.sleep(0.2)
        sandbox = [] if os.geteuid() else ["--no-sandbox"]  # Chromium has none for root
        with playwright.chromium.launch(executable_path=find_browser(), args=sandbox) as browser:
            page = browser.new_page(viewport=SIZE)
            page.add_init_script(FIRST_VISIT)
            visit = Visit(page, f"http://{HOST}:{port}", pictures)
            visit.listen()
            yield visit


def first_words(text: str) -> str:
    """Enough of a description to know it by."""
    return " ".join(text.split()[:5])


def the_lists(visit: Visit, store: Store) -> None:
    """All experiments; the sweeps of one, which says what it is; its cells in order of percent, and grouped by init."""
    visit.open("#/experiments")
    for name in (TUNING, TRANSFER):
        visit.sees(name)
    experiment_id = store.experiment(TRANSFER)
    visit.open(experiment_page(experiment_id))
    visit.sees(first_words(store.client.get_experiment(experiment_id).tags[NOTE]))
    for sweep in store.find(TRANSFER, role="sweep")[:3]:
        visit.sees(sweep.info.run_name)
    page = visit.open(experiment_page(experiment_id, View.CELLS))
    visit.sees(VIEWS[TRANSFER][View.CELLS][0])
    visit.sees(" 005% r0")
    shown = [cell.inner_text() for cell in page.locator("[col-id='params.`percent`'][role='gridcell']").all()]
    assert len(shown) >= 8
    assert shown == sorted(shown, key=int)
    visit.open(experiment_page(experiment_id, View.MEANS))
    visit.sees(VIEWS[TRANSFER][View.MEANS][0])
    for init in ("random", "pretrained"):
        visit.sees(re.compile(f"Group: .*{init}"))


def the_sweep(visit: Visit, store: Store, sweep_run_id: str) -> None:
    """The parent run: its answer in words, its picture, and the report inline."""
    experiment_id = store.experiment(TRANSFER)
    page = visit.open(run_page(experiment_id, sweep_run_id))
    visit.sees(first_words(store.client.get_run(sweep_run_id).data.tags[NOTE]))
    page.get_by_text("Show more", exact=True).first.click(timeout=WAIT_MS)
    drawn = page.locator("img[src*='inline.png']")
    expect(drawn).to_be_visible(timeout=WAIT_MS)
    assert drawn.evaluate("image => image.complete && image.naturalWidth") > 300
    visit.picture("mlflow-sweep")
    page = visit.open(run_page(experiment_id, sweep_run_id, "report/report.html"))
    report = page.frame_locator("iframe")
    expect(report.get_by_role("heading").first).to_be_visible(timeout=WAIT_MS)
    expect(report.get_by_text(sweep_run_id).first).to_be_visible(timeout=WAIT_MS)


def the_curves(visit: Visit, store: Store, sweep_run_id: str) -> list[Chart]:
    """The view of the sweep's curve runs, chart by chart."""
    visit.page.set_viewport_size({**SIZE, "height": 1_280})  # charts are drawn as they come into sight
    page = visit.open(curves_page(store.experiment(TRANSFER), sweep_run_id))
    expect(page.locator(".js-plotly-plot").first).to_be_visible(timeout=WAIT_MS)
    page.wait_for_function(f"({CHARTS})().length >= 5", timeout=WAIT_MS)
    visit.picture("mlflow-compare")
    return [_chart(found["log"], found["traces"]) for found in page.evaluate(CHARTS)]


def _chart(is_log: bool, traces: list[dict[str, Any]]) -> Chart:
    """A chart has the bands of all groups first, then the lines of those that have the metric, in the same order."""
    lines = {trace["group"].rpartition(".")[2]: _points(trace) for trace in traces if not trace["fill"]}
    filled = [points for trace in traces if trace["fill"] and (points := _points(trace))]
    bands = {}
    for curve, points in zip(lines, filled, strict=True):
        n = len(points) // 2
        bands[curve] = points[:n][::-1], points[n:]  # from right to left along the lower edge, then back
    return Chart(next(trace["metric"] for trace in traces if trace["metric"]), is_log, lines, bands)


def _points(trace: dict[str, Any]) -> Points:
    """All points but the gap between a band's edges, and those that a log axis cannot show."""
    return [(x, y) for x, y in zip(trace["x"], trace["y"], strict=True) if x]


def the_model(visit: Visit, store: Store, name: str, sweep_run_id: str) -> None:
    """The registered model with its alias and description; its version links to its trial and names the sweep."""
    version = best_version(store, name)
    assert version is not None
    visit.open(model_page(name))
    visit.sees("@ best")
    visit.sees(first_words(store.client.get_registered_model(name).description))
    page = visit.open(model_page(name, version.version))
    visit.sees(re.compile(re.escape(f"{SWEEP_TAG}{sweep_run_id[:8]}")))  # the page may shorten a tag
    assert page.locator(f"a[href*='{version.run_id}']").count() >= 1


def the_search(visit: Visit, store: Store) -> None:
    """The search's parent, which names the model, and its trials with the best first."""
    experiment_id = store.experiment(TUNING)
    study = store.find(TUNING, role="study")[0]
    visit.open(run_page(experiment_id, str(study.info.run_id)))
    visit.sees(first_words(study.data.tags[NOTE]))
    page = visit.open(experiment_page(experiment_id, View.TRIALS))
    visit.sees(VIEWS[TUNING][View.TRIALS][0])
    column = page.locator("[col-id='metrics.`val_accuracy`'][role='gridcell']")
    expect(column.first).to_be_visible(timeout=WAIT_MS)
    scores = [float(text) for text in column.all_inner_texts() if text.strip(" -\n")]  # pruned ones have none
    assert scores == sorted(scores, reverse=True)
    page = visit.open(experiment_page(experiment_id, View.TRIALS) + "&compareRunsMode=CHART")
    page.wait_for_function(f"{AXES}.length == 10", timeout=WAIT_MS)  # nine searched values and the score
    assert page.evaluate(AXES)[-1] == "val_accuracy"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tracking-uri", help="store; default: as of the commands")
    parser.add_argument("--pictures", type=Path, help="folder for a picture of each page")
    arguments = parser.parse_args()
    store = open_store(arguments.tracking_uri)
    sweep = store.find(TRANSFER, role="sweep")[0]
    name = sweep.data.tags["model_uri_pinned"].split("/")[1]
    with browsing(store, arguments.pictures) as visit:
        the_lists(visit, store)
        the_search(visit, store)
        the_model(visit, store, name, str(sweep.info.run_id))
        the_sweep(visit, store, str(sweep.info.run_id))
        for chart in the_curves(visit, store, str(sweep.info.run_id)):
            print(chart.metric, {name: f"{len(points)} points" for name, points in chart.lines.items()})
    print("\n".join(visit.errors) or "no error")
    return bool(visit.errors)


if __name__ == "__main__":
    sys.exit(main())
