"""The two files of a stored model, weights and spec, checked when read; nothing is unpickled, imported or run."""

import hashlib
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from safetensors import SafetensorError

from fmnist_transfer.data.examples import PIXEL_MEAN, PIXEL_STD
from fmnist_transfer.data.split import Split
from fmnist_transfer.errors import ModelError, UsageError
from fmnist_transfer.network.cnn2 import CNN2Spec
from fmnist_transfer.network.cost import n_parameters
from fmnist_transfer.network.weights import check_state, weights_digest
from fmnist_transfer.store.places import file_path
from fmnist_transfer.store.roles import IMAGE_SCORES_FILE
from fmnist_transfer.store.runs import Store
from fmnist_transfer.terminal.output import masked
from fmnist_transfer.training.recipe import Recipe, still_known

FORMAT, FOREIGN = 1, "is not a CNN2 model as this package writes it"
WEIGHTS_FILE, SPEC_FILE, FILES_FOLDER = "weights.safetensors", "cnn2.json", "extra_files"
MAX_BYTES = {WEIGHTS_FILE: 64 * 2**20, SPEC_FILE: 2**20, IMAGE_SCORES_FILE: 2**20}


class TrainedModel(NamedTuple):
    """A network trained on `split.source`, as a search hands it to a sweep."""

    spec: CNN2Spec
    recipe: Recipe
    split: Split
    state: dict[str, torch.Tensor]
    facts: dict[str, Any]  # origin and quality (study, scores, seed, data sha256) as plain JSON


class PinnedModel(NamedTuple):
    """The model that a URI named when it was resolved; later moves of an alias do not change it."""

    name: str
    version: str
    location: str  # URI of its artifacts
    model_id: str

    @property
    def pinned(self) -> str:
        return f"models:/{self.name}/{self.version}"


def write_files(model: TrainedModel, folder: Path) -> tuple[list[Path], dict[str, Any]]:
    """Write the two files; return their paths, and the content of `cnn2.json`."""
    weights, spec, packed = folder / WEIGHTS_FILE, folder / SPEC_FILE, pack_weights(model.state)
    content = {
        "format": FORMAT,
        "spec": model.spec.to_dict(),
        "recipe": model.recipe.to_dict(),
        "split": str(model.split),
        "source_classes": list(model.split.source),
        "pixel_mean": PIXEL_MEAN,
        "pixel_std": PIXEL_STD,
        "weights_digest": weights_digest(model.state),
        "facts": model.facts,
        "weights_sha256": hashlib.sha256(packed).hexdigest(),
    }
    weights.write_bytes(packed)
    spec.write_text(json.dumps(content, indent=2))
    return [weights, spec], content


def pack_weights(state: Mapping[str, torch.Tensor]) -> bytes:
    return safetensors.torch.save({name: tensor.contiguous() for name, tensor in state.items()})


def unpack_weights(content: bytes, spec: CNN2Spec, name: str) -> dict[str, torch.Tensor]:
    """Inverse of `pack_weights`. Raises ModelError unless `content` holds exactly the network's weights."""
    try:
        state = safetensors.torch.load(content)
    except (ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"{name} {FOREIGN}: {error!r}") from error
    check_state(state, spec, name)
    return state


def load_weights(store: Store, run_id: str, spec: CNN2Spec) -> dict[str, torch.Tensor]:
    """Read the run's `weights.safetensors`. Raises ModelError if it is missing or does not fit `spec`."""
    location, name = str(store.client.get_run(run_id).info.artifact_uri), f"run {run_id}"
    try:
        return unpack_weights(read_artifact(store, location, WEIGHTS_FILE, name), spec, name)
    except ModelError as error:
        remedy = "If it is damaged, delete the run in MLflow's UI, and the same command trains it again"
        raise ModelError(f"{error}. {remedy}") from error


def load(store: Store, model: PinnedModel) -> TrainedModel:
    """Read the model's two files. Raises ModelError for anything that `registry.register` would not write."""
    location, name = model.location, model.pinned
    text = read_artifact(store, location, f"{FILES_FOLDER}/{SPEC_FILE}", name)
    weights = read_artifact(store, location, f"{FILES_FOLDER}/{WEIGHTS_FILE}", name)
    try:
        content = json.loads(text)
        if content["format"] != FORMAT:
            raise ModelError(f"{name} has format {content['format']!r}; this version reads {FORMAT}")
        if (sha256 := hashlib.sha256(weights).hexdigest()) != content["weights_sha256"]:
            raise ModelError(f"{name}: {WEIGHTS_FILE} has sha256 {sha256}, expected {content['weights_sha256']}")
        spec, recipe = CNN2Spec(**still_known(content["spec"])), Recipe(**still_known(content["recipe"]))
        split, facts = Split(tuple(content["source_classes"])), dict(content["facts"])
        if 4 * n_parameters(spec) > MAX_BYTES[WEIGHTS_FILE]:
            raise ModelError(f"{name}: its network would not fit into the size limit of {WEIGHTS_FILE}")
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, UsageError) as error:
        raise ModelError(f"{name} {FOREIGN}: {error!r}") from error
    return TrainedModel(spec, recipe, split, unpack_weights(weights, spec, name), facts)


def read_artifact(store: Store, location: str, path: str, name: str) -> bytes:
    """Read the artifact `path` below `location`. Raises ModelError unless it is a plain file of at most `MAX_BYTES`."""
    limit = MAX_BYTES[Path(path).name]
    with tempfile.TemporaryDirectory() as folder:
        try:
            repository = get_artifact_repository(location, store.uri)
            listed = store.retry.call(repository.list_artifacts, str(Path(path).parent) if "/" in path else None)
            sizes = {file.path: file.file_size for file in listed}
            if path not in sizes:
                why = "it was not registered by this package, or its files were moved or deleted"
                raise ModelError(f"{name} has no {path} in {masked(location)}: {why}")
            if (size := sizes[path]) is None or size > limit:
                raise ModelError(f"{name}: {path} has {size} bytes, more than {limit}")
            local = file_path(location)
            if local and ((local / path).is_symlink() or (local / path).parent.is_symlink()):
                raise ModelError(f"{name}: {path} is a link; only a plain file is read")
            return Path(store.retry.call(repository.download_artifacts, path, folder)).read_bytes()
        except (MlflowException, OSError) as error:
            raise ModelError(f"cannot read {path} of {name}: {error}") from error
