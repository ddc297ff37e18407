"""The Markdown description of a search's parent run in the MLflow UI.

The UI shows only the first lines until it is expanded, so the result comes first.
"""

from typing import Any

from fmnist_transfer.data.split import Split, digits
from fmnist_transfer.store.links import experiment_page, model_page, picture
from fmnist_transfer.store.roles import TUNING, View
from fmnist_transfer.store.runs import Store
from fmnist_transfer.terminal.output import counted

INLINE = "figures/history.png"  # the figure shown in the description
INLINE_COPY = "figures/inline.png"


def describe_search(
    store: Store,
    split: Split,
    *,
    n_trials: int,
    epochs: int,
    mflops_limit: float | None,
    result: dict[str, Any] | None = None,
    pictured: str = "",
) -> str:
    """Describe a running search or, given its `result`, a finished one.

    Args:
        n_trials: number of trials, planned or finished.
        pictured: id of the run with the search's figures; empty if there were too few trials.
    """
    limit = "of any size" if mflops_limit is None else f"of at most {mflops_limit:g} MFLOPs per image"
    text = (
        f"Search for a CNN {limit} on Fashion-MNIST classes {digits(split.source)}: {counted(n_trials, 'trial')} of "
        f"up to {counted(epochs, 'epoch')}."
    )
    shown = [picture(pictured, INLINE_COPY, "validation accuracy of each trial")] if pictured else []
    return "\n\n".join([f"{text} {_winner(result)}", f"Look at: {_tables(store)}", *shown])


def describe_training(store: Store, name: str, split: Split, result: dict[str, Any] | None = None) -> str:
    """Describe the training of configuration `name` without a search."""
    text = f"One configuration ({name}), trained on Fashion-MNIST classes {digits(split.source)} without a search."
    return f"{text} {_winner(result)}\n\nLook at: {_tables(store)}"


def _winner(result: dict[str, Any] | None) -> str:
    if result is None:
        return "**Not finished yet.**"
    name, _, version = str(result["model_uri"]).removeprefix("models:/").partition("/")
    scores = {
        "best of the search (optimistic)": result["best_of_n"],
        "validation accuracy, trained again": result["retrained_mean"],
        "test accuracy": result["test_accuracy"],
    }
    listed = ", ".join(f"{label} {value:.2%}" for label, value in scores.items() if value is not None)
    return (
        f"Registered: [{name} version {version}]({model_page(name, version)}): {listed}. Transfer it: "
        f"`python -m sweeps.transfer --model-uri {result['model_uri']}`"
    )


def _tables(store: Store) -> str:
    experiment_id = store.experiment(TUNING)
    trials, retrained = (experiment_page(experiment_id, view) for view in (View.TRIALS, View.RETRAINED))
    return f"[trials, the best first]({trials}) · [the best, trained again]({retrained})"
