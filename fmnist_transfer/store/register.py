"""Register CNN2 models in MLflow's registry.

    version = register(store, run_id, "cnn2", TrainedModel(...), tags={...}, description="...")

MLflow serves the logged `pt2` program; this package loads the files `weights.safetensors` and `cnn2.json` beside it.
"""

import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import torch
from mlflow.entities import LoggedModel
from mlflow.entities.model_registry import ModelVersion
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec

from fmnist_transfer.data.split import Split, digits
from fmnist_transfer.network.cnn2 import CNN2, IMAGE_SIZE
from fmnist_transfer.store.links import experiment_page
from fmnist_transfer.store.metric_rows import settings_params
from fmnist_transfer.store.model_format import (
    SPEC_FILE,
    WEIGHTS_FILE,
    TrainedModel,
    pack_weights,
)
from fmnist_transfer.store.registry import BEST, has_model, model_id_of, versions_of
from fmnist_transfer.store.roles import TRANSFER, TUNING
from fmnist_transfer.store.runs import Store, already_there


def register(
    store: Store, run_id: str, name: str, model: TrainedModel, *, tags: dict[str, Any], description: str
) -> ModelVersion:
    """Log `model` to the run and register it as the next version of `name`; `set_best` moves the alias."""
    network = CNN2(model.spec).to(memory_format=torch.contiguous_format)  # torch.export warns about others
    network.load_state_dict(model.state)
    network.eval()  # a module exported in training mode would always apply its dropout
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
        logged = store.retry.create(  # log_model alone would log to the experiment `Default`
            lambda: next(iter(_half_made(store, experiment_id, run_id, name)), None),
            lambda: store.once.create_logged_model(
                experiment_id,
                name,
                source_run_id=run_id,
                params={key: str(value) for key, value in params.items()},
            ),
        )
        info = store.retry.call(
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
    if not has_model(store, name):
        with already_there():
            store.client.create_registered_model(name, description=_description(store, name, model.split))
    return store.retry.create(
        lambda: next((version for version in versions_of(store, name) if model_id_of(version) == info.model_id), None),
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
    searches, sweeps = (experiment_page(store.experiment(experiment)) for experiment in (TUNING, TRANSFER))
    return (
        f"CNN2, trained on Fashion-MNIST classes {digits(split.source)}. Alias `{BEST}` points to the version whose "
        "configuration has the highest validation accuracy when it is trained again with fresh seeds. Each version "
        "says which trial made it, how good it is, and which sweeps start from it.\n\n"
        f"Transfer it to classes {digits(split.target)}: "
        f"`python -m sweeps.transfer --model-uri models:/{name}/{BEST}`. "
        f"Look at: [searches]({searches}) · [sweeps]({sweeps})"
    )


def _half_made(store: Store, experiment_id: str, run_id: str, name: str) -> list[LoggedModel]:
    """Unregistered models of this run, left by a killed command or by a lost response in this one."""
    registered = {model_id_of(version) for version in versions_of(store, name)}
    made = store.client.search_logged_models([experiment_id], f"source_run_id = '{run_id}' AND name = '{name}'")
    return [model for model in made if model.model_id not in registered]
