"""The commands as a user calls them, on small synthetic data: what they leave behind, how they resume and stop."""

import dataclasses
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pages
import pytest
import synthetic

import sweeps.transfer
import tuning.search
from fmnist_transfer import identity
from fmnist_transfer.store.links import VIEWS
from fmnist_transfer.store.opening import open_store
from fmnist_transfer.store.registry import load, resolve
from fmnist_transfer.store.roles import NOTE, TRANSFER, TUNING
from fmnist_transfer.store.runs import TAG_LENGTH, Store
from fmnist_transfer.training.fit import Diverged
from sweeps.grid import INITS, N_TUNING
from sweeps.results.ledger import Ledger
from sweeps.training import cells as sweep_cells
from sweeps.training import recipes
from tuning import steps

SMALL = ["--workers", "1", "--device", "cpu"]


class Project:
    """A store and the synthetic data; runs commands in this process."""

    def __init__(self, store_path: Path, data_dir: Path):
        self.path, self.data_dir = store_path, data_dir
        self.store: Store = open_store(str(store_path))

    def arguments(self, *more: str) -> list[str]:
        return ["--tracking-uri", str(self.path), "--data-dir", str(self.data_dir), *SMALL, *more]

    def search(self, *more: str, status: int = 0) -> dict[str, Any]:
        return self.run(tuning.search.command, "--epochs", "2", "--retrain-seeds", "2", *more, status=status)

    def sweep(self, *more: str, status: int = 0) -> dict[str, Any]:
        arguments = ("--model-uri", "models:/cnn2/best", "--epochs", "2", *more)
        return self.run(sweeps.transfer.command, *arguments, status=status)

    def report(self, *more: str, status: int = 0) -> dict[str, Any]:
        command = synthetic.entry_point("sweeps.report").command
        return self._result(command, ["--tracking-uri", str(self.path), *more], status)

    def run(self, command: Any, *more: str, status: int = 0) -> dict[str, Any]:
        return self._result(command, self.arguments(*more), status)

    def _result(self, command: Any, arguments: list[str], status: int) -> dict[str, Any]:
        """Assert the exit status; return what `--json` wrote, nothing if the command did not get so far."""
        file = self.path.parent / "result.json"
        file.unlink(missing_ok=True)
        assert command([*arguments, "--json", str(file)]) == status
        return json.loads(file.read_text()) if file.exists() else {}

    def runs(self, experiment: str, **tags: str) -> list[Any]:
        return self.store.find(experiment, **tags)


@pytest.fixture(scope="module")
def searched(
    _empty_store: Path, data_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    """A store after `tuning.search --trials 5`."""
    path = synthetic.copy_database(_empty_store, tmp_path_factory.mktemp("searched") / "mlflow.db")
    return path, Project(path, data_dir).search("--trials", "5")


@pytest.fixture
def project(searched: tuple[Path, dict[str, Any]], data_dir: Path) -> Project:
    return Project(searched[0], data_dir)


def test_search_leaves_study_trials_and_a_registered_best(
    project: Project, searched: tuple[Path, dict[str, Any]]
) -> None:
    result = searched[1]
    assert set(result) == {
        *("study", "model_uri", "version", "promoted", "best_of_n", "retrained_mean", "retrained_sd"),
        *("test_accuracy", "trial", "n_trials", "n_pruned", "seconds", "stages"),
    }
    expected = {"study": "cnn2", "model_uri": "models:/cnn2/1", "version": 1, "promoted": True, "n_trials": 5}
    assert {key: result[key] for key in expected} == expected
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
    assert len(retrained) == 4 + 2  # each of the best four once, and the best two of them again
    assert {run.info.status for run in retrained} == {"FINISHED"}
    n_complete = sum(run.info.status == "FINISHED" for run in trials)
    expected = project.store.client.get_metric_history(parent.info.run_id, f"expected_best/of_{n_complete}")
    assert [metric.step for metric in expected] == list(range(1, n_complete + 1))
    best = project.store.client.get_metric_history(parent.info.run_id, "best_value")
    assert [metric.step for metric in best] == [1, 2, 3, 4, 5]
    assert best[-1].value == max(run.data.metrics.get("val_accuracy", 0.0) for run in trials)
    version = project.store.client.get_model_version("cnn2", "1")
    assert version.tags["split"] == "01234/56789"
    assert float(version.tags["retrained_mean"]) == result["retrained_mean"]
    assert f"{result['retrained_mean']:.2%}" in version.description


def test_search_again_does_nothing_twice(project: Project) -> None:
    before = len(project.runs(TUNING))
    result = project.search("--trials", "5")
    assert (result["model_uri"], result["promoted"]) == ("models:/cnn2/1", True)
    assert len(project.runs(TUNING)) == before
    assert resolve(project.store, "models:/cnn2/best").pinned == "models:/cnn2/1"


@pytest.mark.parametrize(
    ("flags", "difference"),
    [
        (["--epochs", "3"], "epochs 2 .*3"),
        (["--max-cost", "none"], r"max_cost 1\.1 .*None"),
        (["--seed", "1"], "seed 0 .*1"),
    ],
)
def test_resuming_with_other_settings_is_refused(
    project: Project, flags: list[str], difference: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = len(project.runs(TUNING))
    project.search(*flags, status=2)
    assert re.search(difference, capsys.readouterr().err)
    assert len(project.runs(TUNING)) == before


def test_search_is_topped_up_and_best_moves_only_if_better(
    searched: tuple[Path, dict[str, Any]], data_dir: Path, tmp_path: Path
) -> None:
    """On a copy of the store, for the other tests count on five trials."""
    project = Project(synthetic.copy_store(searched[0].parent, tmp_path), data_dir)
    project.store.client.set_model_version_tag("cnn2", "1", "retrained_mean", "2.0")  # nothing is better than this
    result = project.search("--trials", "7", "--top", "1", "--retrain-seeds", "1")
    assert (result["n_trials"], result["version"], result["promoted"]) == (7, 2, False)
    assert len(project.runs(TUNING, role="trial")) == 7
    assert len(project.runs(TUNING, role="study")) == 1
    assert resolve(project.store, "models:/cnn2/best").pinned == "models:/cnn2/1"
    result = project.search("--trials", "7", "--top", "1", "--retrain-seeds", "1", "--promote")
    assert (result["version"], result["promoted"]) == (2, True)
    assert resolve(project.store, "models:/cnn2/best").pinned == "models:/cnn2/2"


def test_work_of_other_numerics_is_not_reused(
    store_path: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = Project(store_path, data_dir)

    def search(study: str, status: int = 0) -> int | None:
        small = ["--trials", "1", "--epochs", "1", "--top", "1", "--retrain-seeds", "1", "--study-name", study]
        return project.search(*small, status=status).get("version")

    assert search("one") == search("other") == 1  # the same work, whatever it is called
    monkeypatch.setattr(identity, "NUMERICS_VERSION", identity.NUMERICS_VERSION + 1)
    assert search("one", status=2) is None
    assert search("third") == 2


def test_reference_is_registered_under_its_own_name(
    store_path: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = dataclasses.replace(steps.REFERENCE_RECIPE, epochs=1)
    monkeypatch.setattr(steps, "REFERENCE_RECIPE", short)
    project = Project(store_path, data_dir)
    result = project.run(tuning.search.command, "--reference", "--split", "5-9/0-4")
    assert result["model_uri"] == "models:/cnn2-reference-s56789/1"
    assert (result["n_trials"], result["best_of_n"], result["retrained_sd"]) == (0, None, None)


def test_sweep_leaves_exactly_the_expected_runs(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    result = project.sweep("--fractions", "20", "60", "100", "--replicates", "2", "--seed", "1")
    assert set(result) == {
        *("sweep_run_id", "model_uri", "split", "cells", "claims", "missing", "recipes"),
        *("compared_with", "n_replicates", "n_sources", "is_complete", "crossover", "effective_data", "differences"),
        *("inits", "controls", "seconds_per_replicate"),
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
        (data,) = run.inputs.dataset_inputs
        assert "56789" in data.dataset.name
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
    by_replicate = [
        (run, run.data.params["init"], run.data.params["replicate"]) for run in curves if "init" in run.data.params
    ]
    assert {run.info.status for run in curves} == {"FINISHED"}
    assert sorted((init, replicate) for _, init, replicate in by_replicate) == [
        (init, replicate) for init in ("pretrained", "random") for replicate in "01"
    ]
    for run, init, replicate in by_replicate:
        history = project.store.client.get_metric_history(run.info.run_id, "held-out loss")
        of_run = [cell for cell in result["cells"] if (cell["init"], str(cell["replicate"])) == (init, replicate)]
        expected = {cell["percent"]: cell["heldout"]["loss"] for cell in of_run}
        assert {m.step: m.value for m in history if m.step} == expected
    (table,) = (table for name, table in result["differences"].items() if name == "heldout_loss")
    for limit in ("low", "mean", "high"):
        (run,) = (run for run in curves if run.data.params.get("limit") == limit)
        (key,) = run.data.metrics
        history = project.store.client.get_metric_history(run.info.run_id, key)
        assert {m.step: m.value for m in history if m.step} == {at["percent"]: at[limit] for at in table}
    printed = capsys.readouterr().out
    assert printed.count("cannot be told") == 4
    assert "python -m fmnist_transfer.show --tracking-uri" in printed


def check_links(store: Store, markdown: str) -> int:
    """Check that the links and pictures of a description lead somewhere; return their number."""
    for address in pages.addresses(markdown):
        pages.check(store, address)
    return len(pages.addresses(markdown))


def test_the_ui_is_told_what_there_is(project: Project) -> None:
    """Descriptions whose links lead somewhere, views whose columns are filled, and names that say what a run is."""
    swept = project.sweep("--fractions", "20", "100", "--replicates", "2", "--seed", "13")["sweep_run_id"]
    (studied,) = (run.info.run_id for run in project.runs(TUNING, role="study", study="cnn2"))
    client = project.store.client
    model, version = client.get_registered_model("cnn2"), client.get_model_version("cnn2", "1")
    texts = {run_id: client.get_run(run_id).data.tags[NOTE] for run_id in (studied, swept)}
    texts |= {"model": model.description, "version": version.description}
    texts |= {name: client.get_experiment(project.store.experiment(name)).tags[NOTE] for name in (TUNING, TRANSFER)}
    for what, text in texts.items():
        assert 100 < len(text) < TAG_LENGTH, what
        assert check_links(project.store, text) > 0 or what == "model", what
    assert "#/models/cnn2/versions/1" in texts[studied]
    assert texts[swept].count("**cannot be told**") == 4
    assert f"#/experiments/{project.store.experiment(TUNING)}/runs/{studied}" in version.description
    assert f"sweep.{swept}" in version.tags
    (used,) = client.get_run(swept).inputs.model_inputs
    assert used.model_id == resolve(project.store, "models:/cnn2/1").model_id


def test_a_sweep_without_a_pair_shows_no_picture(project: Project) -> None:
    sweep = ["--inits", "pretrained", "--fractions", "20", "--replicates", "1", "--seed", "15"]
    swept = project.sweep(*sweep)["sweep_run_id"]
    text = project.store.client.get_run(swept).data.tags[NOTE]
    assert check_links(project.store, text) == 4  # curves, report, and two tables


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
                assert all(name.strip("`") in getattr(run.data, kind) for run in runs), f"{title}: {column}"
            for key in state.get("groupBy", {}).get("groupByKeys", []):
                assert all(key["groupByData"] in run.data.params for run in runs)


ANY_INIT = f"({'|'.join(INITS)})"
RUN_NAMES = {
    TUNING: r"study [\w.-]+|trial \d{3}|(trial \d{3}|reference|like \w+/\d+) seed \d+",
    TRANSFER: rf"cnn2/\d+ on classes \d+|source r\d+|{ANY_INIT}( \d{{3}}%)? r\d+( lr .+)?|random - pretrained \w+",
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
    run_id = project.sweep("--fractions", "5", "20", "100", "--replicates", "1", "--seed", "13")["sweep_run_id"]
    found = project.store.client.search_runs(
        [project.store.experiment(TRANSFER)], f"tags.parent = '{run_id}'", order_by=["params.percent ASC"]
    )
    cells = [run for run in found if run.data.tags["role"] == "cell" and run.data.tags["init"] == "random"]
    assert [run.data.params["percent"] for run in cells][:2] == ["005", "020"]
    percents = {run.data.tags["percent"] for run in cells}
    assert sorted(percents, key=int) == sorted(percents)


def test_the_suggested_sweep_can_be_run(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    """With source networks of its own, too, of which there must be as many as replicates."""
    small = ["--fractions", "20", "--replicates", "1", "--epochs", "1", "--seed", "14"]
    project.sweep(*small, "--pretrain-replicates", "1")
    (line,) = re.findall(r"python -m sweeps.transfer (.*)", capsys.readouterr().out)
    arguments = shlex.split(line, comments=True)
    file = project.path.parent / "plan.json"
    assert sweeps.transfer.command([*arguments, "--dry-run", "--json", str(file)]) == 0
    plan = json.loads(file.read_text())
    assert (len(plan["cells"]), plan["n_to_run"]) == (16, 14)


def test_a_longer_sweep_reuses_a_shorter_one(project: Project) -> None:
    arguments = ["--seed", "2", "--fractions", "100", "20"]
    short = project.sweep(*arguments, "--replicates", "1")
    long = project.sweep(*arguments, "60", "--replicates", "2")
    assert len(project.runs(TRANSFER, role="cell", parent=long["sweep_run_id"])) == 12
    assert long["sweep_run_id"] == short["sweep_run_id"]
    assert {cell["run_id"] for cell in short["cells"]} <= {cell["run_id"] for cell in long["cells"]}
    curves = {run.info.run_name for run in project.runs(TRANSFER, role="curve", parent=long["sweep_run_id"])}
    assert {f"{init} r{replicate}" for init in ("pretrained", "random") for replicate in (0, 1)} <= curves
    again = project.sweep(*arguments, "--replicates", "1")
    assert again["cells"] == short["cells"]
    parent = project.store.client.get_run(long["sweep_run_id"])
    assert (parent.data.tags["fractions"], parent.data.tags["replicates"]) == ("20 60 100", "2")
    table = Path(parent.info.artifact_uri.removeprefix("file://")) / "results.csv"
    assert len(table.read_text().splitlines()) == 13  # a smaller grid leaves the larger one's table whole


PRECISIONS = (["--precision", "float32"], ["--precision", "bf16"])


def test_other_settings_are_another_sweep(project: Project) -> None:
    arguments = ["--fractions", "20", "--replicates", "1"]
    ids = {
        project.sweep("--seed", "3", *arguments, *more)["sweep_run_id"]
        for more in (
            *([], ["--budget", "steps"], ["--epochs", "1"], ["--stack"], *PRECISIONS),
            *(["--learning-rate", "0.01"], ["--pretrain-replicates", "1"]),
        )
    }
    assert len(ids) == 7  # `auto` is one of the two precisions
    rates = {project.store.client.get_run(run_id).data.params["recipe.learning_rate"] for run_id in ids}
    assert len(rates) == 2
    assert "0.01" in rates


def test_a_stacked_sweep_leaves_the_runs_of_any_other(project: Project) -> None:
    # Rounding errors grow in so short a training; test_stacked compares step by step.
    arguments = ["--seed", "6", "--fractions", "20", "100", "--replicates", "2", "--precision", "float32"]
    alone = project.sweep(*arguments)["cells"]
    result = project.sweep(*arguments, "--stack")
    assert [cell["status"] for cell in result["cells"]] == ["finished"] * 8
    for cell, other in zip(result["cells"], alone, strict=True):
        assert all(cell[key] == other[key] for key in ("percent", "init", "replicate"))
        assert cell["final"]["val_loss"] == pytest.approx(other["final"]["val_loss"], rel=5e-2)
    parent = project.store.client.get_run(result["sweep_run_id"])
    assert parent.data.params["stacked"] == "True"
    assert project.sweep(*arguments, "--stack")["cells"] == result["cells"]


def test_tf32_needs_cuda(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    project.sweep("--precision", "tf32", status=2)
    assert re.search(r"--precision tf32\b.*\bcpu\b.*\bbf16\b", capsys.readouterr().err)


def test_a_dry_run_ends_as_the_sweep_if_no_setting_of_an_init_finished(
    project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def diverge(*arguments: Any, **options: Any) -> Any:
        raise Diverged("training loss is nan at epoch 1, step 3")

    monkeypatch.setattr(sweep_cells, "train_arm", diverge)
    arguments = ["--seed", "8", "--fractions", "100", "--inits", "random", "--replicates", "1", "--recipe", "tuned"]
    for more in ([], ["--dry-run"]):
        assert project.sweep(*arguments, *more, status=1) == {}
    assert capsys.readouterr().err.count("random at 5 %") == 2


def test_every_init_and_an_own_recipe(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """All inits; then each with its own recipe: grid, choice, cells, report. Resumed, nothing is trained anew."""
    monkeypatch.setattr(recipes, "REPLICATES", recipes.REPLICATES[:2])  # half of the 192 cells
    every = ["--inits", *INITS, "pretrained@3", "--fractions", "20", "100", "--replicates", "1", "--seed", "7"]
    result = project.sweep(*every)
    assert {cell["init"] for cell in result["cells"]} == {*INITS, "pretrained@3"}
    assert all(cell["distance"]["all"] > 0 for cell in result["cells"])
    frozen = next(cell for cell in result["cells"] if cell["init"] == "frozen")
    assert frozen["distance"]["fc1"] == 0 < frozen["distance"]["fc3"]
    assert frozen["final"]["val_temperature"] > 0
    tuned = ["--recipe", "tuned", "--fractions", "20", "100", "--replicates", "1", "--seed", "7"]
    result = project.sweep(*tuned)
    assert {len(result["recipes"][init]) for init in ("pretrained", "random")} == {3}
    parent = project.store.client.get_run(result["sweep_run_id"])
    cells = project.runs(TRANSFER, role="cell", parent=parent.info.run_id)
    assert len(cells) == N_TUNING + 4
    chosen = result["recipes"]["random"]["100"]
    final = next(cell for cell in result["cells"] if (cell["init"], cell["percent"]) == ("random", 100))
    assert final["setting"] == chosen
    run = project.store.client.get_run(final["run_id"])
    assert float(run.data.params["recipe.learning_rate"]) == chosen["learning_rate"]
    assert project.sweep(*tuned)["cells"] == result["cells"]
    assert len(project.runs(TRANSFER, role="cell", parent=parent.info.run_id)) == len(cells)
    plan = project.sweep(*tuned, "--dry-run")
    assert plan["n_to_run"] == 0


def test_report_recomputes_everything_from_the_store(
    project: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    percents = ["20", "50", "100"]
    arguments = ["--fractions", *percents, "--judged", *percents, "--replicates", "2", "--seed", "8"]
    swept = project.sweep(*arguments)
    other = project.sweep(*arguments[:-1], "9")
    capsys.readouterr()
    result = project.report("--sweep", swept["sweep_run_id"], "--vs", other["sweep_run_id"])
    assert set(result["claims"]) == {"train_loss", "val_loss", "overfitting", "need"}
    for claim in result["claims"].values():
        assert (claim["verdict"], claim["n_replicates"]) == ("cannot be told", 2)
        assert claim["interval"][0] <= claim["effect"] <= claim["interval"][1]
    assert result["claims"] == swept["claims"]
    assert [point["percent"] for point in result["differences"]["val_loss"]] == [20, 50, 100]
    assert len(result["effective_data"]) == 3
    assert capsys.readouterr().out.count("cannot be told") == 4
    files = {file.path for file in project.store.client.list_artifacts(swept["sweep_run_id"], "report")}
    assert {"report/report.html", "report/report.md", "report/report.csv", "report/answer.png"} <= files
    folder = Path(project.store.client.download_artifacts(swept["sweep_run_id"], "report", str(tmp_path)))
    page = (folder / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 6  # the report has six figures
    assert [one["run_id"] for one in result["compared_with"]] == [other["sweep_run_id"]]
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert swept["sweep_run_id"] in page
    assert other["sweep_run_id"] in page
    table = (folder / "report.csv").read_text().splitlines()
    cells = (folder / "cells.csv").read_text().splitlines()
    assert {line.split(",")[-1] for line in cells[1:]} == {cell["run_id"] for cell in swept["cells"]}
    value = next(line for line in table if line.startswith("val_loss,20,")).split(",")[
        table[0].split(",").index("mean")
    ]
    assert float(value) == pytest.approx(result["differences"]["val_loss"][0]["mean"], rel=1e-5)


def test_report_of_a_sweep_that_was_stopped(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Ledger, "end", stop)
    project.sweep("--fractions", "20", "--replicates", "2", "--seed", "10", status=130)
    monkeypatch.undo()
    result = project.report()
    assert {claim["n_replicates"] for claim in result["claims"].values()} == {0}
    assert len(result["missing"]) == 4


def test_report_says_what_there_is(
    project: Project, store_path: Path, data_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    project.report("--sweep", "abc", status=2)
    assert re.search(r"\babc\b", capsys.readouterr().err)
    study = project.runs(TUNING, role="study")[0].info.run_id
    project.report("--sweep", study, status=2)
    assert study in capsys.readouterr().err
    swept = project.sweep("--fractions", "20", "--replicates", "1", "--seed", "12")
    project.report("--vs", swept["sweep_run_id"], status=2)  # which is the latest
    assert swept["sweep_run_id"] in capsys.readouterr().err
    Project(store_path, data_dir).report(status=1)


@pytest.fixture
def no_sources(project: Project) -> None:
    """Delete the source networks of other tests' sweeps, which would be used."""
    for run in project.runs(TRANSFER, role="source"):
        project.store.client.delete_run(run.info.run_id)


@pytest.mark.usefixtures("no_sources")
def test_each_replicate_from_a_source_network_of_its_own(project: Project) -> None:
    arguments = ["--fractions", "20", "--replicates", "2", "--seed", "11"]
    own = [*arguments, "--pretrain-replicates", "2"]
    result = project.sweep(*own)
    shared = project.sweep(*arguments)
    assert shared["sweep_run_id"] != result["sweep_run_id"]
    assert project.runs(TRANSFER, role="source", parent=result["sweep_run_id"]) == []  # the search trained them
    digests = {
        (cell["init"], cell["replicate"], name): project.store.client.get_run(cell["run_id"]).data.tags[
            "weights_digest"
        ]
        for name, swept in (("own", result), ("shared", shared))
        for cell in swept["cells"]
    }
    for replicate in (0, 1):
        assert digests["random", replicate, "own"] == digests["random", replicate, "shared"]
        own_digest, shared_digest = (digests["pretrained", replicate, name] for name in ("own", "shared"))
        assert (own_digest == shared_digest) == (replicate == 0)  # the search's first re-training is registered
    three = ["--replicates", "3", "--pretrain-replicates", "3"]
    longer = project.sweep("--fractions", "20", "--seed", "11", *three)
    assert longer["sweep_run_id"] == result["sweep_run_id"]
    (source,) = project.runs(TRANSFER, role="source", parent=result["sweep_run_id"])
    assert source.data.params["replicate"] == "3"  # of the re-trainings, which count from 1
    assert len(longer["cells"]) == 6
    other = project.sweep("--fractions", "20", "--seed", "19", *three)
    assert project.runs(TRANSFER, role="source", parent=other["sweep_run_id"]) == []  # the first sweep's are used


@pytest.mark.usefixtures("no_sources")
def test_source_networks_are_trained_together_with_stack(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["--fractions", "20", "--replicates", "4", "--seed", "16", "--stack", "--pretrain-replicates"]
    groups: list[int] = []
    fit_stacked = sweep_cells.fit_stacked

    def spy(stacked: Any, *more: Any, **options: Any) -> Any:
        groups.append(len(stacked))
        return fit_stacked(stacked, *more, **options)

    monkeypatch.setattr(sweep_cells, "fit_stacked", spy)
    run_id = project.sweep(*arguments, "4")["sweep_run_id"]
    assert groups == [4, 4]  # the source networks, since the search's are not stacked; then the replicates
    sources = project.runs(TRANSFER, role="source", parent=run_id)
    assert {run.info.run_name for run in sources} == {f"source r{i}" for i in range(4)}
    assert {run.info.status for run in sources} == {"FINISHED"}
    alone = project.sweep(*arguments[:4], "--seed", "17", "--pretrain-replicates", "4")["sweep_run_id"]
    stacked, single = (
        {run.info.run_name: run.data.metrics["final/val_loss"] for run in runs}
        for runs in (sources, project.runs(TRANSFER, role="source", parent=alone))
    )
    assert single.keys() == {"source r2", "source r3"}  # beside the search's
    assert single == pytest.approx({name: stacked[name] for name in single}, rel=3e-2)  # whatever the sweep's seed


@pytest.mark.usefixtures("no_sources")
def test_a_source_network_that_diverges_fails_its_replicate_alone(
    project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--fractions", "20", "--replicates", "3", "--seed", "18", "--pretrain-replicates", "3"]
    train_arm = sweep_cells.train_arm

    def diverge(draw: Any, train: Any, half: Any, recipe: Any, streams: Any, **options: Any) -> Any:
        if streams.stage == "source":
            raise Diverged("training loss is nan at epoch 1, step 3")
        return train_arm(draw, train, half, recipe, streams, **options)

    monkeypatch.setattr(sweep_cells, "train_arm", diverge)
    result = project.sweep(*arguments, status=1)
    statuses = {(cell["replicate"], cell["status"]) for cell in result["cells"]}
    assert statuses == {(0, "finished"), (1, "finished"), (2, "failed")}  # the search trained the first two
    monkeypatch.undo()
    capsys.readouterr()
    assert project.sweep(*arguments, "--dry-run")["n_to_run"] == 2
    assert "1 source network" in capsys.readouterr().out
    assert {cell["status"] for cell in project.sweep(*arguments)["cells"]} == {"finished"}


def test_failed_tuning_cells_count_for_the_exit_status(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipes, "REPLICATES", recipes.REPLICATES[:2])
    monkeypatch.setattr(recipes, "PERCENTS", (100,))
    monkeypatch.setattr(recipes, "RATES", (1.0, 10.0))
    train_arm = sweep_cells.train_arm
    registered = load(project.store, resolve(project.store, "models:/cnn2/best")).recipe.learning_rate

    def diverge(draw: Any, train: Any, half: Any, recipe: Any, streams: Any, **options: Any) -> Any:
        if recipe.learning_rate > registered:
            raise Diverged("training loss is nan at epoch 1, step 3")
        return train_arm(draw, train, half, recipe, streams, **options)

    monkeypatch.setattr(sweep_cells, "train_arm", diverge)
    tuned = ["--recipe", "tuned", "--inits", "random", "--fractions", "100", "--replicates", "1", "--seed", "19"]
    for _ in range(2):  # diverged cells are not trained again
        assert [cell["status"] for cell in project.sweep(*tuned, status=1)["cells"]] == ["finished"]


def test_a_registered_configuration_on_another_half(
    searched: tuple[Path, dict[str, Any]], data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    project = Project(synthetic.copy_store(searched[0].parent, tmp_path), data_dir)
    like = ["--split", "even/odd", "--like", "models:/cnn2/best", "--retrain-seeds", "2"]
    result = project.run(tuning.search.command, *like)
    assert (result["model_uri"], result["n_trials"]) == ("models:/cnn2-s02468/1", 0)
    assert resolve(project.store, "models:/cnn2-s02468/best").pinned == "models:/cnn2-s02468/1"
    one, other = (load(project.store, resolve(project.store, f"models:/{name}/1")) for name in ("cnn2", "cnn2-s02468"))
    assert (one.spec, one.recipe) == (other.spec, other.recipe)
    assert str(other.split) == "02468/13579"
    again = project.run(tuning.search.command, *like)
    assert again["version"] == 1
    assert len(project.runs(TUNING, role="study", study="cnn2-s02468-like")) == 1
    sweep = ["--model-uri", "models:/cnn2-s02468/best", "--fractions", "20", "--replicates", "1", "--epochs", "1"]
    swept = project.run(sweeps.transfer.command, *sweep)
    assert swept["split"] == "02468/13579"
    capsys.readouterr()
    project.run(tuning.search.command, "--like", "models:/cnn2/best", status=2)
    assert "--split" in capsys.readouterr().err
    project.run(tuning.search.command, "--like", "models:/cnn2/best", "--trials", "3", status=2)
    assert re.search("--like.*--trials", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--fractions", "0"], "--fractions 0.*1 to 100"),
        (["--fractions", "5", "5"], r"--fractions.*\b5\b"),
        (["--fractions"], "--fractions"),
        (["--inits", "random", "random"], r"--inits.*\brandom\b"),
        (["--replicates", "0"], "--replicates 0.*1 to 1000"),
        (["--judged", "5", "7"], r"--judged 7.*--fractions"),
        (["--judged", "5", "5"], r"--judged.*\b5\b"),
        (["--curve-replicates", "0"], r"--curve-replicates 0.*\b1\b"),
        (["--learning-rate", "0"], r"--learning-rate 0.*\b0\b"),
        (["--epochs", "-1"], r"--epochs -1.*\b1\b"),
        (["--workers", "many"], r"--workers many.*\bauto\b"),
        (["--fractions", "1"], r"--fractions 1\b.*\b50\b.*\b2\b"),  # of 50 images a class none is left; 2 % would do
        (["--device", "abacus"], r"--device abacus.*\bcpu\b"),
        (["--inits", "pretrained@50"], r"--inits pretrained@50.*\b\d layers"),
        (["--inits", "pretrained@0"], "--inits pretrained@0.*pretrained@K"),
        (["--stack", "--inits", "frozen"], "--stack.*--inits frozen"),
        (["--stack", "--recipe", "tuned"], "--stack.*--recipe"),
        (["--pretrain-replicates", "2", "--replicates", "3"], r"--pretrain-replicates 2.*\b3\b"),
    ],
)
def test_bad_flags_of_the_sweep(
    project: Project, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = len(project.runs(TRANSFER))
    project.sweep(*arguments, status=2)
    assert re.search(message, capsys.readouterr().err)
    assert len(project.runs(TRANSFER)) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--trials", "0"], r"--trials 0.*\b1\b"),
        (["--max-cost", "0.1"], r"--max-cost 0\.1\b.*\b0\.42\b.*none"),
        (["--max-cost", "0.1", "--dry-run"], r"--max-cost 0\.1\b"),
        (["--max-cost", "nan"], r"--max-cost nan.*\b0\b"),
        (["--split", "0-4/0-4"], "--split 0-4/0-4.*SOURCE/TARGET"),
        (["--timeout", "-3"], r"--timeout -3\b.*\b0\b"),
        (["--study-name", "it's"], "--study-name it's"),
        (["--reference"], "--reference.*--epochs, --retrain-seeds"),
    ],
)
def test_bad_flags_of_the_search(
    project: Project, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    project.search(*arguments, status=2)
    assert re.search(message, capsys.readouterr().err)
