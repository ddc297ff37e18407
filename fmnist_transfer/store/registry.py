"""Register, resolve and alias CNN2 models of MLflow's registry.

MLflow serves the logged `pt2` program; this package loads the files `weights.safetensors` and `cnn2.json` beside it.
"""

import contextlib
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import mlflow
import numpy as np
import torch
from mlflow.entities import LoggedModel, LoggedModelInput
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import infer_signature
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from fmnist_transfer.data.split import digits
from fmnist_transfer.errors import ModelError
from fmnist_transfer.network.cnn2 import CNN2, IMAGE_SIZE
from fmnist_transfer.store.links import experiment_page, run_page
from fmnist_transfer.store.model_format import FILES_FOLDER, WEIGHTS_FILE, PinnedModel, TrainedModel, load, write_files
from fmnist_transfer.store.places import file_path
from fmnist_transfer.store.retry import reason
from fmnist_transfer.store.roles import TRANSFER, TUNING, settings_params
from fmnist_transfer.store.runs import Store, already_there
from fmnist_transfer.terminal.output import masked, warn

__all__ = ["BEST", "ModelVersion", "PinnedModel", "load"]
BEST = "best"
SWEEP_TAG = "sweep."  # + run id: tag of a version; its value is the sweep's name
DESCRIPTION_LENGTH = 5_000  # characters, the limit of MLflow's registry
SWEEPS_HEAD = "\n\nSweeps that start from it:\n"
SWEEPS_LINE = re.compile(r"\n- \[.*\]\(#/experiments/\S+\), run `\w+`")


def register(
    store: Store, run_id: str, name: str, model: TrainedModel, *, tags: dict[str, Any], description: str
) -> ModelVersion:
    """Log `model` to the run and register it as the next version of `name`; `set_best` moves the alias."""
    network = CNN2(model.spec).to(memory_format=torch.contiguous_format)  # torch.export warns about others
    network.load_state_dict(model.state)
    network.eval()  # a module exported in training mode would always apply its dropout
    images = np.zeros((2, 1, IMAGE_SIZE, IMAGE_SIZE), np.float32)
    params = _texts(settings_params(model.spec, model.recipe) | {"split": model.split})
    experiment_id = store.client.get_run(run_id).info.experiment_id
    for half_made in _half_made(store, experiment_id, run_id, name):
        store.client.delete_logged_model(half_made.model_id)
    logged = store.retry.create(  # log_model alone would log to the experiment `Default`
        lambda: next(iter(_half_made(store, experiment_id, run_id, name)), None),
        lambda: store.once.create_logged_model(experiment_id, name, source_run_id=run_id, params=params),
    )
    with tempfile.TemporaryDirectory() as folder, as_default(store.uri):
        files, content = write_files(model, Path(folder))
        store.retry.call(
            mlflow.pytorch.log_model,
            network,
            name=name,
            model_id=logged.model_id,
            run_id=run_id,
            signature=infer_signature(images, np.zeros((2, model.spec.n_classes), np.float32)),
            input_example=images,
            serialization_format="pt2",
            pip_requirements=[f"mlflow=={mlflow.__version__}", f"torch=={torch.__version__.split('+')[0]}", "numpy"],
            extra_files=[str(file) for file in files],
            metadata=content,
        )
        if not has_model(store, name):
            with already_there():
                store.client.create_registered_model(name, description=_description(store, name, model))
        source, model_id = f"models:/{logged.model_id}", logged.model_id
        return store.retry.create(
            lambda: next((v for v in versions_of(store, name) if model_id_of(v) == model_id), None),
            lambda: store.once.create_model_version(
                name, source, run_id, _texts(tags), description=description, model_id=model_id
            ),
        )


def _texts(values: dict[str, Any]) -> dict[str, str]:
    return {key: str(value) for key, value in values.items()}


@contextlib.contextmanager
def as_default(uri: str) -> Iterator[None]:
    """Make the store MLflow's default one within the block: its `log_model` and registry take no other."""
    before = mlflow.get_tracking_uri() if mlflow.is_tracking_uri_set() else None
    mlflow.set_tracking_uri(uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(before)  # type: ignore[arg-type]


def _description(store: Store, name: str, model: TrainedModel) -> str:
    searches, sweeps = (experiment_page(store.experiment(experiment)) for experiment in (TUNING, TRANSFER))
    return (
        f"CNN2, trained on Fashion-MNIST classes {digits(model.split.source)}. Alias `{BEST}` points to the version "
        "whose configuration has the highest validation accuracy when it is trained again with fresh seeds. Transfer "
        f"it to classes {digits(model.split.target)}: `python -m sweeps.transfer --model-uri models:/{name}/{BEST}`. "
        f"Look at: [searches]({searches}) · [sweeps]({sweeps})"
    )


def _half_made(store: Store, experiment_id: str, run_id: str, name: str) -> list[LoggedModel]:
    """Unregistered models of this run, left by a killed command or by a lost response in this one."""
    registered = {model_id_of(version) for version in versions_of(store, name)}
    made = store.client.search_logged_models([experiment_id], f"source_run_id = '{run_id}' AND name = '{name}'")
    return [model for model in made if model.model_id not in registered]


def model_id_of(version: ModelVersion) -> str:
    """Id of the version's logged model. Versions found by a search lack it, but have it in their source."""
    return str(version.model_id or str(version.source).removeprefix("models:/"))


def versions_of(store: Store, name: str) -> list[ModelVersion]:
    return list(store.client.search_model_versions(f"name = '{name}'"))


def has_model(store: Store, name: str) -> bool:
    return name in {model.name for model in store.client.search_registered_models(f"name = '{name}'")}


def best_version(store: Store, name: str) -> ModelVersion | None:
    if not has_model(store, name) or BEST not in store.client.get_registered_model(name).aliases:
        return None
    return store.client.get_model_version_by_alias(name, BEST)


def set_best(store: Store, version: ModelVersion) -> None:
    store.client.set_registered_model_alias(version.name, BEST, version.version)


def is_gone(store: Store, version: ModelVersion) -> bool:
    """Return whether the version's model, all of its files or the weights that we wrote were deleted for certain."""
    if not (model_id := model_id_of(version)).startswith("m-"):  # it was registered from a run's artifacts
        return False
    try:
        location = str(store.client.get_logged_model(model_id).artifact_location)
        model = get_artifact_repository(location, store.uri)
        files = [file.path for place in (None, FILES_FOLDER) for file in store.retry.call(model.list_artifacts, place)]
    except MlflowException as error:
        return error.error_code == "RESOURCE_DOES_NOT_EXIST"
    except OSError:
        return False
    if files:
        return "winner_key" in version.tags and f"{FILES_FOLDER}/{WEIGHTS_FILE}" not in files
    # A folder EXPERIMENT/models/MODEL/artifacts of another machine cannot be seen here.
    return urlsplit(location).scheme not in ("", "file") or file_path(location).parents[2].exists()


def resolve(store: Store, uri: str) -> PinnedModel:
    """Pin the version that `models:/NAME/VERSION`, `/ALIAS` (to MLflow a stage), `@ALIAS` or `/latest` names.

    Raises ModelError, which lists the known models.
    """
    scheme, _, rest = uri.partition(":/")
    name, _, last = rest.replace("@", "/", 1).partition("/")
    if scheme != "models" or not name or not last or "/" in last:
        raise ModelError(f"{uri} is no model URI: write models:/NAME/ALIAS or models:/NAME/VERSION. {_known(store)}")
    try:
        versions = {str(version.version): version for version in versions_of(store, name)}
        aliases = store.client.get_registered_model(name).aliases if versions else {}
        number = last if last.isdecimal() else str(aliases.get(last, ""))
        if last == "latest":  # as in MLflow itself
            number = max(versions, key=int, default="")
        if number not in versions:
            kind, remedy = ("version", "") if last.isdecimal() else ("alias", "; run python -m tuning.search first")
            raise ModelError(f"no {kind} {last!r} of model {name!r} in {masked(store.uri)}. {_known(store)}{remedy}")
        model_id = model_id_of(versions[number])
        location = store.client.get_logged_model(model_id).artifact_location
    except MlflowException as error:
        text = f"cannot find {uri} in {masked(store.uri)}: {error.message}. {_known(store)}"
        raise ModelError(f"{text}; if it was deleted, rerun the search that registered it") from error
    return PinnedModel(uri, name, number, location, model_id)


def _known(store: Store) -> str:
    """List every registered model with its versions and aliases."""
    models = []
    for model in store.client.search_registered_models():
        versions = ", ".join(sorted((str(version.version) for version in versions_of(store, model.name)), key=int))
        aliases = store.client.get_registered_model(model.name).aliases
        listed = ", ".join(f"{alias} -> {number}" for alias, number in aliases.items())
        models.append(f"{model.name} (versions {versions or 'none'}; aliases {listed or 'none'})")
    return f"Known: {'; '.join(models) or 'no model'}"


def note_sweep(store: Store, model: PinnedModel, run_id: str, name: str) -> None:
    """Log the model as an input of the sweep's run, and name the sweep in the version's tags and description."""
    store.client.log_inputs(run_id, models=[LoggedModelInput(model.model_id)])
    try:
        store.client.set_model_version_tag(model.name, model.version, f"{SWEEP_TAG}{run_id}", name)
        before = store.client.get_model_version(model.name, model.version).description or ""
        above, _, below = before.partition(SWEEPS_HEAD)
        line = f"\n- [{name}]({run_page(store.experiment(TRANSFER), run_id)}), run `{run_id}`"
        text = f"{above}{SWEEPS_HEAD}{line}{below}"
        while len(text) > DESCRIPTION_LENGTH and len(lines := list(SWEEPS_LINE.finditer(text))) > 1:
            text = text[: lines[-1].start()] + text[lines[-1].end() :]  # the oldest sweep, which its tag still names
        if run_id not in before and len(text) <= DESCRIPTION_LENGTH:  # else the user's own words fill it
            store.client.update_model_version(model.name, model.version, description=text)
    except MlflowException as error:  # for example, this user may only read the model, which suffices for a sweep
        warn(f"cannot list this sweep in the description of {model.pinned}: {reason(error)}. The sweep goes on")
