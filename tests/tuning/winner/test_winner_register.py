"""By which a command that is run again finds what it registered."""

import dataclasses

import pytest

from fmnist_transfer import identity
from fmnist_transfer.data.examples import Half
from fmnist_transfer.data.split import DEFAULT_SPLIT, Split
from fmnist_transfer.network.cnn2 import CNN2Spec
from fmnist_transfer.training.recipe import Recipe
from tuning.winner.plan import Candidate, Retrained, RetrainingPlan
from tuning.winner.register import winner_key

CANDIDATE = Candidate(CNN2Spec(), Recipe(), trial=3, search_score=0.9)
RETRAINED = Retrained(CANDIDATE, (0.8, 0.7), "run", 0.75, 1.0)


@pytest.fixture
def plan(half: Half) -> RetrainingPlan:
    return RetrainingPlan(half, DEFAULT_SPLIT, seed=0, n_seeds=2, device="cpu", precision="float32")


def test_equal_work_with_equal_results_has_one_key(plan: RetrainingPlan) -> None:
    renumbered = dataclasses.replace(CANDIDATE, trial=7, search_score=0.95)  # of another study
    elsewhere = dataclasses.replace(RETRAINED, candidate=renumbered, run_id="another", seconds=9.0)
    assert winner_key([RETRAINED], plan) == winner_key([elsewhere], plan)


def test_whatever_decides_the_winner_is_in_its_key(plan: RetrainingPlan, monkeypatch: pytest.MonkeyPatch) -> None:
    deeper = dataclasses.replace(CANDIDATE, spec=CNN2Spec(convs_per_block=2))
    slower = dataclasses.replace(CANDIDATE, recipe=Recipe(learning_rate=1e-4))
    keys = [
        winner_key([RETRAINED], plan),
        winner_key([RETRAINED, RETRAINED], plan),
        *(winner_key([dataclasses.replace(RETRAINED, candidate=other)], plan) for other in (deeper, slower)),
        winner_key([dataclasses.replace(RETRAINED, val_accuracies=(0.8,))], plan),  # the other seed failed
        winner_key([dataclasses.replace(RETRAINED, val_accuracies=(0.8, 0.6))], plan),
        *(
            winner_key([RETRAINED], dataclasses.replace(plan, **change))
            for change in (
                {"seed": 1},
                {"n_seeds": 3},
                {"device": "cuda"},
                {"precision": "bf16"},
                {"split": Split((5, 6, 7, 8, 9))},
                {"half": dataclasses.replace(plan.half, data_sha256="other images")},
            )
        ),
    ]
    monkeypatch.setattr(identity, "NUMERICS_VERSION", identity.NUMERICS_VERSION + 1)
    keys.append(winner_key([RETRAINED], plan))
    assert len(set(keys)) == len(keys)
