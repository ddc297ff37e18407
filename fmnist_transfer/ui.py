"""What MLflow's UI is told: addresses of its pages, and what experiments say of themselves. Text and JSON out.

Addresses are relative to the server's (`#/experiments/2`), so that they work wherever the store is looked at. A
description is Markdown in a tag; the UI shows its links, lists and pictures.
"""

import json
from typing import Any
from urllib.parse import quote

TUNING, TRANSFER, BENCHMARK = "fmnist-tuning", "fmnist-transfer", "fmnist-benchmark"
NOTE = "mlflow.note.content"  # tag of a run or an experiment: its description
KIND = "mlflow.experimentKind"
VIEW = "mlflow.sharedViewState."  # + name: a tag of an experiment, which its menu `Views` lists
CELLS, MEANS, SWEEPS, TRIALS, RETRAINED = "cells", "means", "sweeps", "trials", "retrained"  # names of such views
TRAINING_PAGES = "workflowType=machine_learning"  # the others are of language models
INLINE_DPI = 60  # the UI shows a description's pictures at their own size


def experiment_page(experiment_id: str, view: str = "") -> str:
    """The experiment's runs, by one of its saved views."""
    share = f"viewStateShareKey={view}&" if view else ""
    return f"#/experiments/{experiment_id}/runs?{share}{TRAINING_PAGES}"


def run_page(experiment_id: str, run_id: str, artifact: str = "") -> str:
    """The run, or one of its artifacts, which the UI shows inline."""
    return f"#/experiments/{experiment_id}/runs/{run_id}" + (f"/artifacts/{artifact}" if artifact else "")


def curves_page(experiment_id: str, sweep_run_id: str) -> str:
    """The sweep's curve runs, one line each in a chart for each metric: the original report's graphs."""
    condition = quote(f"tags.role = 'curve' and tags.parent = '{sweep_run_id}'")
    # Sorted by anything but the date, child runs are listed without their parent.
    order = f"orderByKey={quote('params.`init`')}&orderByAsc=true"
    shown = f"searchFilter={condition}&{order}&startTime=ALL&compareRunsMode=CHART"
    return f"#/experiments/{experiment_id}/runs?{TRAINING_PAGES}&{shown}"


def model_page(name: str, version: str | int = "") -> str:
    """The registered model, or one of its versions."""
    return f"#/models/{quote(name)}" + (f"/versions/{version}" if version else "")


def picture(run_id: str, artifact: str, what: str) -> str:
    """Markdown that shows an image among a run's artifacts."""
    return f"![{what}](get-artifact?path={quote(artifact)}&run_uuid={run_id})"


def experiment_tags(name: str, experiment_id: str, time_ms: int) -> dict[str, str]:
    """Tags of one of the three experiments: that it is about training, its description, its saved views."""
    views = VIEWS.get(name, {})
    links = [f"[{title}]({experiment_page(experiment_id, view)})" for view, (title, _) in views.items()]
    note = NOTES[name] + (f"\n\nLook at: {' · '.join(links)}" if links else "")
    saved = {f"{VIEW}{view}": _saved(title, state, time_ms) for view, (title, state) in views.items()}
    return {KIND: "custom_model_development", NOTE: note} | saved


def _saved(title: str, state: dict[str, Any], time_ms: int) -> str:
    """A view as MLflow 3.17 saves it; another version ignores what it cannot read."""
    return json.dumps({"name": title, "createdAt": time_ms, "updatedAt": time_ms, "state": json.dumps(state)})


def _params(*names: str) -> list[str]:
    return [f"params.`{name}`" for name in names]


def _tags(*names: str) -> list[str]:
    return [f"tags.`{name}`" for name in names]


def _metrics(*names: str) -> list[str]:
    return [f"metrics.`{name}`" for name in names]


def _view(role: str, columns: list[str], order: str, *, up: bool, **more: Any) -> dict[str, Any]:
    """Runs of one role in one flat table."""
    shown = {"selectedColumns": columns, "searchFilter": f"tags.role = '{role}'"}
    return shown | {"orderByKey": order, "orderByAsc": up} | more


_CELL_COLUMNS = _params("init", "percent", "replicate") + _metrics(
    *("final/train_loss", "final/val_loss", "final/val_accuracy", "best/val_loss", "test/accuracy")
)
_BY_INIT_AND_PERCENT = {
    "aggregateFunction": "average",
    "groupByKeys": [{"mode": "param", "groupByData": name} for name in ("init", "percent")],
}
VIEWS: dict[str, dict[str, tuple[str, dict[str, Any]]]] = {
    TUNING: {
        TRIALS: (
            "Trials, the best first",
            _view(
                "trial",
                _metrics("val_accuracy", "seconds")
                + _params("recipe.learning_rate", "recipe.optimizer", "recipe.batch_size", "recipe.schedule")
                + _params("spec.channels", "spec.convs_per_block", "spec.kernel_size", "spec.normalisation"),
                "metrics.`val_accuracy`",
                up=False,
            ),
        ),
        RETRAINED: (
            "The best, trained again",
            _view(
                "retrained",
                _params("replicate") + _metrics("final/val_accuracy", "test/accuracy", "cost/seconds"),
                "metrics.`final/val_accuracy`",
                up=False,
            ),
        ),
    },
    TRANSFER: {
        SWEEPS: (
            "Sweeps",
            _view(
                "sweep",
                _tags("model_uri_pinned", "fractions", "inits", "replicates"),
                "attributes.start_time",
                up=False,
            ),
        ),
        CELLS: ("Cells by percent", _view("cell", _CELL_COLUMNS, "params.`percent`", up=True)),
        MEANS: (
            "Means by init and percent",
            _view("cell", _CELL_COLUMNS, "params.`percent`", up=True, groupBy=_BY_INIT_AND_PERCENT),
        ),
    },
}
NOTES = {
    TUNING: (
        "Searches for a CNN on one half of Fashion-MNIST (the source, FMNIST-2). Each run without an indent is a "
        "search; it holds a run for each trial, with its epoch curve, and one for each training of the best again. "
        "The winner is in *Model registry* as `cnn2`, alias `best`. Trials are chosen by validation accuracy alone; "
        "test images score only what was trained again."
    ),
    TRANSFER: (
        "Does a network that was trained on one half of Fashion-MNIST learn the other half (the target, FMNIST-1) "
        "better than one from random weights, and up to how much data? Each run without an indent is a sweep: open it "
        "for the answer, its curves and its report. It holds a run for each cell (init, percent of the target's "
        "training images, replicate) and for each init a run of the means, whose step is the percent."
    ),
    BENCHMARK: "Trainings of `python -m fmnist_transfer.benchmark`, which measures this machine. None is a result.",
}
