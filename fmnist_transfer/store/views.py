"""Descriptions of our experiments and saved views of their runs in MLflow's UI, as tags."""

import json
from typing import Any

from fmnist_transfer.store.links import experiment_page
from fmnist_transfer.store.roles import (
    BENCHMARK,
    BEST_VAL_LOSS,
    KIND,
    NOTE,
    SECONDS,
    TEST_ACCURACY,
    TRAIN_LOSS,
    TRANSFER,
    TUNING,
    VAL_ACCURACY,
    VAL_LOSS,
    VIEW_TAG,
    Role,
    View,
)


def experiment_tags(name: str, experiment_id: str, time_ms: int) -> dict[str, str]:
    """Tags of one of the three experiments: its kind, description and saved views."""
    views = VIEWS.get(name, {})
    links = [f"[{title}]({experiment_page(experiment_id, view)})" for view, (title, _) in views.items()]
    note = NOTES[name] + (f"\n\nLook at: {' · '.join(links)}" if links else "")
    saved = {f"{VIEW_TAG}{view}": _saved(title, state, time_ms) for view, (title, state) in views.items()}
    return {KIND: "custom_model_development", NOTE: note} | saved


def _saved(title: str, state: dict[str, Any], time_ms: int) -> str:
    """JSON of a saved view in the format of MLflow 3.17; other versions ignore what they cannot read."""
    return json.dumps({"name": title, "createdAt": time_ms, "updatedAt": time_ms, "state": json.dumps(state)})


def _params(*names: str) -> list[str]:
    return [f"params.`{name}`" for name in names]


def _tags(*names: str) -> list[str]:
    return [f"tags.`{name}`" for name in names]


def _metrics(*names: str) -> list[str]:
    return [f"metrics.`{name}`" for name in names]


def _view(role: Role, columns: list[str], order: str, *, up: bool, **more: Any) -> dict[str, Any]:
    """A table of the runs of one role."""
    shown = {"selectedColumns": columns, "searchFilter": f"tags.role = '{role}'"}
    return shown | {"orderByKey": order, "orderByAsc": up} | more


_CELL_COLUMNS = _params("init", "percent", "replicate") + _metrics(
    *(TRAIN_LOSS, VAL_LOSS, VAL_ACCURACY, BEST_VAL_LOSS, TEST_ACCURACY)
)
_BY_INIT_AND_PERCENT = {
    "aggregateFunction": "average",
    "groupByKeys": [{"mode": "param", "groupByData": name} for name in ("init", "percent")],
}
VIEWS: dict[str, dict[str, tuple[str, dict[str, Any]]]] = {
    TUNING: {
        View.TRIALS: (
            "Trials, the best first",
            _view(
                Role.TRIAL,
                _metrics("val_accuracy", "seconds")
                + _params("recipe.learning_rate", "recipe.optimizer", "recipe.batch_size", "recipe.schedule")
                + _params("spec.channels", "spec.convs_per_block", "spec.kernel_size", "spec.normalisation"),
                "metrics.`val_accuracy`",
                up=False,
            ),
        ),
        View.RETRAINED: (
            "The best, trained again",
            _view(
                Role.RETRAINED,
                _params("replicate") + _metrics(VAL_ACCURACY, TEST_ACCURACY, SECONDS),
                "metrics.`final/val_accuracy`",
                up=False,
            ),
        ),
    },
    TRANSFER: {
        View.SWEEPS: (
            "Sweeps",
            _view(
                Role.SWEEP,
                _tags("model_uri_pinned", "fractions", "inits", "replicates"),
                "attributes.start_time",
                up=False,
            ),
        ),
        View.CELLS: ("Cells by percent", _view(Role.CELL, _CELL_COLUMNS, "params.`percent`", up=True)),
        View.MEANS: (
            "Means by init and percent",
            _view(Role.CELL, _CELL_COLUMNS, "params.`percent`", up=True, groupBy=_BY_INIT_AND_PERCENT),
        ),
    },
}
NOTES = {
    TUNING: (
        "Searches for a CNN on one half of Fashion-MNIST (the source, FMNIST-2). Each run without an indent is a "
        "search. Its child runs are the trials, with epoch curves, and the re-trainings of the best trials. "
        "The winner is in *Model registry* as `cnn2`, alias `best`. Trials are chosen by validation accuracy alone; "
        "only re-trained networks are scored on test images."
    ),
    TRANSFER: (
        "Does a network that was trained on one half of Fashion-MNIST learn the other half (the target, FMNIST-1) "
        "better than one from random weights, and up to how much data? Each run without an indent is a sweep: open it "
        "for the answer, its curves and its report. Its child runs are the cells (init, percent of the target's "
        "training images, replicate) and one run of means per init, whose step is the percent."
    ),
    BENCHMARK: "Trainings of `python -m fmnist_transfer.benchmark`, which measures this machine. They are not results.",
}
