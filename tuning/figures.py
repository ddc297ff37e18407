"""Figures of a search: optimisation history, parameter importances, slices, expected best against trials."""

import warnings
from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import optuna.visualization.matplotlib as optuna_figures
from matplotlib.figure import Figure
from optuna import Study
from optuna.trial import TrialState

from fmnist_transfer.store.links import picture
from fmnist_transfer.store.runs import Store

INLINE = "figures/inline.png"  # a smaller copy of the history


def log_figures(store: Store, run_id: str, study: Study) -> str:
    """Log the search's figures unless fewer than four trials completed. Returns Markdown that shows one."""
    completed = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if len(completed) < 4:
        return ""
    scores = [trial.value or 0.0 for trial in completed]
    store.log_figures(run_id, lambda: _figures(study, scores), ("figures/history.png", INLINE))
    return picture(run_id, INLINE, "validation accuracy of each trial")


def _figures(study: Study, scores: Sequence[float]) -> dict[str, Figure]:
    figure, axes = plt.subplots(figsize=(6, 4))
    axes.plot(np.arange(1, len(scores) + 1), 100 * expected_best(scores), marker="o")
    axes.set(xlabel="completed trials", ylabel="expected best validation accuracy (%)")
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figures = {"figures/expected_best.png": figure}
    for name, plot in (
        ("history", optuna_figures.plot_optimization_history),
        ("importances", optuna_figures.plot_param_importances),
        ("slices", optuna_figures.plot_slice),
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the figures are experimental, and an axis may have a single value
            figure = np.asarray(plot(study)).flat[0].get_figure()
        if name == "slices":
            figure.set_size_inches(2.6 * len(figure.axes), 4)
        else:
            figure.tight_layout()
        figures[f"figures/{name}.png"] = figure
    return figures


def expected_best(scores: Sequence[float]) -> np.ndarray:
    """Expected maximum of n = 1 ... N draws with replacement from N scores, [N] (Dodge et al. 2019).

    Exact for independent trials, such as a random search's; an approximation for TPE's, which depend on each other.
    """
    ordered = np.sort(np.asarray(scores, float))
    n = len(ordered)
    cumulative = (np.arange(n + 1) / n)[None, :] ** np.arange(1, n + 1)[:, None]
    return np.diff(cumulative, axis=1) @ ordered
