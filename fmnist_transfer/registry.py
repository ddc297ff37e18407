"""Save, register, resolve and load CNN2 models in MLflow's registry.

    version = register(store, run_id, "cnn2", RegisteredModel(...), tags={...}, description="...")
    model = load(store, resolve(store, "models:/cnn2/best"))

What MLflow serves is a `pt2` program. What this package loads is `weights.safetensors` and `cnn2.json` beside it and
nothing else: nothing from a registry is ever unpickled, imported or run.
"""

import hashlib
import json
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import mlflow
import numpy as np
import safetensors.torch
import torch
from mlflow.entities import LoggedModel, LoggedModelInput
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.types import Schema, TensorSpec
from safetensors import SafetensorError

from fmnist_transfer.console import warn
from fmnist_transfer.data import PIXEL_MEAN, PIXEL_STD
from fmnist_transfer.database import file_path, masked
from fmnist_transfer.errors import ModelError, UsageError
from fmnist_transfer.model import CNN2, IMAGE_SIZE, CNN2Spec, check_fit, n_parameters, weights_digest
from fmnist_transfer.patience import reason
from fmnist_transfer.recipe import Recipe
from fmnist_transfer.split import Split, digits
from fmnist_transfer.spool import Ending
from fmnist_transfer.tracking import Store, already_there, result_rows, settings_params
from fmnist_transfer.training import Result, numerics
from fmnist_transfer.ui import TRANSFER, TUNING, experiment_page, run_page

BEST = "best"
FORMAT = 1
WEIGHTS_FILE, SPEC_FILE, FILES_FOLDER = "weights.safetensors", "cnn2.json", "extra_files"
SWEEP_TAG = "sweep."  # + run id: a tag of a version, the name of a sweep that started from it
DESCRIPTION_LENGTH = 5_000  # characters, which MLflow's registry holds
MORE_LENGTH = 60  # of them for the last line
SWEEPS_HEAD = "\n\nSweeps that start from it:"
SWEEPS_LINE = re.compile(r"- \[.*\]\(#/experiments/\S+\), run `\w+`|- and \d+ more, which the tags name")
MAX_BYTES = {WEIGHTS_FILE: 64 * 2**20, SPEC_FILE: 2**20}


@dataclass(frozen=True)
class TrainedModel:
    """A network as it passes from the search to the sweep."""

    spec: CNN2Spec
    recipe: Recipe
    split: Split
    """The network was trained on `split.source`."""
    state: dict[str, torch.Tensor]
    facts: dict[str, Any]
    """Where it comes from and how good it is: study, scores, seed, data sha256. Plain JSON."""

    def to_dict(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "spec": self.spec.to_dict(),
            "recipe": self.recipe.to_dict(),
            "split": str(self.split),
            "source_classes": list(self.split.source),
            "pixel_mean": PIXEL_MEAN,
            "pixel_std": PIXEL_STD,
            "weights_digest": weights_digest(self.state),
            "facts": self.facts,
        }


@dataclass(frozen=True)
class Reference:
    """What a model URI stands for, pinned so that it cannot change half-way."""

    asked: str
    pinned: str
    """`models:/NAME/VERSION`, or `models:/MODEL_ID` for a model without a version."""
    location: str
    """Of its artifacts."""
    run_id: str
    """Of the run that it was logged to; empty if there is none."""
    model_id: str

    @property
    def version(self) -> tuple[str, str] | None:
        """Name and number of the registered version; None for a model that is none."""
        name, _, number = self.pinned.removeprefix("models:/").partition("/")
        return (name, number) if number else None


def register(
    store: Store, run_id: str, name: str, model: TrainedModel, *, tags: dict[str, Any], description: str
) -> ModelVersion:
    """Log `model` to the run and register it as the next version of `name`. The alias is moved by `set_best`."""
    network = CNN2(model.spec).to(memory_format=torch.contiguous_format)  # what torch.export packs without a word
    network.load_state_dict(model.state)
    network.eval()  # a module exported in training mode would keep its dropout for ever
    images = np.zeros((2, 1, IMAGE_SIZE, IMAGE_SIZE), np.float32)
    signature = ModelSignature(
        Schema([TensorSpec(np.dtype("float32"), (-1, 1, IMAGE_SIZE, IMAGE_SIZE))]),
        Schema([TensorSpec(np.dtype("float32"), (-1, model.spec.n_classes))]),
    )
    with tempfile.TemporaryDirectory() as folder:
        weights, spec_file = Path(folder) / WEIGHTS_FILE, Path(folder) / SPEC_FILE
        weights.write_bytes(packed := pack_weights(model.state))
        content = model.to_dict() | {"weights_sha256": hashlib.sha256(packed).hexdigest()}
        spec_file.write_text(json.dumps(content, indent=2))
        params = settings_params(model.spec, model.recipe) | {"split": model.split}
        experiment_id = store.client.get_run(run_id).info.experiment_id
        for half_made in _half_made(store, experiment_id, run_id, name):
            store.client.delete_logged_model(half_made.model_id)
        logged = store.patience.create(  # log_model alone would put it into the experiment `Default`
            lambda: next(iter(_half_made(store, experiment_id, run_id, name)), None),
            lambda: store.once.create_logged_model(
                experiment_id,
                name,
                source_run_id=run_id,
                params={key: str(value) for key, value in params.items()},
            ),
        )
        info = store.patience.call(
            mlflow.pytorch.log_model,
            network,
            name=name,
            model_id=logged.model_id,
            run_id=run_id,
            signature=signature,
            input_example=images,
            serialization_format="pt2",
            pip_requirements=[f"mlflow=={mlflow.__version__}", f"torch=={torch.__version__.split('+')[0]}", "numpy"],
            extra_files=[str(weights), str(spec_file)],
            metadata=content,
        )
    if not _has_model(store, name):
        with already_there():
            store.client.create_registered_model(
                name,
                description=_description(store, name, model.split),
            )
    return store.patience.create(
        lambda: next((version for version in _versions(store, name) if _model_id(version) == info.model_id), None),
        lambda: store.once.create_model_version(
            name,
            info.model_uri,
            run_id,
            tags={key: str(value) for key, value in tags.items()},
            description=description,
            model_id=info.model_id,
        ),
    )


def _description(store: Store, name: str, split: Split) -> str:
    """Of the registered model."""
    searches, sweeps = (experiment_page(store.experiment(one)) for one in (TUNING, TRANSFER))
    return (
        f"CNN2, trained on Fashion-MNIST classes {digits(split.source)}. Alias `{BEST}` points to the version whose "
        "configuration has the highest validation accuracy when it is trained again with fresh seeds. Each version "
        "says which trial made it, how good it is, and which sweeps start from it.\n\n"
        f"Transfer it to classes {digits(split.target)}: "
        f"`python -m sweeps.transfer --model-uri models:/{name}/{BEST}`. "
        f"Look at: [searches]({searches}) · [sweeps]({sweeps})"
    )


def note_sweep(store: Store, reference: Reference, run_id: str, name: str) -> None:
    """Link a sweep's parent run and its model: the model is the run's input, and the version names the sweep."""
    store.client.log_inputs(run_id, models=[LoggedModelInput(reference.model_id)])
    if reference.version is None:
        return
    try:
        store.client.set_model_version_tag(*reference.version, f"{SWEEP_TAG}{run_id}", name)
        version = store.client.get_model_version(*reference.version)
        if text := _with_sweeps(version, store.experiment(TRANSFER), run_id):
            store.client.update_model_version(*reference.version, description=text)
    except MlflowException as error:  # this user may only read the model, say, which is all that a sweep needs
        warn(f"{reference.pinned} cannot name this sweep among those that start from it: {reason(error)}")


def _with_sweeps(version: ModelVersion, experiment_id: str, run_id: str) -> str:
    """The version's description with a list of its sweeps, `run_id` first; empty if a user's own text leaves no room.

    What a user wrote above or below the list stays.
    """
    above, _, below = (version.description or "").partition(SWEEPS_HEAD)
    own = "\n".join(line for line in below.splitlines() if not SWEEPS_LINE.fullmatch(line)).strip()
    own = f"\n\n{own}" if own else ""
    sweeps = sorted(key.removeprefix(SWEEP_TAG) for key in version.tags if key.startswith(SWEEP_TAG))
    text, n_left_out = f"{above}{SWEEPS_HEAD}\n", 0
    for one in sorted(sweeps, key=lambda other: other != run_id):
        line = f"\n- [{version.tags[SWEEP_TAG + one]}]({run_page(experiment_id, one)}), run `{one}`"
        if len(text) + len(line) + MORE_LENGTH + len(own) > DESCRIPTION_LENGTH:
            n_left_out += 1
        else:
            text += line
    if n_left_out == len(sweeps):
        return ""
    return text + (f"\n- and {n_left_out} more, which the tags name" if n_left_out else "") + own


def _half_made(store: Store, experiment_id: str, run_id: str, name: str) -> list[LoggedModel]:
    """Models of this run that are not registered: whoever began them was killed, or is about to go on."""
    registered = {_model_id(version) for version in _versions(store, name)}
    made = store.client.search_logged_models([experiment_id], f"source_run_id = '{run_id}' AND name = '{name}'")
    return [model for model in made if model.model_id not in registered]


def _model_id(version: ModelVersion) -> str:
    """Of the version's logged model; a search returns versions without it, but with their source."""
    return str(version.model_id or str(version.source).removeprefix("models:/"))


def _versions(store: Store, name: str) -> list[ModelVersion]:
    return list(store.client.search_model_versions(f"name = '{name}'"))


def best_version(store: Store, name: str) -> ModelVersion | None:
    """The version that alias `best` of `name` points to; None without the model or the alias."""
    if not _has_model(store, name) or BEST not in store.client.get_registered_model(name).aliases:
        return None
    return store.client.get_model_version_by_alias(name, BEST)


def _has_model(store: Store, name: str) -> bool:
    return name in {model.name for model in store.client.search_registered_models(f"name = '{name}'")}


def set_best(store: Store, version: ModelVersion) -> None:
    store.client.set_registered_model_alias(version.name, BEST, version.version)


def resolve(store: Store, uri: str) -> Reference:
    """Find the model that `uri` names and pin it.

    Takes `models:/NAME/ALIAS` (which MLflow itself reads as a stage), `models:/NAME@ALIAS`, `models:/NAME/VERSION`,
    `models:/NAME/latest`, `models:/MODEL_ID` and `runs:/RUN_ID/NAME`. Raises ModelError, saying what there is.
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
        raise ModelError(f"cannot find {uri} in {masked(store.uri)}: {error.message}. {_known(store)}") from error
    raise ModelError(
        f"{uri} is no model URI: write models:/NAME/ALIAS, models:/NAME/VERSION, models:/MODEL_ID or "
        f"runs:/RUN_ID/NAME. {_known(store)}"
    )


def _resolve_version(store: Store, uri: str, name: str, suffix: str) -> Reference:
    versions = {v.version: v for v in _versions(store, name)}
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
    return _reference(store, uri, f"models:/{name}/{version.version}", _model_id(version))


def _reference(store: Store, uri: str, pinned: str, model_id: str) -> Reference:
    model = store.client.get_logged_model(model_id)
    return Reference(uri, pinned, model.artifact_location, model.source_run_id or "", model_id)


def _resolve_run(store: Store, uri: str, run_id: str, name: str) -> Reference:
    experiment = store.client.get_run(run_id).info.experiment_id
    models = store.client.search_logged_models([experiment], f"source_run_id = '{run_id}' AND name = '{name}'")
    if not models:
        raise ModelError(f"run {run_id} has no model {name!r}. {_known(store)}")
    return Reference(uri, models[0].model_uri, models[0].artifact_location, run_id, models[0].model_id)


def _known(store: Store) -> str:
    """Every model with its versions and aliases, in one phrase."""
    models = []
    for model in store.client.search_registered_models():
        versions = sorted(int(version.version) for version in _versions(store, model.name))
        aliases = store.client.get_registered_model(model.name).aliases
        models.append(
            f"{model.name} (versions {', '.join(map(str, versions)) or 'none'}; "
            f"aliases {', '.join(f'{alias} -> {number}' for alias, number in aliases.items()) or 'none'})"
        )
    return f"Known: {'; '.join(models) or 'no model'}"


def load(store: Store, reference: Reference) -> TrainedModel:
    """Read the two files of the model, check size, digests, names, shapes, types and finiteness.

    Raises ModelError for anything that is not as `register` writes it.
    """
    what = reference.pinned
    content = _read_json(_fetch(store, reference.location, f"{FILES_FOLDER}/{SPEC_FILE}", what), what)
    weights = _fetch(store, reference.location, f"{FILES_FOLDER}/{WEIGHTS_FILE}", what)
    try:
        if content["format"] != FORMAT:
            raise ModelError(f"{what} has format {content['format']!r}; this version reads {FORMAT}")
        found = hashlib.sha256(weights).hexdigest()
        if found != content["weights_sha256"]:
            raise ModelError(f"{what}: {WEIGHTS_FILE} has sha256 {found}, expected {content['weights_sha256']}")
        spec, recipe = CNN2Spec.from_dict(content["spec"]), Recipe.from_dict(content["recipe"])
        split = Split(tuple(content["source_classes"]))
        if 4 * n_parameters(spec) > MAX_BYTES[WEIGHTS_FILE]:
            raise ModelError(f"{what}: its network would not fit into {WEIGHTS_FILE}'s limit")
        facts = dict(content["facts"])
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, UsageError) as error:
        raise ModelError(f"{what} is not a CNN2 model as this package writes it: {error!r}") from error
    return TrainedModel(spec, recipe, split, unpack_weights(weights, spec, what), facts)


def pack_weights(state: Mapping[str, torch.Tensor]) -> bytes:
    """Weights and buffers in the safetensors format."""
    return safetensors.torch.save({name: tensor.contiguous() for name, tensor in state.items()})


def finished_with_weights(run_id: str, result: Result) -> Ending:
    """All of a training of this process, FINISHED, with its weights as `load_weights` finds them."""
    tags = {"weights_digest": weights_digest(result.final_state)} | numerics()
    files = {WEIGHTS_FILE: pack_weights(result.final_state)}
    return Ending(run_id, "FINISHED", result_rows(result), tags, files)


def unpack_weights(content: bytes, spec: CNN2Spec, what: str) -> dict[str, torch.Tensor]:
    """Inverse of `pack_weights`. Raises ModelError unless it holds exactly the weights of the spec's network."""
    try:
        state = safetensors.torch.load(content)
    except (ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"{what} is not a CNN2 model as this package writes it: {error!r}") from error
    check_state(state, spec, what)
    return state


def load_weights(store: Store, run_id: str, spec: CNN2Spec) -> dict[str, torch.Tensor]:
    """What a run logged as `weights.safetensors`. Raises ModelError."""
    location = str(store.client.get_run(run_id).info.artifact_uri)
    return unpack_weights(_fetch(store, location, WEIGHTS_FILE, f"run {run_id}"), spec, f"run {run_id}")


def check_state(state: dict[str, torch.Tensor], spec: CNN2Spec, what: str) -> None:
    """Raise ModelError, listing what is missing (-) and extra (+), unless `state` fits the spec's network exactly."""
    with torch.device("meta"):
        wanted = CNN2(spec).state_dict()
    check_fit(state, wanted, what)
    for name, tensor in state.items():
        if not bool(torch.isfinite(tensor).all()):
            raise ModelError(f"{what}: {name} holds NaN or infinite values")


def _fetch(store: Store, location: str, path: str, what: str) -> bytes:
    """The artifact `path` below `location`, if it is a plain file within its limit. Raises ModelError."""
    limit = MAX_BYTES[Path(path).name]
    with tempfile.TemporaryDirectory() as folder:
        try:
            repository = get_artifact_repository(location)
            listed = store.patience.call(repository.list_artifacts, str(Path(path).parent) if "/" in path else None)
            sizes = {file.path: file.file_size for file in listed}
            if path not in sizes:
                raise ModelError(
                    f"{what} has no {path} in {masked(location)}: it was not registered by this package, or its files "
                    "were moved or deleted"
                )
            size = sizes[path]
            if size is None or size > limit:
                raise ModelError(f"{what}: {path} has {size} bytes, more than {limit}")
            if _has_link(location, path):
                raise ModelError(f"{what}: {path} is a link; only a plain file is read")
            return Path(store.patience.call(repository.download_artifacts, path, folder)).read_bytes()
        except (MlflowException, OSError) as error:
            raise ModelError(f"cannot read {path} of {what}: {error}") from error


def _has_link(location: str, path: str) -> bool:
    """Whether the file, or its folder, is a symbolic link; of a place that is not local it cannot be one."""
    if urlsplit(location).scheme not in ("", "file"):
        return False
    file = file_path(location) / path
    return file.is_symlink() or file.parent.is_symlink()


def _read_json(text: bytes, what: str) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{what}: {SPEC_FILE} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ModelError(f"{what}: {SPEC_FILE} holds no object")
    return content
