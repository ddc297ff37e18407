"""Save, register, resolve, load; and what is refused."""

import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import requests
import safetensors.torch
import synthetic
import torch
from faults.proving import edit_spec, put_weights

from fmnist_transfer.data.split import DEFAULT_SPLIT
from fmnist_transfer.errors import ModelError
from fmnist_transfer.network.cnn2 import CNN2, CNN2Spec, fresh_network
from fmnist_transfer.network.weights import weights_digest
from fmnist_transfer.seeding import Streams
from fmnist_transfer.store import registry
from fmnist_transfer.store.model_format import FILES_FOLDER, SPEC_FILE, WEIGHTS_FILE, TrainedModel
from fmnist_transfer.store.opening import open_store
from fmnist_transfer.store.places import file_path
from fmnist_transfer.store.registry import (
    ModelVersion,
    as_default,
    best_version,
    is_gone,
    load,
    register,
    resolve,
    set_best,
)
from fmnist_transfer.store.roles import TUNING
from fmnist_transfer.store.runs import Store
from fmnist_transfer.training.recipe import Recipe

FACTS = {"study": "a", "test_accuracy": 0.95, "data_sha256": "0123456789abcdef0"}
SPEC = CNN2Spec((4, 8), fc1=16, fc2=8, fc_dropout=0.5)


@pytest.fixture(scope="module")
def trained() -> TrainedModel:
    network = fresh_network(SPEC, Streams(0))
    network.train()(torch.randn(16, 1, 28, 28))  # moves the batch-norm buffers
    return TrainedModel(SPEC, Recipe(epochs=3), DEFAULT_SPLIT, dict(network.state_dict()), FACTS)


@pytest.fixture(scope="module")
def registered(_empty_store: Path, tmp_path_factory: pytest.TempPathFactory, trained: TrainedModel) -> Store:
    """A store with two versions of `cnn2`, the first of which is `best`."""
    path = synthetic.copy_database(_empty_store, tmp_path_factory.mktemp("registered") / "mlflow.db")
    store = open_store(str(path))
    for number in (1, 2):
        run_id = store.start(TUNING, f"run {number}")
        version = register(store, run_id, "cnn2", trained, tags={"number": number}, description="A model.")
        store.end(run_id)
        if number == 1:
            set_best(store, version)
    return store


def location(store: Store) -> Path:
    return Path(resolve(store, "models:/cnn2/2").location.removeprefix("file://"))


def test_round_trip_is_bit_identical(registered: Store, trained: TrainedModel) -> None:
    model = load(registered, resolve(registered, "models:/cnn2/best"))
    assert (model.spec, model.recipe, model.split) == (SPEC, Recipe(epochs=3), DEFAULT_SPLIT)
    assert model.facts == FACTS
    assert weights_digest(model.state) == weights_digest(trained.state)


def test_scores_are_metrics_of_the_logged_model(registered: Store) -> None:
    experiment_id, model = registered.experiment(TUNING), resolve(registered, "models:/cnn2/1")
    good = registered.client.search_logged_models([experiment_id], "metrics.test_accuracy > 0.94")
    assert model.model_id in {each.model_id for each in good}
    (metric,) = registered.client.get_logged_model(model.model_id).metrics
    assert (metric.key, metric.value) == ("test_accuracy", 0.95)
    assert (metric.dataset_name, metric.dataset_digest) == ("Fashion-MNIST classes 01234", "0123456789abcdef")
    assert not registered.client.search_logged_models([experiment_id], "metrics.test_accuracy > 0.96")


def test_latest_is_the_newest_version(registered: Store) -> None:
    assert resolve(registered, "models:/cnn2/latest").pinned == "models:/cnn2/2"


@pytest.mark.parametrize("uri", ["models:/cnn2/best", "models:/cnn2@best", "models:/cnn2/1"])
def test_best_is_pinned_to_its_version(registered: Store, uri: str) -> None:
    reference = resolve(registered, uri)
    assert reference.pinned == "models:/cnn2/1"


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("models:/cnn2/worst", "'worst'.*'cnn2'.*1, 2.*best -> 1.*python -m tuning.search"),
        ("models:/cnn3/best", "'best'.*'cnn3'.*cnn2.*python -m tuning.search"),
        ("models:/cnn2/7", "'7'.*'cnn2'"),
        ("models:/m-nothing", "models:/m-nothing"),
        ("runs:/nothing/cnn2", "runs:/nothing/cnn2"),
        ("models:/cnn2", "models:/cnn2 .*models:/NAME/ALIAS"),
        ("models://cnn2/best", "models://cnn2/best .*models:/NAME/ALIAS"),
        ("cnn2", "cnn2 .*models:/NAME/ALIAS"),
    ],
)
def test_what_cannot_be_found_is_told_with_what_there_is(registered: Store, uri: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        resolve(registered, uri)


def test_version_has_description_tags_and_alias(registered: Store) -> None:
    version = best_version(registered, "cnn2")
    assert version is not None
    assert (str(version.version), version.description, version.tags) == ("1", "A model.", {"number": "1"})
    assert best_version(registered, "nothing") is None


def test_metadata_is_readable_through_the_uri(registered: Store) -> None:
    with as_default(registered.uri):
        metadata = mlflow.models.get_model_info("models:/cnn2@best").metadata
    assert metadata["spec"]["channels"] == [4, 8]
    assert metadata["recipe"]["epochs"] == 3
    assert metadata["source_classes"] == [0, 1, 2, 3, 4]


def test_mlflow_serves_it_without_dropout(registered: Store, trained: TrainedModel) -> None:
    network = CNN2(SPEC)
    network.load_state_dict(trained.state)
    images = np.random.default_rng(0).standard_normal((3, 1, 28, 28)).astype(np.float32)
    with as_default(registered.uri):
        served = mlflow.pyfunc.load_model("models:/cnn2/1")
    one, other = served.predict(images), served.predict(images)
    assert np.array_equal(one, other)
    with torch.inference_mode():
        assert np.allclose(one, network.eval()(torch.from_numpy(images)).numpy(), atol=1e-5)


def test_loading_unpickles_and_imports_nothing(
    registered: Store, trained: TrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("unpickled")

    for module, name in ((pickle, "load"), (pickle, "loads"), (torch, "load"), (torch.export, "load")):
        monkeypatch.setattr(module, name, refuse)
    monkeypatch.setattr(mlflow.pytorch, "load_model", refuse)
    assert weights_digest(load(registered, resolve(registered, "models:/cnn2/1")).state) == weights_digest(
        trained.state
    )


def test_no_pickle_lies_in_the_store(registered: Store) -> None:
    files = [path.name for path in location(registered).rglob("*") if path.is_file()]
    assert "model.pt2" in files
    assert {"weights.safetensors", "cnn2.json"} <= set(files)
    assert not [name for name in files if name.endswith((".pkl", ".pth", ".pickle"))]


def edit_weights(folder: Path, state: dict[str, torch.Tensor]) -> None:
    put_weights(folder, safetensors.torch.save(state))


def edit_bias(folder: Path, state: dict[str, torch.Tensor], act: Callable[[torch.Tensor], torch.Tensor]) -> None:
    edit_weights(folder, state | {"fc2.bias": act(state["fc2.bias"])})


DAMAGE = {  # what is done to a model, and what the message names
    "weights file altered": (lambda folder, state: (folder / WEIGHTS_FILE).write_bytes(b"x"), "[0-9a-f]{64}"),
    "weights file gone": (lambda folder, state: (folder / WEIGHTS_FILE).unlink(), WEIGHTS_FILE),
    "weights file huge": (lambda folder, state: os.truncate(folder / WEIGHTS_FILE, 2**26 + 1), "67108864"),
    "spec is no JSON": (lambda folder, state: (folder / SPEC_FILE).write_text("{"), "JSONDecodeError"),
    "spec is a list": (lambda folder, state: (folder / SPEC_FILE).write_text("[]"), "TypeError"),
    "spec of another format": (lambda folder, state: edit_spec(folder, format=2), r"format 2\b"),
    "no split": (lambda folder, state: edit_spec(folder, source_classes=None), "TypeError"),
    "unknown field": (lambda folder, state: edit_spec(folder, spec={"layers": 3}), "'layers'"),
    "network too large": (lambda folder, state: edit_spec(folder, spec=SPEC.to_dict() | {"fc1": 10**6}), WEIGHTS_FILE),
    "another trunk": (
        lambda folder, state: edit_spec(folder, spec=SPEC.to_dict() | {"fc1": 17}),
        r"- fc1.weight \(17, 392\) torch.float32(?s:.*)\+ fc1.weight \(16, 392\)",
    ),
    "tensor missing": (
        lambda folder, state: edit_weights(folder, {k: v for k, v in state.items() if k != "fc2.bias"}),
        r"- fc2.bias \(8,\)",
    ),
    "half precision": (
        lambda folder, state: edit_bias(folder, state, torch.Tensor.half),
        r"\+ fc2.bias \(8,\) torch.float16",
    ),
    "NaN": (lambda folder, state: edit_bias(folder, state, lambda bias: bias * float("nan")), "fc2.bias.*NaN"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_model_is_refused(registered: Store, trained: TrainedModel, damage: str, tmp_path: Path) -> None:
    reference = resolve(registered, "models:/cnn2/2")
    shutil.copytree(location(registered), tmp_path / "model")
    act, message = DAMAGE[damage]
    act(tmp_path / "model" / FILES_FOLDER, {name: t.clone().contiguous() for name, t in trained.state.items()})
    with pytest.raises(ModelError, match=message):
        load(registered, reference._replace(location=(tmp_path / "model").as_uri()))


def test_another_packages_model_is_refused(store: Store, tmp_path: Path) -> None:
    run_id = store.start(TUNING, "foreign")
    with as_default(store.uri):
        mlflow.pytorch.log_model(
            torch.nn.Linear(2, 2),
            name="foreign",
            run_id=run_id,
            input_example=np.zeros((2, 2), np.float32),
            serialization_format="pt2",
            pip_requirements=["torch"],
            registered_model_name="cnn2",
        )
    with pytest.raises(ModelError, match=f"{FILES_FOLDER}/{SPEC_FILE}"):
        load(store, resolve(store, "models:/cnn2/1"))


def test_only_what_was_deleted_for_certain_is_gone(
    store: Store, trained: TrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not a model that cannot be reached now, nor one of a folder of another machine, nor another package's."""

    def a_version() -> tuple[ModelVersion, Path]:
        run_id = store.start(TUNING, "run")
        version = register(store, run_id, "cnn2", trained, tags={"winner_key": "k"}, description="")
        return version, file_path(resolve(store, f"models:/cnn2/{version.version}").location)

    version, folder = a_version()
    assert not is_gone(store, version)
    with monkeypatch.context() as patch:
        patch.setattr(registry, "get_artifact_repository", raise_forbidden)
        assert not is_gone(store, version)
    experiment = folder.parents[2]
    experiment.rename(tmp_path / "elsewhere")
    assert not is_gone(store, version)
    (tmp_path / "elsewhere").rename(experiment)
    (folder / FILES_FOLDER / "weights.safetensors").unlink()
    assert is_gone(store, version)
    store.client.create_registered_model("plain")
    assert not is_gone(store, store.client.create_model_version("plain", folder.as_uri()))
    another, folder = a_version()
    store.client.delete_logged_model(registry.model_id_of(another))
    assert is_gone(store, another)


def raise_forbidden(*_: object) -> list[str]:
    raise requests.HTTPError("403 Client Error: Forbidden")  # which is an OSError


def test_the_registered_model_says_how_it_is_transferred(registered: Store) -> None:
    assert "--model-uri models:/cnn2/best" in registered.client.get_registered_model("cnn2").description


def test_a_model_that_was_logged_before_the_store_went_away_is_logged_anew(
    store: Store, trained: TrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, models = mlflow.pytorch.log_model, []

    def lose_the_first(*arguments: Any, **options: Any) -> None:
        models.append(options["model_id"])
        log(*arguments, **options)
        if len(models) == 1:
            raise requests.ConnectionError("Connection reset")

    monkeypatch.setattr(mlflow.pytorch, "log_model", lose_the_first)
    version = register(store, store.start(TUNING, "run"), "cnn2", trained, tags={}, description="")
    assert len(set(models)) == 2
    assert [model.model_id for model in store.client.search_logged_models([store.experiment(TUNING)])] == models[1:]
    assert resolve(store, f"models:/cnn2/{version.version}").model_id == models[1]
