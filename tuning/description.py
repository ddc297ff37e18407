"""What a search's parent run says of itself in the MLflow UI, and where it sends the reader. Markdown out.

The UI folds all but the first lines away, so the answer comes first.
"""

from typing import TYPE_CHECKING, Any

from fmnist_transfer.console import counted
from fmnist_transfer.split import digits
from fmnist_transfer.ui import RETRAINED, TRIALS, TUNING, experiment_page, model_page, picture

if TYPE_CHECKING:
    from tuning.fixed import FixedConfiguration
    from tuning.stages import SearchContext

INLINE = "figures/history.png"  # which of the search's figures
INLINE_COPY = "figures/inline.png"


def of_search(context: "SearchContext", n_trials: int, result: dict[str, Any] | None = None, pictured: str = "") -> str:
    """Of a search that is under way, or, with what it found, of a finished one.

    Args:
        n_trials: that it is to have, or that it had.
        pictured: the run that has its picture, for which a few trials are too few.
    """
    settings = context.settings
    limit = "of any size" if settings.mflops_limit is None else f"of at most {settings.mflops_limit:g} MFLOPs an image"
    what = (
        f"Search for a CNN {limit} on Fashion-MNIST classes {digits(context.split.source)}: "
        f"{counted(n_trials, 'trial')} of up to {counted(settings.epochs, 'epoch')}."
    )
    shown = [picture(pictured, INLINE_COPY, "validation accuracy of each trial")] if pictured else []
    return "\n\n".join([f"{what} {_found(result)}", f"Look at: {_tables(context)}", *shown])


def of_training(context: "SearchContext", fixed: "FixedConfiguration", result: dict[str, Any] | None = None) -> str:
    """Of a configuration that was trained without a search."""
    what = (
        f"One configuration ({fixed.candidate.name}), trained on Fashion-MNIST classes {digits(context.split.source)} "
        f"without a search."
    )
    return f"{what} {_found(result)}\n\nLook at: {_tables(context)}"


def _found(result: dict[str, Any] | None) -> str:
    if result is None:
        return "**Not finished yet.**"
    name, _, version = str(result["model_uri"]).removeprefix("models:/").partition("/")
    scores = {
        "best of the search, which is optimistic": result["best_of_n"],
        "validation accuracy, trained again": result["retrained_mean"],
        "test accuracy": result["test_accuracy"],
    }
    listed = ", ".join(f"{label} {value:.2%}" for label, value in scores.items() if value is not None)
    return (
        f"Registered: [{name} version {version}]({model_page(name, version)}): {listed}. Transfer it: "
        f"`python -m sweeps.transfer --model-uri {result['model_uri']}`"
    )


def _tables(context: "SearchContext") -> str:
    experiment_id = context.store.experiment(TUNING)
    trials, retrained = (experiment_page(experiment_id, view) for view in (TRIALS, RETRAINED))
    return f"[trials, the best first]({trials}) · [the best, trained again]({retrained})"
