"""Link a sweep and the model it starts from, in both directions, in MLflow's UI."""

import re

from mlflow.entities import LoggedModelInput
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from fmnist_transfer.store.links import run_page
from fmnist_transfer.store.registry import PinnedModel
from fmnist_transfer.store.retry import reason
from fmnist_transfer.store.roles import TRANSFER
from fmnist_transfer.store.runs import Store
from fmnist_transfer.terminal.output import warn

SWEEP_TAG = "sweep."  # + run id: tag of a version; its value is the sweep's name
DESCRIPTION_LENGTH = 5_000  # characters, the limit of MLflow's registry
MORE_LENGTH = 60  # characters reserved for the last line
SWEEPS_HEAD = "\n\nSweeps that start from it:"
SWEEPS_LINE = re.compile(r"- \[.*\]\(#/experiments/\S+\), run `\w+`|- and \d+ more, which the tags name")


def note_sweep(store: Store, reference: PinnedModel, run_id: str, name: str) -> None:
    """Log the model as an input of the sweep's parent run, and list the sweep in the version's tags and description."""
    store.client.log_inputs(run_id, models=[LoggedModelInput(reference.model_id)])
    if reference.version is None:
        return
    try:
        store.client.set_model_version_tag(*reference.version, f"{SWEEP_TAG}{run_id}", name)
        version = store.client.get_model_version(*reference.version)
        if text := _with_sweeps(version, store.experiment(TRANSFER), run_id):
            store.client.update_model_version(*reference.version, description=text)
    except MlflowException as error:  # for example, this user may only read the model, which suffices for a sweep
        warn(f"cannot list this sweep in the description of {reference.pinned}: {reason(error)}. The sweep goes on")


def _with_sweeps(version: ModelVersion, experiment_id: str, run_id: str) -> str:
    """The version's description with a list of its sweeps, `run_id` first; empty if the user's text fills it."""
    above, _, below = (version.description or "").partition(SWEEPS_HEAD)
    own = "\n".join(line for line in below.splitlines() if not SWEEPS_LINE.fullmatch(line)).strip()
    own = f"\n\n{own}" if own else ""
    sweeps = sorted(key.removeprefix(SWEEP_TAG) for key in version.tags if key.startswith(SWEEP_TAG))
    text, n_left_out = f"{above}{SWEEPS_HEAD}\n", 0
    for sweep_id in sorted(sweeps, key=lambda sweep_id: sweep_id != run_id):
        line = f"\n- [{version.tags[SWEEP_TAG + sweep_id]}]({run_page(experiment_id, sweep_id)}), run `{sweep_id}`"
        if len(text) + len(line) + MORE_LENGTH + len(own) > DESCRIPTION_LENGTH:
            n_left_out += 1
        else:
            text += line
    if n_left_out == len(sweeps):
        return ""
    return text + (f"\n- and {n_left_out} more, which the tags name" if n_left_out else "") + own
