"""Source networks as MLflow runs with their weights, below the sweep's parent. Later commands reuse them."""

from torch import Tensor

from fmnist_transfer.errors import SAME_COMMAND, UserError
from fmnist_transfer.identity import identity
from fmnist_transfer.logged_tasks import TrainedNetworks, Training, run_logged
from fmnist_transfer.store.model_format import load_weights
from fmnist_transfer.store.roles import TRANSFER, Role, settings_params
from fmnist_transfer.store.runs import Store
from fmnist_transfer.terminal.output import say
from fmnist_transfer.terminal.progress import Progress
from fmnist_transfer.workers.run import Workers
from sweeps.training.source_networks import PretrainingPlan, pretrain


def source_networks(
    store: Store, parent: str, plan: PretrainingPlan, n: int, workers: Workers, *, debug: bool
) -> tuple[dict[str, Tensor], ...]:
    """Train the missing source networks of replicates 0 ... n - 1; return the weights of all n.

    Raises Interrupted after a signal, and UserError if a network cannot be trained.

    Args:
        parent: run id of the sweep, whose lock the caller holds.
    """
    params = settings_params(plan.spec, plan.recipe) | {"seed": plan.seed}

    def training(replicate: int) -> Training:
        own = params | {"replicate": replicate}
        return Training(f"source r{replicate}", own, identity(device=plan.device, **own).key, plan.recipe.epochs)

    log = TrainedNetworks[int](store, TRANSFER, parent, Role.SOURCE, half=plan.half, training=training)
    todo = [replicate for replicate in range(n) if log.trained(replicate) is None]
    say(f"Source networks, one per replicate: {n - len(todo)} of {n} are there already")
    with Progress("source networks", len(todo)) as progress:
        run_logged(workers, pretrain, plan, todo, log=log, progress=progress, debug=debug)
    run_ids = [trained.run_id for replicate in range(n) if (trained := log.trained(replicate))]
    workers.stop.raise_if_set(f"{len(run_ids)} of {n} source networks trained; {SAME_COMMAND}")
    if missing := [replicate for replicate in range(n) if log.trained(replicate) is None]:
        raise UserError(f"source networks of replicates {missing} could not be trained; their runs in MLflow say why")
    return tuple(load_weights(store, run_id, plan.spec) for run_id in run_ids)
