"""The Markdown description of a search's parent run in the MLflow UI."""

from typing import Any

from fmnist_transfer.store.links import experiment_page, model_page
from fmnist_transfer.store.roles import TUNING, View
from fmnist_transfer.store.runs import Store

SCORES = {  # key of the result -> label
    "best_of_n": "best of the search (optimistic)",
    "retrained_mean": "validation accuracy, trained again",
    "test_accuracy": "test accuracy",
}


def description(store: Store, subject: str, result: dict[str, Any] | None = None, picture: str = "") -> str:
    """Describe a running search or, given its `result`, a finished one; the result first, as the UI folds the rest.

    `subject` is a sentence on what is trained.
    """
    outcome = "**Not finished yet.**"
    if result:
        uri = str(result["model_uri"])
        name, _, version = uri.removeprefix("models:/").partition("/")
        scores = ", ".join(f"{label} {result[key]:.2%}" for key, label in SCORES.items() if result[key] is not None)
        outcome = (
            f"Registered: [{name} version {version}]({model_page(name, version)}): {scores}. Transfer it: "
            f"`python -m sweeps.transfer --model-uri {uri}`"
        )
    experiment_id = store.experiment(TUNING)
    trials, retrained = (experiment_page(experiment_id, view) for view in (View.TRIALS, View.RETRAINED))
    tables = f"Look at: [trials, the best first]({trials}) · [the best, trained again]({retrained})"
    return "\n\n".join(filter(None, [f"{subject} {outcome}", tables, picture]))
