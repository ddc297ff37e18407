"""Pages of MLflow's UI as relative links, and the experiments' descriptions and saved views. Imports no mlflow."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import quote

from fmnist_transfer.store.roles import BENCHMARK, KIND, NOTE, TRANSFER, TUNING, VIEW_TAG, Role, View


def experiment_page(experiment_id: str, view: str = "") -> str:
    share = f"viewStateShareKey={view}&" if view else ""
    # The UI's other type of workflow is for language models.
    return f"#/experiments/{experiment_id}/runs?{share}workflowType=machine_learning"


def run_page(experiment_id: str, run_id: str, artifact: str = "") -> str:
    return f"#/experiments/{experiment_id}/runs/{run_id}" + (f"/artifacts/{artifact}" if artifact else "")


def curves_page(experiment_id: str, sweep_run_id: str) -> str:
    """The sweep's curve runs in their saved view, whose key is the sweep's run id."""
    return f"{experiment_page(experiment_id, sweep_run_id)}&compareRunsMode=CHART"


def model_page(name: str, version: str | int = "") -> str:
    return f"#/models/{quote(name)}" + (f"/versions/{version}" if version else "")


class SavedView(NamedTuple):
    """A table of the runs of one role: its columns, the one that sorts it, and the params by which means are shown."""

    title: str
    role: Role
    columns: str
    order: str = "attributes.start_time"
    is_ascending: bool = False
    groups: str = ""
    charts: Sequence[Mapping[str, Any]] = ()
    head: str = ""  # of the charts, by default the title; the UI cuts long ones
    parent: str = ""  # only this run's children

    @property
    def state(self) -> dict[str, Any]:
        of_parent = f" and tags.parent = '{self.parent}'" if self.parent else ""
        *columns, order = (
            column if column.startswith("attributes") else "{}.`{}`".format(*column.split(".", 1))
            for column in (*self.columns.split(), self.order)
        )
        state: dict[str, Any] = {"selectedColumns": columns, "searchFilter": f"tags.role = '{self.role}'{of_parent}"}
        state |= {"orderByKey": order, "orderByAsc": self.is_ascending}
        if self.charts:
            section = {"uuid": SECTION, "name": self.head or self.title, "display": True, "isReordered": True}
            state |= {"compareRunCharts": self.charts, "compareRunSections": [section], "isAccordionReordered": True}
            state["runsHiddenMode"] = "SHOW_ALL"
        if self.groups:
            keys = [{"mode": "param", "groupByData": name} for name in self.groups.split()]
            state["groupBy"] = {"aggregateFunction": "average", "groupByKeys": keys}
        return state

    def tag(self, time_ms: int) -> str:
        """The view in the format of MLflow 3.17; other versions ignore what they cannot read."""
        times = {"createdAt": time_ms, "updatedAt": time_ms}
        return json.dumps({"name": self.title, **times, "state": json.dumps(self.state)})


SECTION = "curves"  # id of a view's only section of charts
# Columns of the views.
CELLS = (
    "params.init params.percent params.replicate metrics.final/train_loss metrics.final/val_loss "
    "metrics.final/val_accuracy metrics.best/val_loss metrics.test/accuracy"
)
SEARCHED = (
    "params.spec.channels params.spec.convs_per_block params.spec.kernel_size params.spec.fc1 params.spec.fc_dropout "
    "params.recipe.learning_rate params.recipe.weight_decay params.recipe.batch_size params.recipe.shift"
)
TRIALS = f"metrics.val_accuracy metrics.seconds {SEARCHED}"
SPACE = {  # a chart: trials as lines through the searched values, coloured by their score
    "type": "PARALLEL",
    "uuid": "space",
    "metricSectionId": SECTION,
    "displayName": "Search space",
    "selectedParams": [name.removeprefix("params.") for name in SEARCHED.split()],
    "selectedMetrics": ["val_accuracy"],
    "showAllRuns": True,
    "runsCountToCompare": 100,
}
RETRAINED = "params.replicate metrics.final/val_accuracy metrics.test/accuracy metrics.cost/seconds"
SWEEPS = "tags.model_uri_pinned tags.fractions tags.inits tags.replicates"
VIEWS: dict[str, dict[str, SavedView]] = {
    TUNING: {
        View.TRIALS: SavedView("Trials, the best first", Role.TRIAL, TRIALS, "metrics.val_accuracy", charts=[SPACE]),
        View.RETRAINED: SavedView("The best, trained again", Role.RETRAINED, RETRAINED, "metrics.final/val_accuracy"),
    },
    TRANSFER: {
        View.SWEEPS: SavedView("Sweeps", Role.SWEEP, SWEEPS),
        View.CELLS: SavedView("Cells by percent", Role.CELL, CELLS, "params.percent", True),
        View.MEANS: SavedView("Means by init and percent", Role.CELL, CELLS, "params.percent", True, "init percent"),
    },
}
NOTES = {
    TUNING: (
        "Searches for a CNN on one half of Fashion-MNIST (the source, FMNIST-2). Each run without an indent is a "
        "search; its child runs are the trials and the re-trainings of the best. The winner is in *Model registry* as "
        "`cnn2`, alias `best`. Trials are chosen by validation accuracy; only re-trained networks see test images."
    ),
    TRANSFER: (
        "Does a network that was trained on one half of Fashion-MNIST learn the other half (the target, FMNIST-1) "
        "better than one from random weights, and up to how much data? Each run without an indent is a sweep, with its "
        "answer, curves and report; its child runs are the cells, and the runs behind its curves (step: percent)."
    ),
    BENCHMARK: "Trainings of `python -m fmnist_transfer.benchmark`, which measures this machine. They are not results.",
}


def line_chart(metric: str, *, by: str = "", bottom: float | None = None) -> dict[str, Any]:
    """A chart of a saved view: a metric against the step, on a log axis, or against the metric `by`.

    With `bottom` the y axis goes from there to 1; otherwise MLflow includes 0 for the bands.
    """
    key = by or metric  # MLflow adds a chart of its own for a metric that is no chart's key
    chart: dict[str, Any] = {"type": "LINE", "uuid": key, "metricKey": key, "selectedMetricKeys": [metric]}
    chart |= {"metricSectionId": SECTION, "lineSmoothness": 0}
    if bottom is not None:
        chart["range"] = {"yMin": bottom, "yMax": 1}
    axis = {"xAxisKey": "metric", "selectedXAxisMetricKey": by} if by else {"xAxisKey": "step", "xAxisScaleType": "log"}
    return chart | axis


def curves_view(title: str, sweep_run_id: str, charts: Sequence[Mapping[str, Any]], time_ms: int) -> str:
    """Tag of a sweep's saved view: charts whose lines are means of curve runs with the same param `curve`, in bands."""
    head, columns = "By percent of images: mean and range", "params.curve params.replicate"
    order = "params.curve"  # sorted by date, runs would be listed below their parent
    return SavedView(title, Role.CURVE, columns, order, True, "curve", charts, head, sweep_run_id).tag(time_ms)


def experiment_tags(name: str, experiment_id: str, time_ms: int) -> dict[str, str]:
    """Kind, description and saved views of one of the three experiments."""
    links, tags = [], {KIND: "custom_model_development", NOTE: NOTES[name]}
    for key, view in VIEWS.get(name, {}).items():
        page = experiment_page(experiment_id, key)
        links.append(f"[{view.title}]({page})")
        if view.charts:
            links.append(f"[the same as lines]({page}&compareRunsMode=CHART)")
        tags[f"{VIEW_TAG}{key}"] = view.tag(time_ms)
    if links:
        tags[NOTE] += f"\n\nLook at: {' · '.join(links)}"
    return tags
