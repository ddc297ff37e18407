"""Train a configuration without a search: the original report's, or a registered one on another half."""

from dataclasses import dataclass, replace
from typing import Any

from fmnist_transfer.data.split import Split
from fmnist_transfer.errors import UsageError
from fmnist_transfer.identity import identity
from fmnist_transfer.network.cnn2 import REFERENCE_SPEC
from fmnist_transfer.store.lock import locked
from fmnist_transfer.store.open_runs import open_parent
from fmnist_transfer.store.registry import load, resolve
from fmnist_transfer.store.roles import TUNING, Role, settings_params
from fmnist_transfer.store.runs import Store
from fmnist_transfer.terminal.stopwatch import Stopwatch
from fmnist_transfer.training.recipe import REFERENCE_RECIPE
from fmnist_transfer.workers.run import Workers
from tuning.mlflow_text import describe_training
from tuning.winner.plan import Candidate, RetrainingPlan
from tuning.winner.register import retrain_and_register


@dataclass(frozen=True)
class FixedConfiguration:
    """A configuration to train without a search."""

    candidate: Candidate
    study: str
    """Name of its parent run."""
    name: str
    """Name of the registered model."""
    like: str = ""
    """Pinned URI of the model it is taken from; empty for the original report's."""


def fixed_configuration(store: Store | None, like: str | None, split: Split) -> FixedConfiguration:
    """The configuration of model `like`, else the original report's, which needs no store."""
    return registered_configuration(store, like, split) if store and like else reference_configuration(split)


def reference_configuration(split: Split) -> FixedConfiguration:
    name = f"cnn2-reference{split.suffix}"
    return FixedConfiguration(Candidate(REFERENCE_SPEC, REFERENCE_RECIPE), name, name)


def registered_configuration(store: Store, uri: str, split: Split) -> FixedConfiguration:
    """Network and recipe of a registered model, for the source half of another split. Raises UsageError, ModelError."""
    pinned_model = resolve(store, uri)
    model = load(store, pinned_model)
    if model.split.source == split.source:
        raise UsageError(
            f"--like {uri}: it was already trained on classes {model.split.source}; give another half with --split"
        )
    name = pinned_model.name.removesuffix(model.split.suffix) + split.suffix
    spec = replace(model.spec, n_classes=len(split.source))
    candidate = Candidate(spec, model.recipe, origin=f"like {pinned_model.pinned.removeprefix('models:/')}")
    return FixedConfiguration(candidate, f"{name}-like", name, pinned_model.pinned)


def train_fixed(
    store: Store,
    fixed: FixedConfiguration,
    plan: RetrainingPlan,
    *,
    force: bool,
    workers: Workers,
    stopwatch: Stopwatch,
    take_over: bool,
    debug: bool,
) -> dict[str, Any]:
    """Train one configuration without a search and register it; arguments and result as in `retrain_and_register`."""
    candidate = fixed.candidate
    like = {"like": fixed.like} if fixed.like else {}
    work = identity(device=plan.device, **settings_params(candidate.spec, candidate.recipe), **plan.facts(), **like)
    tags = {"role": Role.STUDY, "study": fixed.study, "study_key": work.key}
    with locked(store.uri, "search", f"study-{work.key}"):
        parent = open_parent(
            store,
            "search",
            find=lambda: store.find(TUNING, **tags),
            start=lambda: store.start(TUNING, fixed.study, params=work.facts, tags=tags),
            params=work.facts,
            take_over=take_over,
        )
        run_id = str(parent.info.run_id)
        with store.ending(run_id):
            store.log_data(run_id, plan.half, "source")
            store.describe(run_id, describe_training(store, candidate.name, plan.split))
            stopwatch.lap("start")
            result = retrain_and_register(
                store,
                plan,
                [candidate],
                run_id=run_id,
                study=fixed.study,
                name=fixed.name,
                force=force,
                workers=workers,
                stopwatch=stopwatch,
                debug=debug,
            )
            store.describe(run_id, describe_training(store, candidate.name, plan.split, result))
    return result | {"n_trials": 0, "n_pruned": 0}
