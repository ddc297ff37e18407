"""The commands as a user calls them, on small synthetic data: what they leave behind, how they resume and stop."""

import dataclasses
import json
import os
import re
import shlex
import shutil
import signal
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pages
import pytest
import synthetic

import sweeps.transfer
import tuning.search
from fmnist_transfer import identity
from fmnist_transfer.seeding import Streams
from fmnist_transfer.store.links import VIEWS
from fmnist_transfer.store.lock import locked
from fmnist_transfer.store.opening import open_store
from fmnist_transfer.store.places import file_path
from fmnist_transfer.store.registry import load, resolve
from fmnist_transfer.store.roles import NOTE, TRANSFER, TUNING
from fmnist_transfer.store.runs import TAG_LENGTH, Store
from fmnist_transfer.training.fit import Diverged
from sweeps.grid import INITS
from sweeps.report import write
from sweeps.results.ledger import Ledger
from sweeps.training import cells as sweep_cells
from tuning import without_search
from tuning.study import task
from tuning.winner import plan as retraining

SMALL = ["--workers", "1", "--device", "cpu"]


class Project:
    """A store and the synthetic data; runs commands in this process."""

    def __init__(self, store_path: Path, data_dir: Path):
        self.path, self.data_dir = store_path, data_dir
        self.store: Store = open_store(str(store_path))

    def arguments(self, *more: str) -> list[str]:
        return ["--tracking-uri", str(self.path), "--data-dir", str(self.data_dir), *SMALL, *more]

    def search(self, *more: str) -> tuple[int, dict[str, Any]]:
        return self._run(tuning.search.command, "--epochs", "2", "--retrain-seeds", "2", *more)

    def sweep(self, *more: str) -> tuple[int, dict[str, Any]]:
        return self._run(sweeps.transfer.command, "--model-uri", "models:/cnn2/best", "--epochs", "2", *more)

    def report(self, *more: str) -> tuple[int, dict[str, Any]]:
        command = synthetic.entry_point("sweeps.report").command
        return self._result(command, ["--tracking-uri", str(self.path), *more])

    def _run(self, command: Any, *more: str) -> tuple[int, dict[str, Any]]:
        return self._result(command, self.arguments(*more))

    def _result(self, command: Any, arguments: list[str]) -> tuple[int, dict[str, Any]]:
        """The exit status, and what `--json` says; nothing if the command did not get so far."""
        file = self.path.parent / "result.json"
        file.unlink(missing_ok=True)
        status = command([*arguments, "--json", str(file)])
        return status, json.loads(file.read_text()) if file.exists() else {}

    def runs(self, experiment: str, **tags: str) -> list[Any]:
        return self.store.find(experiment, **tags)


@pytest.fixture(scope="module")
def searched(
    _empty_store: Path, data_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    """A store after `tuning.search --trials 5`."""
    path = synthetic.copy_database(_empty_store, tmp_path_factory.mktemp("searched") / "mlflow.db")
    status, result = Project(path, data_dir).search("--trials", "5")
    assert status == 0
    return path, result


@pytest.fixture
def project(searched: tuple[Path, dict[str, Any]], data_dir: Path) -> Project:
    return Project(searched[0], data_dir)


def test_search_leaves_study_trials_and_a_registered_best(
    project: Project, searched: tuple[Path, dict[str, Any]]
) -> None:
    result = searched[1]
    assert set(result) == {
        *("study", "model_uri", "version", "promoted", "best_of_n", "retrained_mean", "retrained_sd"),
        *("test_accuracy", "n_trials", "n_pruned", "seconds", "stages"),
    }
    assert (result["study"], result["model_uri"], result["version"], result["promoted"]) == (
        *("cnn2", "models:/cnn2/1", 1),
        True,
    )
    assert result["n_trials"] == 5
    assert 0 <= result["test_accuracy"] <= 1
    (parent,) = project.runs(TUNING, role="study")
    assert parent.info.status == "FINISHED"
    assert parent.data.params["split"] == "01234/56789"
    assert parent.data.metrics["retrained_mean"] == result["retrained_mean"]
    trials = project.runs(TUNING, role="trial", parent=parent.info.run_id)
    assert sorted(int(run.data.tags["trial"]) for run in trials) == [0, 1, 2, 3, 4]
    states = {"COMPLETE": "FINISHED", "PRUNED": "KILLED"}
    for run in trials:
        assert run.info.status == states[run.data.tags["optuna.state"]]
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert {"spec.channels", "recipe.learning_rate", "split", "seed", "device"} <= set(run.data.params)
        assert run.info.end_time - run.info.start_time == pytest.approx(1_000 * run.data.metrics["seconds"], abs=2)
        curve = project.store.client.get_metric_history(run.info.run_id, "val/accuracy")
        assert [metric.step for metric in curve] in ([1], [1, 2])
    retrained = project.runs(TUNING, role="retrained")
    assert len(retrained) == 4
    assert {run.info.status for run in retrained} == {"FINISHED"}
    figures = {file.path for file in project.store.client.list_artifacts(parent.info.run_id, "figures")}
    assert figures == {
        f"figures/{name}.png" for name in ("history", "importances", "slices", "expected_best", "inline")
    }
    version = project.store.client.get_model_version("cnn2", "1")
    assert version.tags["split"] == "01234/56789"
    assert float(version.tags["retrained_mean"]) == result["retrained_mean"]
    assert "Validation accuracy" in version.description


def test_search_again_does_nothing_twice(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    before = len(project.runs(TUNING))
    status, result = project.search("--trials", "5")
    assert (status, result["model_uri"], result["promoted"]) == (0, "models:/cnn2/1", True)
    assert len(project.runs(TUNING)) == before
    assert "best already points to cnn2 version 1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "difference"),
    [
        (["--epochs", "3"], "epochs 2 (now 3)"),
        (["--max-mflops", "none"], "max_mflops 4.0 (now None)"),
        (["--seed", "1"], "seed 0 (now 1)"),
    ],
)
def test_resuming_with_other_settings_is_refused(
    project: Project, flags: list[str], difference: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status, _ = project.search(*flags)
    assert status == 2
    assert difference in (message := capsys.readouterr().err)
    assert "Its trials are kept" in message


def test_search_is_topped_up_and_best_moves_only_if_better(
    searched: tuple[Path, dict[str, Any]], data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a copy of the store, for the other tests count on five trials."""
    project = Project(synthetic.copy_store(searched[0].parent, tmp_path), data_dir)
    project.store.client.set_model_version_tag("cnn2", "1", "retrained_mean", "2.0")  # nothing is better than this
    status, result = project.search("--trials", "7", "--top", "1", "--retrain-seeds", "1")
    assert (status, result["n_trials"], result["version"], result["promoted"]) == (0, 7, 2, False)
    assert len(project.runs(TUNING, role="trial")) == 7
    assert len(project.runs(TUNING, role="study")) == 1
    assert "best stays at version 1, cnn2 version 2 is registered" in capsys.readouterr().out
    assert resolve(project.store, "models:/cnn2/best").pinned == "models:/cnn2/1"
    status, result = project.search("--trials", "7", "--top", "1", "--retrain-seeds", "1", "--promote")
    assert (status, result["version"], result["promoted"]) == (0, 2, True)
    assert resolve(project.store, "models:/cnn2/best").pinned == "models:/cnn2/2"


def test_work_of_other_numerics_is_not_reused(
    store_path: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = Project(store_path, data_dir)

    def search(study: str) -> tuple[int, int | None]:
        small = ["--trials", "1", "--epochs", "1", "--top", "1", "--retrain-seeds", "1", "--study-name", study]
        status, result = project.search(*small)
        return status, result.get("version")

    assert [search("one"), search("other")] == [(0, 1), (0, 1)]  # the same work, whatever it is called
    monkeypatch.setattr(identity, "NUMERICS_VERSION", identity.NUMERICS_VERSION + 1)
    assert search("one") == (2, None)
    assert search("third") == (0, 2)


def test_a_re_training_that_failed_is_tried_again(
    store_path: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = Project(store_path, data_dir)
    tried: list[int] = []
    train = retraining.train_on_half

    def fail(spec: Any, half: Any, recipe: Any, streams: Streams, *arguments: Any, **options: Any) -> Any:
        tried.append(streams.replicate)
        if streams.replicate == 2:
            raise MemoryError("too little")
        return train(spec, half, recipe, streams, *arguments, **options)

    search = ["--trials", "2", "--epochs", "1", "--top", "1", "--retrain-seeds", "2"]
    with monkeypatch.context() as patched:
        patched.setattr(retraining, "train_on_half", fail)
        status, first = project.search(*search)
        assert (status, first["retrained_sd"], tried) == (1, None, [1, 2])
        status, again = project.search(*search)
        assert (status, again["version"], tried) == (1, first["version"], [1, 2, 2])
    status, result = project.search(*search)
    assert (status, result["version"]) == (0, first["version"] + 1)
    runs = project.runs(TUNING, role="retrained")
    assert sorted((run.data.params["replicate"], run.info.status) for run in runs) == [
        *(("1", "FINISHED"), ("2", "FAILED"), ("2", "FAILED"), ("2", "FINISHED")),
    ]
    accuracies = [run.data.metrics["final/val_accuracy"] for run in runs if run.info.status == "FINISHED"]
    version = project.store.client.get_model_version("cnn2", str(result["version"]))
    assert float(version.tags["retrained_mean"]) == pytest.approx(statistics.mean(accuracies))
    assert version.tags["n_seeds"] == "2"


def test_reference_is_registered_under_its_own_name(
    store_path: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = dataclasses.replace(without_search.REFERENCE_RECIPE, epochs=1)
    monkeypatch.setattr(without_search, "REFERENCE_RECIPE", short)
    project = Project(store_path, data_dir)
    status, result = project._run(tuning.search.command, "--reference", "--split", "5-9/0-4")
    assert (status, result["model_uri"]) == (0, "models:/cnn2-reference-s56789/1")
    assert (result["n_trials"], result["best_of_n"], result["retrained_sd"]) == (0, None, None)


def test_sweep_leaves_exactly_the_expected_runs(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    status, result = project.sweep("--fractions", "20", "60", "100", "--replicates", "2", "--seed", "1")
    assert status == 0
    assert set(result) == {
        *("sweep_run_id", "model_uri", "split", "cells", "claims", "missing", "recipes"),
        *("compared_with", "n_replicates", "crossover_percent", "crossover", "effective_data", "band", "family_p"),
        *("inits", "controls"),
        *("seconds", "stages", "first_step_seconds"),
    }
    assert set(result["stages"]) == {"start", "resume check", "cells", "figures and curves"}
    assert (result["model_uri"], result["split"]) == ("models:/cnn2/1", "01234/56789")
    parent = project.store.client.get_run(result["sweep_run_id"])
    assert parent.info.status == "FINISHED"
    assert parent.data.tags["model_uri"] == "models:/cnn2/best"
    assert parent.data.tags["model_uri_pinned"] == "models:/cnn2/1"
    assert parent.data.params["recipe.epochs"] == "2"
    cells = project.runs(TRANSFER, role="cell", parent=parent.info.run_id)
    assert len({run.data.tags["cell_key"] for run in cells}) == len(cells)
    assert [key for key in parent.data.params if key.startswith("cell")] == []  # nothing per cell on the parent
    assert len(cells) == 12
    for run in cells:
        assert run.info.status == "FINISHED"
        assert {"percent", "init", "replicate"} <= set(run.data.params) & set(run.data.tags)
        assert int(run.data.params["n_train"]) == 250 * int(run.data.params["percent"]) // 100
        assert [m.step for m in project.store.client.get_metric_history(run.info.run_id, "val/loss")] == [1, 2]
        assert {"final/train_loss", "final/val_loss", "best/val_loss", "test/accuracy"} <= set(run.data.metrics)
        assert [data.dataset.name for data in run.inputs.dataset_inputs] == ["Fashion-MNIST classes 56789"]
    by_id = {cell["run_id"]: cell for cell in result["cells"]}
    for run in cells:
        assert by_id[run.info.run_id]["final"]["val_loss"] == run.data.metrics["final/val_loss"]
        assert by_id[run.info.run_id]["test"]["accuracy"] == run.data.metrics["test/accuracy"]
        assert 0 < run.data.metrics["cost/train_seconds"] < run.data.metrics["cost/seconds"]
    artifacts = {file.path for file in project.store.client.list_artifacts(parent.info.run_id)}
    assert artifacts == {"figures", "results.csv", "report"}
    figures = {file.path for file in project.store.client.list_artifacts(parent.info.run_id, "figures")}
    names = ("training_loss", "validation_loss", "validation_accuracy", "overview")
    assert figures == {f"figures/{name}.png" for name in names}
    curves = project.runs(TRANSFER, role="curve", parent=parent.info.run_id)
    assert sorted(run.info.run_name for run in curves) == ["pretrained", "random"]
    for run in curves:
        history = project.store.client.get_metric_history(run.info.run_id, "curve/val_loss")
        means = {
            percent: sum(
                cell["final"]["val_loss"]
                for cell in result["cells"]
                if (cell["percent"], cell["init"]) == (percent, run.info.run_name)
            )
            / 2
            for percent in (20, 60, 100)
        }
        assert {metric.step: metric.value for metric in history} == pytest.approx(means)
    printed = capsys.readouterr().out
    assert printed.count(": cannot be told (") == 4
    assert "python -m fmnist_transfer.show --tracking-uri" in printed


def test_the_ui_is_told_what_there_is(project: Project) -> None:
    """Descriptions whose links lead somewhere, views whose columns are filled, and names that say what a run is."""
    swept = project.sweep("--fractions", "20", "100", "--replicates", "2", "--seed", "13")[1]["sweep_run_id"]
    (studied,) = (run.info.run_id for run in project.runs(TUNING, role="study", study="cnn2"))
    client = project.store.client
    model, version = client.get_registered_model("cnn2"), client.get_model_version("cnn2", "1")
    texts = {run_id: client.get_run(run_id).data.tags[NOTE] for run_id in (studied, swept)}
    texts |= {"model": model.description, "version": version.description}
    texts |= {name: client.get_experiment(project.store.experiment(name)).tags[NOTE] for name in (TUNING, TRANSFER)}
    for what, text in texts.items():
        assert 100 < len(text) < TAG_LENGTH, what
        assert pages.addresses(text), what
        for address in pages.addresses(text):
            pages.check(project.store, address)
    assert "5 trials of up to 2 epochs. Registered: [cnn2 version 1]" in texts[studied]
    assert texts[swept].count(": **cannot be told**") == 8  # in the first lines, and again with the reasons
    assert "Not finished" not in texts[studied] + texts[swept]
    best = project.runs(TUNING, role="trial", trial=version.tags["trial"], parent=studied)[0].info
    assert f"[{best.run_name}](#/experiments/{best.experiment_id}/runs/{best.run_id})" in version.description
    assert f"run `{swept}`" in version.description
    (used,) = client.get_run(swept).inputs.model_inputs
    assert used.model_id == resolve(project.store, "models:/cnn2/1").model_id


def test_a_search_too_small_for_figures_shows_none(store_path: Path, data_dir: Path) -> None:
    project = Project(store_path, data_dir)
    assert project.search("--trials", "2", "--top", "1")[0] == 0
    (study,) = project.runs(TUNING, role="study")
    assert "get-artifact" not in study.data.tags[NOTE]
    for address in pages.addresses(study.data.tags[NOTE]):
        pages.check(project.store, address)


def test_a_sweep_without_a_pair_shows_no_picture(project: Project) -> None:
    sweep = ["--inits", "pretrained", "--fractions", "20", "--replicates", "1", "--seed", "15"]
    swept = project.sweep(*sweep)[1]["sweep_run_id"]
    text = project.store.client.get_run(swept).data.tags[NOTE]
    assert len(pages.addresses(text)) == 4  # curves, report, and two tables
    for address in pages.addresses(text):
        pages.check(project.store, address)


def test_every_column_of_a_view_is_filled(project: Project) -> None:
    project.sweep("--fractions", "20", "--replicates", "1", "--seed", "1")
    for experiment, views in VIEWS.items():
        for title, state in ((view.title, view.state) for view in views.values()):
            role = re.fullmatch("tags.role = '(.+)'", state["searchFilter"])
            assert role, title
            runs = [run for run in project.runs(experiment, role=role[1]) if run.info.status == "FINISHED"]
            assert runs, title
            for column in state["selectedColumns"]:
                kind, _, name = column.partition(".")
                there = [name.strip("`") in getattr(run.data, kind) for run in runs]
                assert all(there), f"{title}: {column}"
            for key in state.get("groupBy", {}).get("groupByKeys", []):
                assert all(key["groupByData"] in run.data.params for run in runs)


ANY_INIT = f"({'|'.join(INITS)})"
RUN_NAMES = {
    TUNING: r"study [\w.-]+|trial \d{3}|(trial \d{3}|reference|like \w+/\d+) seed \d+",
    TRANSFER: rf"cnn2/\d+ on classes \d+|source r\d+|{ANY_INIT}|{ANY_INIT} \d{{3}}% r\d+( lr .+)?",
}


def test_no_run_has_a_name_that_mlflow_drew(project: Project) -> None:
    project.sweep("--fractions", "20", "--replicates", "1", "--seed", "1")
    for experiment, pattern in RUN_NAMES.items():
        runs = project.runs(experiment)
        assert runs
        names = {str(run.info.run_name) for run in runs}
        assert {name for name in names if not re.fullmatch(pattern, name)} == set()


def test_percent_sorts_as_a_number(project: Project) -> None:
    """MLflow sorts params as text."""
    run_id = project.sweep("--fractions", "5", "20", "100", "--replicates", "1", "--seed", "13")[1]["sweep_run_id"]
    found = project.store.client.search_runs(
        [project.store.experiment(TRANSFER)], f"tags.parent = '{run_id}'", order_by=["params.percent ASC"]
    )
    cells = [run for run in found if run.data.tags["role"] == "cell" and run.data.tags["init"] == "random"]
    assert [run.data.params["percent"] for run in cells][:2] == ["005", "020"]
    assert sorted({run.data.tags["percent"] for run in cells}, key=int) == sorted(
        {run.data.tags["percent"] for run in cells}
    )


def test_the_suggested_sweep_can_be_run(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    """With source networks of its own, too, of which there must be as many as replicates."""
    arguments = [
        "--fractions",
        "20",
        "--replicates",
        "1",
        "--epochs",
        "1",
        "--seed",
        "14",
        "--pretrain-replicates",
        "1",
    ]
    assert project.sweep(*arguments)[0] == 0
    line = re.search(r"^  go on +python -m sweeps.transfer (.*)", capsys.readouterr().out, re.MULTILINE)
    assert line
    assert line[1].endswith("  # extends this sweep")
    assert sweeps.transfer.command([*shlex.split(line[1], comments=True), "--dry-run"]) == 0
    assert "2 of 12 cells would be left as they are, 10 would run" in capsys.readouterr().out


def test_a_longer_sweep_reuses_a_shorter_one(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--seed", "2", "--fractions", "100", "20"]
    _, short = project.sweep(*arguments, "--replicates", "1")
    assert "to go" not in capsys.readouterr().out
    _, long = project.sweep(*arguments, "60", "--replicates", "2")
    assert "4 cells are there already, 8 to go" in capsys.readouterr().out
    assert long["sweep_run_id"] == short["sweep_run_id"]
    assert {cell["run_id"] for cell in short["cells"]} <= {cell["run_id"] for cell in long["cells"]}
    assert len(project.runs(TRANSFER, role="curve", parent=long["sweep_run_id"])) == 2
    _, again = project.sweep(*arguments, "--replicates", "1")
    assert again["cells"] == short["cells"]
    parent = project.store.client.get_run(long["sweep_run_id"])
    assert (parent.data.tags["fractions"], parent.data.tags["replicates"]) == ("20 60 100", "2")
    table = Path(parent.info.artifact_uri.removeprefix("file://")) / "results.csv"
    assert len(table.read_text().splitlines()) == 13  # a smaller grid leaves the larger one's table whole


def test_other_settings_are_another_sweep(project: Project) -> None:
    arguments = ["--fractions", "20", "--replicates", "1"]
    ids = {
        project.sweep("--seed", "3", *arguments, *more)[1]["sweep_run_id"]
        for more in ([], ["--budget", "steps"], ["--epochs", "1"], ["--precision", "bf16"], ["--stack"])
    }
    assert len(ids) == 5


def test_a_stacked_sweep_leaves_the_runs_of_any_other(project: Project) -> None:
    arguments = ["--seed", "6", "--fractions", "20", "100", "--replicates", "2"]
    alone = project.sweep(*arguments)[1]["cells"]
    status, result = project.sweep(*arguments, "--stack")
    assert status == 0
    assert [cell["status"] for cell in result["cells"]] == ["finished"] * 8
    for cell, other in zip(result["cells"], alone, strict=True):
        assert (cell["percent"], cell["init"], cell["replicate"]) == (
            *(other["percent"], other["init"], other["replicate"]),
        )
        assert cell["final"]["val_loss"] == pytest.approx(other["final"]["val_loss"], rel=1e-2)
    parent = project.store.client.get_run(result["sweep_run_id"])
    assert parent.data.params["stacked"] == "True"
    assert project.sweep(*arguments, "--stack")[1]["cells"] == result["cells"]


def test_tf32_needs_cuda(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    assert project.sweep("--precision", "tf32") == (2, {})
    assert "error: --precision tf32: cpu has none; use float32 or bf16" in capsys.readouterr().err


def test_a_diverged_cell_is_failed_absent_and_not_redone(
    project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train_arm = sweep_cells.train_arm

    def diverge(draw: Any, train: Any, *arguments: Any, **options: Any) -> Any:
        if len(train) == 50:
            raise Diverged("training loss is nan at epoch 1, step 3")
        return train_arm(draw, train, *arguments, **options)

    monkeypatch.setattr(sweep_cells, "train_arm", diverge)
    arguments = ["--seed", "4", "--fractions", "20", "100", "--replicates", "1"]
    status, result = project.sweep(*arguments)
    assert status == 1
    by_percent = {cell["percent"]: cell for cell in result["cells"]}
    assert (by_percent[20]["status"], by_percent[20]["final"]) == ("failed", {})
    assert by_percent[100]["status"] == "finished"
    run = project.store.client.get_run(by_percent[20]["run_id"])
    assert (run.info.status, run.data.tags["reason"]) == ("FAILED", "Diverged: training loss is nan at epoch 1, step 3")
    assert "pretrained 020% r0 failed: Diverged" in capsys.readouterr().out
    described = project.store.client.get_run(result["sweep_run_id"]).data.tags[NOTE]
    assert "**2 of 4 cells are missing.**" in described
    monkeypatch.undo()
    status, again = project.sweep(*arguments)
    assert (status, again["cells"]) == (1, result["cells"])


def test_a_cell_that_failed_otherwise_is_run_again(
    project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:

    def fail(*arguments: Any, **options: Any) -> Any:
        raise MemoryError("too little")

    arguments = ["--seed", "5", "--fractions", "20", "--inits", "random", "--replicates", "1"]
    monkeypatch.setattr(sweep_cells, "train_arm", fail)
    status, result = project.sweep(*arguments)
    assert (status, [cell["status"] for cell in result["cells"]]) == (1, ["failed"])
    assert "1 of 1 cells are missing: random 020% r0 (failed)" in capsys.readouterr().out
    monkeypatch.undo()
    status, again = project.sweep(*arguments)
    assert (status, [cell["status"] for cell in again["cells"]]) == (0, ["finished"])
    runs = project.runs(TRANSFER, role="cell", parent=again["sweep_run_id"])
    assert sorted(run.info.status for run in runs) == ["FAILED", "FINISHED"]


def test_every_init_and_an_own_recipe(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    """All seven inits; then each with its own recipe: grid, choice, cells, report. Resumed, nothing is trained anew."""
    every = ["--inits", *INITS, "--fractions", "20", "100", "--replicates", "1", "--seed", "7"]
    status, result = project.sweep(*every)
    assert status == 0
    assert {cell["init"] for cell in result["cells"]} == set(INITS)
    assert all(cell["distance"]["all"] > 0 for cell in result["cells"])
    frozen = next(cell for cell in result["cells"] if cell["init"] == "frozen")
    assert frozen["distance"]["fc1"] == 0 < frozen["distance"]["fc3"]
    assert 0 <= frozen["final"]["val_ece"] <= 1
    tuned = ["--recipe", "tuned", "--fractions", "20", "100", "--replicates", "1", "--seed", "7"]
    status, result = project.sweep(*tuned)
    assert status == 0
    assert {len(result["recipes"][init]) for init in ("pretrained", "random")} == {3}
    parent = project.store.client.get_run(result["sweep_run_id"])
    cells = project.runs(TRANSFER, role="cell", parent=parent.info.run_id)
    assert len(cells) == 2 * 9 * 3 * 2 + 4  # grid: inits x settings x percents x replicates
    chosen = result["recipes"]["random"]["100"]
    final = next(cell for cell in result["cells"] if (cell["init"], cell["percent"]) == ("random", 100))
    assert final["setting"] == chosen
    run = project.store.client.get_run(final["run_id"])
    assert float(run.data.params["recipe.learning_rate"]) == chosen["learning_rate"]
    capsys.readouterr()
    again = project.sweep(*tuned)[1]
    assert again["cells"] == result["cells"]
    assert len(project.runs(TRANSFER, role="cell", parent=parent.info.run_id)) == len(cells)
    assert "learning rate" in capsys.readouterr().out
    status, plan = project.sweep(*tuned, "--dry-run")
    assert (status, plan["n_to_run"]) == (0, 0)


def test_report_recomputes_everything_from_the_store(
    project: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--fractions", "20", "50", "100", "--replicates", "2", "--seed", "8"]
    _, swept = project.sweep(*arguments)
    _, other = project.sweep(*arguments[:-1], "9")
    capsys.readouterr()
    status, result = project.report("--sweep", swept["sweep_run_id"], "--vs", other["sweep_run_id"])
    assert status == 0
    assert set(result["claims"]) == {"train_loss", "val_loss", "overfitting", "need"}
    for claim in result["claims"].values():
        assert (claim["verdict"], claim["n_replicates"]) == ("cannot be told", 2)
        assert claim["interval"][0] <= claim["effect"] <= claim["interval"][1]
    assert result["claims"] == swept["claims"]
    assert [point["percent"] for point in result["band"]["val_loss"]] == [20, 50, 100]
    assert len(result["effective_data"]) == 3
    assert "cannot be told (2 complete replicates, and 6 are the floor" in capsys.readouterr().out
    files = {file.path for file in project.store.client.list_artifacts(swept["sweep_run_id"], "report")}
    assert {"report/report.html", "report/report.md", "report/report.csv", "report/losses.png"} <= files
    folder = Path(project.store.client.download_artifacts(swept["sweep_run_id"], "report", str(tmp_path)))
    page = (folder / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 6
    assert [one["run_id"] for one in result["compared_with"]] == [other["sweep_run_id"]]
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert swept["sweep_run_id"] in page
    assert other["sweep_run_id"] in page
    table = (folder / "report.csv").read_text().splitlines()
    assert table[0] == "quantity,of,percent,value,low,high,p,n_replicates,remark"
    cells = (folder / "cells.csv").read_text().splitlines()
    assert {line.split(",")[-1] for line in cells[1:]} == {cell["run_id"] for cell in swept["cells"]}
    value = next(line for line in table if line.startswith("difference val_loss,random - pretrained,20,")).split(",")[3]
    assert float(value) == pytest.approx(result["band"]["val_loss"][0]["mean"], rel=1e-5)


def test_report_of_a_sweep_that_was_stopped(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Ledger, "finish", stop)
    assert project.sweep("--fractions", "20", "--replicates", "2", "--seed", "10")[0] == 130
    monkeypatch.undo()
    status, result = project.report()
    assert status == 0
    assert {claim["reason"] for claim in result["claims"].values()} == {
        "no complete replicate of pretrained and random"
    }
    assert len(result["missing"]) == 4


@pytest.fixture
def deaf() -> Iterator[None]:
    """A signal that a command does not see to does nothing to the tests."""
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("deaf")
@pytest.mark.parametrize(("number", "exit_status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_report_that_is_stopped_leaves_no_page(
    project: Project, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, exit_status: int
) -> None:
    swept = project.sweep("--fractions", "20", "--replicates", "1", "--seed", "16")[1]["sweep_run_id"]
    folder = file_path(project.store.client.get_run(swept).info.artifact_uri) / "report"
    shutil.rmtree(folder)
    find = write.find

    def find_and_stop(*arguments: Any) -> Any:
        os.kill(os.getpid(), number)
        return find(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(write, "find", find_and_stop)
        assert project.report("--sweep", swept) == (exit_status, {})
    assert not (folder / "report.html").exists()
    assert project.report("--sweep", swept)[0] == 0
    assert (folder / "report.html").exists()


def test_report_says_what_there_is(
    project: Project, store_path: Path, data_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, _ = project.report("--sweep", "abc")
    assert (status, "error: no run abc in this store" in capsys.readouterr().err) == (2, True)
    study = project.runs(TUNING, role="study")[0].info.run_id
    status, _ = project.report("--sweep", study)
    assert (status, "is no sweep" in capsys.readouterr().err) == (2, True)
    _, swept = project.sweep("--fractions", "20", "--replicates", "1", "--seed", "12")
    status, _ = project.report("--vs", swept["sweep_run_id"])  # which is the latest
    assert (status, "is given twice" in capsys.readouterr().err) == (2, True)
    status, _ = Project(store_path, data_dir).report()
    assert (status, "there is no sweep in this store" in capsys.readouterr().err) == (1, True)


def test_each_replicate_from_a_source_network_of_its_own(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--fractions", "20", "--replicates", "2", "--seed", "11"]
    own = [*arguments, "--pretrain-replicates", "2"]
    status, result = project.sweep(*own)
    assert status == 0
    _, shared = project.sweep(*arguments)
    assert shared["sweep_run_id"] != result["sweep_run_id"]
    sources = project.runs(TRANSFER, role="source", parent=result["sweep_run_id"])
    assert sorted(run.data.params["replicate"] for run in sources) == ["0", "1"]
    assert len({run.data.tags["weights_digest"] for run in sources}) == 2
    digests = {
        (cell["init"], cell["replicate"], which): project.store.client.get_run(cell["run_id"]).data.tags[
            "weights_digest"
        ]
        for which, one in (("own", result), ("shared", shared))
        for cell in one["cells"]
    }
    for replicate in (0, 1):
        assert digests["random", replicate, "own"] == digests["random", replicate, "shared"]
        assert digests["pretrained", replicate, "own"] != digests["pretrained", replicate, "shared"]
    capsys.readouterr()
    _, longer = project.sweep(*arguments[:2], "--replicates", "3", "--seed", "11", "--pretrain-replicates", "3")
    assert longer["sweep_run_id"] == result["sweep_run_id"]
    assert "2 of 3 are there" in capsys.readouterr().out
    assert len(longer["cells"]) == 6


def test_a_registered_configuration_on_another_half(
    searched: tuple[Path, dict[str, Any]], data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    project = Project(synthetic.copy_store(searched[0].parent, tmp_path), data_dir)
    like = ["--split", "even/odd", "--like", "models:/cnn2/best", "--retrain-seeds", "2"]
    status, result = project._run(tuning.search.command, *like)
    assert (status, result["model_uri"], result["n_trials"]) == (0, "models:/cnn2-s02468/1", 0)
    assert resolve(project.store, "models:/cnn2-s02468/best").pinned == "models:/cnn2-s02468/1"
    one, other = (load(project.store, resolve(project.store, f"models:/{name}/1")) for name in ("cnn2", "cnn2-s02468"))
    assert (one.spec, one.recipe) == (other.spec, other.recipe)
    assert str(other.split) == "02468/13579"
    status, again = project._run(tuning.search.command, *like)
    assert (status, again["version"]) == (0, 1)
    assert len(project.runs(TUNING, role="study", study="cnn2-s02468-like")) == 1
    sweep = ["--model-uri", "models:/cnn2-s02468/best", "--fractions", "20", "--replicates", "1", "--epochs", "1"]
    status, swept = project._run(sweeps.transfer.command, *sweep)
    assert (status, swept["split"]) == (0, "02468/13579")
    capsys.readouterr()
    assert project._run(tuning.search.command, "--like", "models:/cnn2/best")[0] == 2
    assert "give another half with --split" in capsys.readouterr().err
    assert project._run(tuning.search.command, "--like", "models:/cnn2/best", "--trials", "3")[0] == 2
    assert "--like trains one fixed network by one fixed recipe: leave out --trials" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--fractions", "0"], "--fractions 0: must be 1 to 100"),
        (["--fractions", "5", "5"], "--fractions: 5 is given twice"),
        (["--fractions"], "--fractions: give at least one value"),
        (["--inits", "random", "random"], "--inits: random is given twice"),
        (["--replicates", "0"], "--replicates 0: must be 1 to 1000"),
        (["--epochs", "-1"], "--epochs -1: must be 1 or more"),
        (["--workers", "many"], "--workers many: must be auto or a number"),
        (["--fractions", "1"], "leaves no image per class of 50; use 2 or more"),
        (["--device", "abacus"], "--device abacus: use auto, cpu"),
        (["--inits", "lp-ft", "--epochs", "1"], "lp-ft trains the classifier first"),
        (["--stack", "--inits", "frozen"], "leave it out with --inits frozen"),
        (["--stack", "--recipe", "tuned"], "--stack trains the cells of a fraction by one recipe"),
        (
            ["--pretrain-replicates", "2", "--replicates", "3"],
            "each of the 3 replicates needs a source network of its own",
        ),
    ],
)
def test_bad_flags_of_the_sweep(
    project: Project, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = len(project.runs(TRANSFER))
    status, _ = project.sweep(*arguments)
    assert (status, message in capsys.readouterr().err) == (2, True)
    assert len(project.runs(TRANSFER)) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--trials", "0"], "--trials 0: must be 1 or more"),
        (["--max-mflops", "1"], "--max-mflops 1.0: the search space needs 3.54 or more, or none"),
        (["--max-mflops", "nan"], "--max-mflops nan: must be 0 or more"),
        (["--split", "0-4/0-4"], "--split 0-4/0-4: write SOURCE/TARGET"),
        (["--timeout", "-3"], "--timeout -3.0: must be 0 or more"),
        (["--study-name", "it's"], "--study-name it's: use letters, digits"),
        (
            ["--reference"],
            "--reference trains one fixed network by one fixed recipe: leave out --epochs, --retrain-seeds",
        ),
    ],
)
def test_bad_flags_of_the_search(
    project: Project, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status, _ = project.search(*arguments)
    assert (status, message in capsys.readouterr().err) == (2, True)


@pytest.mark.parametrize("flag", ["--fractions", "--inits", "--nonsense"])
def test_what_the_parser_refuses_exits_with_2(project: Project, flag: str) -> None:
    with pytest.raises(SystemExit) as caught:
        project.sweep(flag, "1.5")
    assert caught.value.code == 2


def test_unknown_model_is_told_with_what_there_is(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    status, _ = project._run(sweeps.transfer.command, "--model-uri", "models:/cnn2/worst")
    assert status == 3
    assert re.search(r"error: no alias 'worst' of model 'cnn2' .*aliases best -> 1", capsys.readouterr().err)


def test_altered_data_is_refused_before_any_run(
    store_path: Path, data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(data_dir, tmp_path / "data")
    (tmp_path / "data/FashionMNIST/raw/train-labels-idx1-ubyte").write_bytes(b"short")
    project = Project(store_path, tmp_path / "data")
    status, _ = project.search("--trials", "1")
    assert status == 3
    assert "train-labels-idx1-ubyte: expected 608 bytes, found 5" in capsys.readouterr().err
    assert project.runs(TUNING) == []


def test_a_second_driver_of_the_same_study_is_refused(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    with locked(f"sqlite:///{project.path.parent / 'optuna.db'}", "study", "study-cnn2"):
        status, _ = project.search("--trials", "5")
    assert status == 5
    assert f"host {os.uname().nodename}, pid {os.getpid()}" in capsys.readouterr().err


def test_a_trial_that_raises_fails_and_is_tried_again(
    store_path: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    project = Project(store_path, data_dir)
    fit = task.fit
    n_fits = 0

    def fail(*arguments: Any, **options: Any) -> Any:
        nonlocal n_fits
        n_fits += 1
        if n_fits == 2:
            raise ValueError("a bug")
        return fit(*arguments, **options)

    monkeypatch.setattr(task, "fit", fail)
    search = ["--trials", "3", "--top", "1", "--retrain-seeds", "1"]
    status, result = project.search(*search, "--debug")
    assert (status, result["n_trials"]) == (1, 3)
    assert "Traceback" in capsys.readouterr().out
    (failed,) = project.runs(TUNING, role="trial", trial="1")
    assert (failed.info.status, failed.data.tags["reason"]) == ("FAILED", "ValueError: a bug")
    status, again = project.search(*search)
    assert (status, again["n_trials"], n_fits) == (0, 3, 4)
    (retried,) = project.runs(TUNING, role="trial", trial="3")
    own = {key for key in failed.data.params if key.startswith(("spec.", "recipe."))}
    assert {key: retried.data.params[key] for key in own} == {key: failed.data.params[key] for key in own}


def test_a_dry_run_makes_nothing(data_dir: Path, tmp_path: Path) -> None:
    folder = tmp_path / "nothing here"
    where = ["--tracking-uri", str(folder / "mlflow.db"), "--data-dir", str(tmp_path / "no data"), "--dry-run"]
    for like in ([], ["--reference"]):
        assert tuning.search.command([*where, *like]) == 0
    assert tuning.search.command([*where, "--like", "models:/cnn2/best", "--split", "even/odd"]) == 4
    assert sweeps.transfer.command([*where, "--model-uri", "models:/cnn2/best"]) == 4
    assert not folder.exists()
    assert not (tmp_path / "no data").exists()
