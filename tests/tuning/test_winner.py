"""By which a command that is run again finds what it registered."""

import dataclasses

import pytest

from fmnist_transfer import identity
from fmnist_transfer.data.examples import Half
from fmnist_transfer.data.split import DEFAULT_SPLIT, Split
from fmnist_transfer.logged_tasks import Trained
from fmnist_transfer.network.cnn2 import CNN2Spec
from fmnist_transfer.training.recipe import Recipe
from tuning.trainings import Candidate, Plan
from tuning.winner import Retrained, winner_key

CANDIDATE = Candidate("trial 003", CNN2Spec(), Recipe(), trial=3, search_score=0.9)
FIRST, SECOND = Trained("run", 0.8, 0.75), Trained("second", 0.7, 0.75)
RETRAINED = Retrained(CANDIDATE, (FIRST, SECOND))


@pytest.fixture
def plan(half: Half) -> Plan:
    return Plan(half, DEFAULT_SPLIT, seed=0, device="cpu", precision="float32")


def test_equal_work_with_equal_results_has_one_key(plan: Plan) -> None:
    renumbered = dataclasses.replace(CANDIDATE, name="trial 007", trial=7, search_score=0.95)  # of another study
    elsewhere = Retrained(renumbered, (FIRST._replace(run_id="another"), SECOND))
    assert winner_key([RETRAINED], plan, 2) == winner_key([elsewhere], plan, 2)


def test_whatever_decides_the_winner_is_in_its_key(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    deeper = dataclasses.replace(CANDIDATE, spec=CNN2Spec(convs_per_block=2))
    slower = dataclasses.replace(CANDIDATE, recipe=Recipe(learning_rate=1e-4))
    keys = [
        winner_key([RETRAINED], plan, 2),
        winner_key([RETRAINED], plan, 3),
        winner_key([RETRAINED, RETRAINED], plan, 2),
        *(winner_key([RETRAINED._replace(candidate=other)], plan, 2) for other in (deeper, slower)),
        winner_key([Retrained(CANDIDATE, (FIRST,))], plan, 2),  # the other seed failed
        winner_key([Retrained(CANDIDATE, (FIRST, SECOND._replace(val_accuracy=0.6)))], plan, 2),
        *(
            winner_key([RETRAINED], dataclasses.replace(plan, **change), 2)
            for change in (
                {"seed": 1},
                {"device": "cuda"},
                {"precision": "bf16"},
                {"split": Split((5, 6, 7, 8, 9))},
                {"half": dataclasses.replace(plan.half, data_sha256="other images")},
            )
        ),
    ]
    monkeypatch.setattr(identity, "NUMERICS_VERSION", identity.NUMERICS_VERSION + 1)
    keys.append(winner_key([RETRAINED], plan, 2))
    assert len(set(keys)) == len(keys)
