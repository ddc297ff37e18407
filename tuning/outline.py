"""What a search is about to run, and for about how long: said before the first trial."""

from typing import TYPE_CHECKING

import optuna

from fmnist_transfer.console import about, counted
from fmnist_transfer.forecast import seconds_per_pass, training_passes
from tuning.space import first_trial, suggest
from tuning.study import finished

if TYPE_CHECKING:
    from tuning.stages import SearchContext

# Of the first, hand-made trial's seconds, what one takes on average: 54 of 79 s in a default search (10 of 24 pruned).
TRIAL_SHARE = 0.7


def outline(context: "SearchContext", study: optuna.Study) -> dict[str, str]:
    """What is about to run, and for about how long."""
    settings, workers = context.settings, context.workers
    limit = "" if settings.mflops_limit is None else f", networks of at most {settings.mflops_limit:g} MFLOPs an image"
    n_done = len(finished(study))
    n_open = max(0, settings.trials - n_done)
    best = "the best" if settings.top == 1 else f"the best {settings.top}"
    lines = {
        "trials": f"{settings.trials} of up to {counted(settings.epochs, 'epoch')}{limit}"
        + (f"; {n_done} done already" * bool(n_done)),
        "then": f"{best} trained again, {counted(settings.retrain_seeds, 'seed')} each; the winner is registered",
        "on": f"{counted(workers.n, 'worker')}, {context.device}" if workers.engine == "local" else "Ray",
    }
    if workers.engine != "local" or not n_open:
        return lines
    spec, recipe = suggest(
        optuna.trial.FixedTrial(first_trial(settings.mflops_limit)),
        epochs=settings.epochs,
        max_mflops=settings.mflops_limit,
    )
    if (per_pass := seconds_per_pass(spec, recipe, context.device, settings.precision)) is not None:
        one = per_pass * training_passes(recipe, len(context.half.train), len(context.half.val))
        seconds = one * (TRIAL_SHARE * n_open + settings.top * settings.retrain_seeds) / workers.n
        lines["takes"] = about(seconds)
    return lines
