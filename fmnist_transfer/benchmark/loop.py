"""Measure how fast `fit` trains, compared with the notebook's loop and a matrix product; all take turns in a round."""

import itertools
import statistics
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fmnist_transfer.benchmark import tasks
from fmnist_transfer.benchmark.measurements import Measurements
from fmnist_transfer.benchmark.tasks import Workload, images_per_s, results
from fmnist_transfer.data.examples import Half
from fmnist_transfer.errors import UserError
from fmnist_transfer.network.cnn2 import HAND_MADE_SPEC, REFERENCE_SPEC, CNN2Spec
from fmnist_transfer.network.cost import training_mflops
from fmnist_transfer.terminal.output import say
from fmnist_transfer.training.device import resolve_precision
from fmnist_transfer.training.recipe import HAND_MADE_RECIPE, REFERENCE_RECIPE, Recipe
from fmnist_transfer.training.score import Epoch
from fmnist_transfer.workers.run import Workers

SPEED_SPEC = CNN2Spec(channels=(32, 64), kernel_size=3, normalisation="batch")
SPEED_RECIPE = Recipe(batch_size=256, learning_rate=3e-3, weight_decay=1e-2, epochs=2)
GOAL = 0.9333  # the original report's validation accuracy on FMNIST-2
# These reach the goal within three epochs: 93.72, 93.68 and 93.54 % with seeds 0, 1 and 2, in bf16. Two epochs of
# batches of 96 or 128, or 1.5 of 64, reach it with some seeds only.
GOAL_SPEC = CNN2Spec(channels=(16, 32), kernel_size=3, fc1=128, fc2=64, fc_dropout=0.0)
GOAL_RECIPE = Recipe(batch_size=96, learning_rate=5e-3, weight_decay=5e-2, epochs=3)
NOTEBOOK_EPOCHS_TO_GOAL = 43  # with the reference recipe (one run, seed 0, 181 s on two cores)
GOAL_IMAGES = 2_560, 512  # equal shares of training and validation images, for the epochs that are measured


@dataclass(frozen=True)
class Contenders:
    workers: Workers  # for `fit`
    notebook_worker: Workers  # one, with torch's defaults
    into: Measurements

    def measure(self, half: Half, data_dir: Path, device: str, parts: Collection[str], quick: bool) -> None:
        precision, reason = resolve_precision("auto", device)
        say(f"Precision {precision}: {reason}")
        work = Workload(SPEED_SPEC, SPEED_RECIPE, half, device, data_dir, precision)
        if "loop" in parts:
            n_train, n_val, n_rounds = (4_000, 1_000, 3) if quick else (10_000, len(half.val), 5)
            self.measure_loop(work.first(n_train, n_val), n_rounds)
        if "goal" in parts:
            self.measure_goal(replace(work, spec=GOAL_SPEC, recipe=GOAL_RECIPE), 1 if quick else 3)

    def measure_loop(self, work: Workload, n_rounds: int) -> None:
        """Measure images per second of the notebook's loop, which uses all threads, and of `fit`; and the limit."""
        say(f"Images per second: the notebook's loop, then `fit`, {n_rounds} rounds of {len(work.half.train)} images")
        self.notebook(work, 0)  # warm-up
        results(self.workers, tasks.fit_once, work, range(self.workers.n))
        rounds = [self.measure_round(work, number) for number in range(n_rounds)]
        for name in rounds[0]:
            self.into.add(name, [values[name] for values in rounds])

    def measure_round(self, work: Workload, number: int) -> dict[str, float]:
        """Return a round's measurements by name. Fractions are of the matrix product in the same precision."""
        n, used = self.workers.n, work.precision
        seeds = range(number * n, (number + 1) * n)
        works = {each.precision: each for each in (replace(work, precision="float32"), work)}
        notebooks = {key: self.notebook(each, number) for key, each in works.items()}
        hand_made = {key: each.training(HAND_MADE_SPEC, HAND_MADE_RECIPE) for key, each in works.items()}
        default = {key: self.rate(each, seeds) for key, each in hand_made.items()}
        limits = {key: sum(results(self.workers, tasks.matrix_product, each, seeds)) for key, each in works.items()}
        reference = self.rate(work.training(REFERENCE_SPEC, REFERENCE_RECIPE), seeds)
        (alone,) = results(self.workers, tasks.fit_once, work, [number])
        fits = results(self.workers, tasks.fit_once, work, seeds) if n > 1 else [alone]
        alone_rate, ours = images_per_s(work, alone), sum(images_per_s(work, epochs) for epochs in fits)
        n_images = work.recipe.epochs * len(work.half.train)
        naive = {key: n_images / sum(epoch.train_seconds for epoch in epochs) for key, epochs in notebooks.items()}
        per_image = {spec: training_mflops(spec) / 1e3 for spec in (work.spec, HAND_MADE_SPEC, REFERENCE_SPEC)}  # GFLOP
        return {
            **{f"naive_{key}_images_per_s".replace("float32_", ""): rate for key, rate in naive.items()},
            "ours_images_per_s, one worker": alone_rate,
            "ours_images_per_s": ours,
            "ratio_vs_naive": ours / max(naive.values()),
            "fraction_of_limit": ours * per_image[work.spec] / limits[used],
            "worker_scaling": ours / alone_rate,
            "default_images_per_s": default[used],
            "default_fraction_of_limit": default[used] * per_image[HAND_MADE_SPEC] / limits[used],
            "default_fraction_of_limit, float32": default["float32"] * per_image[HAND_MADE_SPEC] / limits["float32"],
            "default_bf16_speedup": default[used] / default["float32"],
            "reference_images_per_s": reference,
            "reference_fraction_of_limit": reference * per_image[REFERENCE_SPEC] / limits[used],
            "matrix product": limits[used],
            "validation accuracy, naive": notebooks["float32"][-1].val_accuracy,
            "validation accuracy, ours": statistics.mean(epochs[-1].val_accuracy for epochs in fits),
        }

    def notebook(self, work: Workload, seed: int) -> list[Epoch]:
        (epochs,) = results(self.notebook_worker, tasks.run_notebook, work, [seed])
        return epochs

    def rate(self, work: Workload, seeds: Sequence[int]) -> float:
        """Measure images per second of all workers together."""
        return sum(images_per_s(work, epochs) for epochs in results(self.workers, tasks.fit_once, work, seeds))

    def measure_goal(self, work: Workload, n_seeds: int) -> None:
        """Measure `fit`'s seconds to 93.33 % on FMNIST-2; extrapolate the notebook's, with the reference recipe."""
        say(f"Seconds to {GOAL:.2%} validation accuracy ...")
        ours = [seconds_to_goal(*results(self.workers, tasks.fit_once, work, [seed])) for seed in range(n_seeds)]
        some = work.training(REFERENCE_SPEC, REFERENCE_RECIPE).first(*GOAL_IMAGES)
        last = self.notebook(replace(some, precision="float32"), 0)[-1]
        naive = NOTEBOOK_EPOCHS_TO_GOAL * last.seconds * len(work.half.train) / len(some.half.train)
        self.into.add("seconds to 93.33 %, naive", [naive])
        self.into.add("seconds to 93.33 %, ours", ours)
        self.into.add("time_to_reference_ratio", [seconds / naive for seconds in ours])


def seconds_to_goal(epochs: Sequence[Epoch]) -> float:
    """Return the seconds until an epoch reaches `GOAL`. Raises UserError if none does."""
    for epoch, seconds in zip(epochs, itertools.accumulate(epoch.seconds for epoch in epochs), strict=True):
        if epoch.val_accuracy >= GOAL:
            return seconds
    best = max(epoch.val_accuracy for epoch in epochs)
    raise UserError(f"validation accuracy {best:.2%} misses {GOAL:.2%}, so no time is reported")
