"""Register, resolve and alias CNN2 models of MLflow's registry, which serves a `pt2` program beside our own files."""

import contextlib
import re
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import torch
from mlflow.entities import LoggedModelInput, Metric
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import infer_signature
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from fmnist_transfer.data.split import digits
from fmnist_transfer.errors import ModelError
from fmnist_transfer.network.cnn2 import CNN2, IMAGE_SIZE
from fmnist_transfer.store.model_format import FILES_FOLDER, WEIGHTS_FILE, PinnedModel, TrainedModel, load, write_files
from fmnist_transfer.store.places import file_path
from fmnist_transfer.store.retry import reason
from fmnist_transfer.store.roles import settings_params
from fmnist_transfer.store.runs import Store, already_there, data_name
from fmnist_transfer.terminal.output import masked, warn

__all__ = ["BEST", "ModelVersion", "PinnedModel", "load"]
BEST = "best"
SWEEP_TAG = "sweep."  # + run id: tag of a version; its value is the sweep's name


def register(
    store: Store, run_id: str, name: str, model: TrainedModel, *, tags: dict[str, Any], description: str
) -> ModelVersion:
    """Log `model` to the run and register it as the next version of `name`; `set_best` moves the alias.

    Its scores, the fractional numbers in `model.facts`, become metrics of the logged model on its source half.
    """
    network = CNN2(model.spec).to(memory_format=torch.contiguous_format)  # torch.export warns about others
    network.load_state_dict(model.state)
    network.eval()  # a module exported in training mode would always apply its dropout
    images = np.zeros((2, 1, IMAGE_SIZE, IMAGE_SIZE), np.float32)
    params = settings_params(model.spec, model.recipe) | {"split": model.split}
    experiment_id = store.client.get_run(run_id).info.experiment_id

    def log_model() -> str:
        registered = {model_id_of(version) for version in versions_of(store, name)}
        made = store.client.search_logged_models([experiment_id], f"source_run_id = '{run_id}' AND name = '{name}'")
        for half_made in {model.model_id for model in made} - registered:  # by a killed command, or an earlier try
            store.client.delete_logged_model(half_made)
        # MLflow's log_model alone would log to the experiment `Default`.
        model_id = str(store.once.create_logged_model(experiment_id, name, run_id, params=params).model_id)
        mlflow.pytorch.log_model(
            network,
            name=name,
            model_id=model_id,
            run_id=run_id,
            signature=infer_signature(images, np.zeros((2, model.spec.n_classes), np.float32)),
            input_example=images,
            serialization_format="pt2",
            pip_requirements=[f"mlflow=={mlflow.__version__}", f"torch=={torch.__version__.split('+')[0]}", "numpy"],
            extra_files=[str(file) for file in files],
            metadata=content,
        )
        return model_id

    def create_version() -> ModelVersion:
        if lost := [version for version in versions_of(store, name) if model_id_of(version) == model_id]:
            return lost[0]  # only the response was
        source = f"models:/{model_id}"
        return store.once.create_model_version(name, source, run_id, tags, None, description, model_id=model_id)

    about = (
        f"CNN2, trained on Fashion-MNIST classes {digits(model.split.source)}. Alias `{BEST}` points to the version "
        "whose configuration has the highest validation accuracy when it is trained again with fresh seeds. Transfer "
        f"it to classes {digits(model.split.target)}: `python -m sweeps.transfer --model-uri models:/{name}/{BEST}`."
    )
    with tempfile.TemporaryDirectory() as folder, as_default(store.uri):
        files, content = write_files(model, Path(folder))
        model_id = store.retry.call(log_model)
        own = {"model_id": model_id, "run_id": run_id, "dataset_name": data_name(model.split.source)}
        own["dataset_digest"] = model.facts.get("data_sha256", "")[:16]
        scores = {key: value for key, value in model.facts.items() if isinstance(value, float)}
        now = int(time.time() * 1_000)
        store.client.log_batch(run_id, [Metric(key, value, now, 0, **own) for key, value in scores.items()])
        with already_there():
            store.client.create_registered_model(name, description=about)
        return store.retry.call(create_version)


@contextlib.contextmanager
def as_default(uri: str) -> Iterator[None]:
    """Make the store MLflow's default one within the block: its `log_model` and registry take no other."""
    before = mlflow.get_tracking_uri() if mlflow.is_tracking_uri_set() else None
    mlflow.set_tracking_uri(uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(before)  # type: ignore[arg-type]


def model_id_of(version: ModelVersion) -> str:
    """Id of the version's logged model. Versions found by a search lack it, but have it in their source."""
    return str(version.model_id or str(version.source).removeprefix("models:/"))


def versions_of(store: Store, name: str) -> list[ModelVersion]:
    return list(store.client.search_model_versions(f"name = '{name}'"))


def best_version(store: Store, name: str) -> ModelVersion | None:
    models = store.client.search_registered_models(f"name = '{name}'")
    return store.client.get_model_version_by_alias(name, BEST) if models and BEST in models[0].aliases else None


def set_best(store: Store, version: ModelVersion) -> None:
    store.client.set_registered_model_alias(version.name, BEST, version.version)


def is_gone(store: Store, version: ModelVersion) -> bool:
    """Return whether the model of a version that a search registered, or its weights, were deleted for certain."""
    if "winner_key" not in version.tags:
        return False
    try:
        location = str(store.client.get_logged_model(model_id_of(version)).artifact_location)
        files = store.retry.call(get_artifact_repository(location, store.uri).list_artifacts, FILES_FOLDER)
    except MlflowException as error:
        return error.error_code == "RESOURCE_DOES_NOT_EXIST"
    except OSError:
        return False
    is_there, folder = f"{FILES_FOLDER}/{WEIGHTS_FILE}" in [file.path for file in files], file_path(location)
    # A folder EXPERIMENT/models/MODEL/artifacts of another machine cannot be seen here.
    return not is_there and (folder is None or folder.parents[2].exists())


def resolve(store: Store, uri: str) -> PinnedModel:
    """Pin the version that `models:/NAME/VERSION`, `/ALIAS`, `@ALIAS` or `/latest` names. Raises ModelError."""
    match = re.fullmatch(r"models:/([^/@]+)[/@]([^/]+)", uri)
    if match is None:
        raise ModelError(f"{uri} is no model URI: write models:/NAME/ALIAS or models:/NAME/VERSION. {_known(store)}")
    name, last = match.groups()
    try:
        versions = {str(version.version): version for version in versions_of(store, name)}
        aliases = store.client.get_registered_model(name).aliases if versions else {}
        if last == "latest":  # as in MLflow itself
            aliases["latest"] = max(versions, key=int, default="")
        number = str(aliases.get(last, last))
        if number not in versions:
            kind, remedy = ("version", "") if last.isdecimal() else ("alias", "; run python -m tuning.search first")
            raise ModelError(f"no {kind} {last!r} of model {name!r} in {masked(store.uri)}. {_known(store)}{remedy}")
        model_id = model_id_of(versions[number])
        location = store.client.get_logged_model(model_id).artifact_location
    except MlflowException as error:
        text = f"cannot find {uri} in {masked(store.uri)}: {error.message}. {_known(store)}"
        raise ModelError(f"{text}; if it was deleted, rerun the search that registered it") from error
    return PinnedModel(name, number, location, model_id)


def _known(store: Store) -> str:
    models = []
    for model in store.client.search_registered_models():
        versions = ", ".join(sorted((str(version.version) for version in versions_of(store, model.name)), key=int))
        aliases = ", ".join(f"{alias} -> {number}" for alias, number in model.aliases.items())
        models.append(f"{model.name} (versions {versions or 'none'}; aliases {aliases or 'none'})")
    return f"Known: {'; '.join(models) or 'no model'}"


def note_sweep(store: Store, model: PinnedModel, run_id: str, name: str) -> None:
    """Log the model as an input of the sweep's run, and name the sweep in a tag of the version."""
    store.client.log_inputs(run_id, models=[LoggedModelInput(model.model_id)])
    try:
        store.client.set_model_version_tag(model.name, model.version, f"{SWEEP_TAG}{run_id}", name)
    except MlflowException as error:  # for example, this user may only read the model, which suffices for a sweep
        warn(f"cannot name this sweep in a tag of {model.pinned}: {reason(error)}. The sweep goes on")
