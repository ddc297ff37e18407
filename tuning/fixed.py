"""A configuration that is trained without a search: the original report's, or a registered one on another half."""

from dataclasses import dataclass, replace
from typing import Any

from fmnist_transfer.errors import UsageError
from fmnist_transfer.lease import Lease
from fmnist_transfer.model import REFERENCE_SPEC
from fmnist_transfer.ownership import owning
from fmnist_transfer.recipe import REFERENCE_RECIPE
from fmnist_transfer.registry import load, resolve
from fmnist_transfer.split import Split
from fmnist_transfer.ui import TUNING
from tuning.description import of_training
from tuning.retraining import Candidate
from tuning.stages import SearchContext, register_best


@dataclass(frozen=True)
class FixedConfiguration:
    """What is trained without a search."""

    candidate: Candidate
    study: str
    """Name of its run, and of its lock."""
    name: str
    """Of the registered model."""
    n_seeds: int
    like: str = ""
    """The pinned URI of the model that it is taken from."""


def reference_configuration(split: Split) -> FixedConfiguration:
    """The original report's network and recipe, trained once."""
    name = f"cnn2-reference{split.suffix}"
    return FixedConfiguration(Candidate(REFERENCE_SPEC, REFERENCE_RECIPE), name, name, 1)


def registered_configuration(context: SearchContext, uri: str) -> FixedConfiguration:
    """Network and recipe of a registered model, for the source half of another split."""
    reference = resolve(context.store, uri)
    model = load(context.store, reference)
    if model.split.source == context.split.source:
        raise UsageError(
            f"--like {uri}: it was trained on classes {model.split.source} already; give another half with --split"
        )
    pinned = reference.pinned.removeprefix("models:/")
    if "/" not in pinned:
        raise UsageError(f"--like {uri}: name a registered model, models:/NAME/ALIAS or models:/NAME/VERSION")
    base = pinned.partition("/")[0].removesuffix(model.split.suffix)
    spec = replace(model.spec, n_classes=len(context.split.source))
    name = base + context.split.suffix
    candidate = Candidate(spec, model.recipe, origin=f"like {pinned}")
    return FixedConfiguration(candidate, f"{name}-like", name, context.settings.retrain_seeds, reference.pinned)


def train_fixed(context: SearchContext, fixed: FixedConfiguration) -> dict[str, Any]:
    """Train one configuration without a search, and register it."""
    store, half = context.store, context.half
    params = {
        "split": context.split,
        "seed": context.settings.seed,
        "data_sha256": half.data_sha256,
        "device": context.device,
        "precision": context.settings.precision,
    } | ({"like": fixed.like} if fixed.like else {})
    wanted = {key: str(value) for key, value in params.items()}
    with owning(store.uri, "search", f"study-{fixed.study}"):
        same = ""
        for run in store.find(TUNING, role="study", study=fixed.study):
            if not same and {key: run.data.params.get(key) for key in wanted} == wanted:
                same = str(run.info.run_id)
            elif run.info.status == "RUNNING":  # its process died: this one owns the name
                store.end(run.info.run_id, "KILLED")
        run_id = same or store.start(TUNING, fixed.study, params=params, tags={"role": "study", "study": fixed.study})
        with Lease(store, run_id).owned("search", context.stop.is_set):
            store.reopen(store.client.get_run(run_id), params)
            return _train(context, fixed, run_id)


def _train(context: "SearchContext", fixed: FixedConfiguration, run_id: str) -> dict[str, Any]:
    store, half = context.store, context.half
    with store.ending(run_id):
        store.log_data(run_id, half, "source")
        store.describe(run_id, of_training(context, fixed))
        context.stopwatch.lap("start")
        result = register_best(
            context, run_id, [fixed.candidate], study=fixed.study, name=fixed.name, n_seeds=fixed.n_seeds
        )
        store.describe(run_id, of_training(context, fixed, result))
    return result | {"n_trials": 0, "n_pruned": 0}
