"""The public API: `from fmnist_transfer import fit, Recipe`. docs/library.md shows how it is used.

Each name is imported when it is first asked for, so that a command parses its flags before torch is there.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fmnist_transfer.data import Examples as Examples
    from fmnist_transfer.data import Half as Half
    from fmnist_transfer.data import default_data_dir as default_data_dir
    from fmnist_transfer.data import fraction as fraction
    from fmnist_transfer.data import half_of as half_of
    from fmnist_transfer.data import load_half as load_half
    from fmnist_transfer.data import n_train as n_train
    from fmnist_transfer.data import nested_order as nested_order
    from fmnist_transfer.datasets import examples_of as examples_of
    from fmnist_transfer.errors import DataError as DataError
    from fmnist_transfer.errors import ModelError as ModelError
    from fmnist_transfer.errors import UsageError as UsageError
    from fmnist_transfer.errors import UserError as UserError
    from fmnist_transfer.evaluation import Scores as Scores
    from fmnist_transfer.evaluation import evaluate as evaluate
    from fmnist_transfer.evaluation import predict as predict
    from fmnist_transfer.model import CNN2 as CNN2
    from fmnist_transfer.model import REFERENCE_SPEC as REFERENCE_SPEC
    from fmnist_transfer.model import CNN2Spec as CNN2Spec
    from fmnist_transfer.model import fresh as fresh
    from fmnist_transfer.model import fresh_network as fresh_network
    from fmnist_transfer.model import weights_digest as weights_digest
    from fmnist_transfer.recipe import REFERENCE_RECIPE as REFERENCE_RECIPE
    from fmnist_transfer.recipe import Recipe as Recipe
    from fmnist_transfer.seeding import Streams as Streams
    from fmnist_transfer.training import Diverged as Diverged
    from fmnist_transfer.training import Epoch as Epoch
    from fmnist_transfer.training import History as History
    from fmnist_transfer.training import Result as Result
    from fmnist_transfer.training import choose_device as choose_device
    from fmnist_transfer.training import fit as fit
    from fmnist_transfer.training import fit_and_score as fit_and_score
    from fmnist_transfer.training import fit_classifier as fit_classifier
    from fmnist_transfer.training import prepare_process as prepare_process
    from fmnist_transfer.training import train_on_half as train_on_half

_NAMES = {
    "data": "Examples Half default_data_dir fraction half_of load_half n_train nested_order",
    "datasets": "examples_of",
    "errors": "DataError ModelError UsageError UserError",
    "evaluation": "Scores evaluate predict",
    "model": "CNN2 REFERENCE_SPEC CNN2Spec fresh fresh_network weights_digest",
    "recipe": "REFERENCE_RECIPE Recipe",
    "seeding": "Streams",
    "training": "Diverged Epoch History Result choose_device fit fit_and_score fit_classifier prepare_process "
    "train_on_half",
}
_HOMES = {name: home for home, names in _NAMES.items() for name in names.split()}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
