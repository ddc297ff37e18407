"""Resolve, load and alias CNN2 models of MLflow's registry: `load(store, resolve(store, "models:/cnn2/best"))`."""

from dataclasses import dataclass

from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from fmnist_transfer.errors import ModelError
from fmnist_transfer.store.model_format import (
    FILES_FOLDER,
    WEIGHTS_FILE,
    TrainedModel,
    is_elsewhere,
    list_files,
    read_model,
)
from fmnist_transfer.store.runs import Store
from fmnist_transfer.terminal.output import masked

__all__ = ["BEST", "ModelVersion", "PinnedModel"]
BEST = "best"


@dataclass(frozen=True)
class PinnedModel:
    """The model that a URI named when it was resolved; later moves of an alias do not change it."""

    asked: str
    pinned: str
    """`models:/NAME/VERSION`, or `models:/MODEL_ID` for a model without a version."""
    location: str
    """URI of its artifacts."""
    run_id: str
    """Id of the run it was logged to; empty if none."""
    model_id: str

    @property
    def version(self) -> tuple[str, str] | None:
        """Name and number of the registered version; None for a model without one."""
        name, _, number = self.pinned.removeprefix("models:/").partition("/")
        return (name, number) if number else None


def model_id_of(version: ModelVersion) -> str:
    """Id of the version's logged model. Versions found by a search lack it, but have it in their source."""
    return str(version.model_id or str(version.source).removeprefix("models:/"))


def versions_of(store: Store, name: str) -> list[ModelVersion]:
    return list(store.client.search_model_versions(f"name = '{name}'"))


def best_version(store: Store, name: str) -> ModelVersion | None:
    """The version that alias `best` of `name` points to; None if the model or the alias is missing."""
    if not has_model(store, name) or BEST not in store.client.get_registered_model(name).aliases:
        return None
    return store.client.get_model_version_by_alias(name, BEST)


def has_model(store: Store, name: str) -> bool:
    return name in {model.name for model in store.client.search_registered_models(f"name = '{name}'")}


def is_gone(store: Store, version: ModelVersion) -> bool:
    """Return whether the version's model was deleted for certain: it, all of its files, or the weights that we wrote.

    A model that merely cannot be reached from here, or is not ours, is not gone.
    """
    if not (model_id := model_id_of(version)).startswith("m-"):  # it was registered from a run's artifacts
        return False
    try:
        location = str(store.client.get_logged_model(model_id).artifact_location)
        files = list_files(store, location)
    except MlflowException as error:
        return error.error_code == "RESOURCE_DOES_NOT_EXIST"
    except OSError:
        return False
    if not files and is_elsewhere(location):
        return False
    return not files or ("winner_key" in version.tags and f"{FILES_FOLDER}/{WEIGHTS_FILE}" not in files)


def set_best(store: Store, version: ModelVersion) -> None:
    store.client.set_registered_model_alias(version.name, BEST, version.version)


def resolve(store: Store, uri: str) -> PinnedModel:
    """Find the model that `uri` names and pin it.

    Takes `models:/NAME/ALIAS` (which MLflow itself reads as a stage), `models:/NAME@ALIAS`, `models:/NAME/VERSION`,
    `models:/NAME/latest`, `models:/MODEL_ID` and `runs:/RUN_ID/NAME`. Raises ModelError, which lists the known models.
    """
    scheme, _, rest = uri.partition(":/")
    try:
        if scheme == "runs" and rest.count("/") == 1:
            return _resolve_run(store, uri, *rest.split("/"))
        if scheme == "models" and rest.startswith("m-") and "/" not in rest:
            return _reference(store, uri, uri, rest)
        name, _, suffix = rest.replace("@", "/", 1).partition("/")
        if scheme == "models" and name and suffix and "/" not in suffix:
            return _resolve_version(store, uri, name, suffix)
    except MlflowException as error:
        raise ModelError(
            f"cannot find {uri} in {masked(store.uri)}: {error.message}. {_known(store)}; if it was deleted, rerun "
            "the search that registered it"
        ) from error
    raise ModelError(
        f"{uri} is no model URI: write models:/NAME/ALIAS, models:/NAME/VERSION, models:/MODEL_ID or "
        f"runs:/RUN_ID/NAME. {_known(store)}"
    )


def _resolve_version(store: Store, uri: str, name: str, suffix: str) -> PinnedModel:
    versions = {v.version: v for v in versions_of(store, name)}
    number = suffix
    if suffix == "latest":
        number = max(versions, key=int, default="")
    elif not suffix.isdecimal():
        aliases = store.client.get_registered_model(name).aliases if versions else {}
        if suffix not in aliases:
            raise ModelError(
                f"no alias {suffix!r} of model {name!r} in {masked(store.uri)}. {_known(store)}; "
                "run python -m tuning.search first"
            )
        number = aliases[suffix]
    version = {str(key): value for key, value in versions.items()}.get(str(number))
    if version is None:
        raise ModelError(f"no version {suffix!r} of model {name!r} in {masked(store.uri)}. {_known(store)}")
    return _reference(store, uri, f"models:/{name}/{version.version}", model_id_of(version))


def _reference(store: Store, uri: str, pinned: str, model_id: str) -> PinnedModel:
    model = store.client.get_logged_model(model_id)
    return PinnedModel(uri, pinned, model.artifact_location, model.source_run_id or "", model_id)


def _resolve_run(store: Store, uri: str, run_id: str, name: str) -> PinnedModel:
    experiment = store.client.get_run(run_id).info.experiment_id
    models = store.client.search_logged_models([experiment], f"source_run_id = '{run_id}' AND name = '{name}'")
    if not models:
        raise ModelError(f"run {run_id} has no model {name!r}. {_known(store)}")
    return PinnedModel(uri, models[0].model_uri, models[0].artifact_location, run_id, models[0].model_id)


def _known(store: Store) -> str:
    """List every registered model with its versions and aliases."""
    models = []
    for model in store.client.search_registered_models():
        versions = sorted(int(version.version) for version in versions_of(store, model.name))
        aliases = store.client.get_registered_model(model.name).aliases
        models.append(
            f"{model.name} (versions {', '.join(map(str, versions)) or 'none'}; "
            f"aliases {', '.join(f'{alias} -> {number}' for alias, number in aliases.items()) or 'none'})"
        )
    return f"Known: {'; '.join(models) or 'no model'}"


def load(store: Store, model: PinnedModel) -> TrainedModel:
    """Read and check the model (see `read_model`). Raises ModelError for anything that `register` would not write."""
    return read_model(store, model.location, model.pinned)
