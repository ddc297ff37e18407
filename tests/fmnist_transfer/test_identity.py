"""Keys: equal for equal work, different for anything that a result depends on."""

import json
from typing import Any

import pytest
import torch

from fmnist_transfer import identity as module
from fmnist_transfer.identity import identity

FACTS: dict[str, Any] = {"split": "01234/56789", "seed": 0, "recipe": {"epochs": 8, "flip": True}}


def key(device: str = "cpu", **changes: Any) -> str:
    return identity(device=device, **FACTS | changes).key


def test_equal_facts_in_any_order_have_one_key() -> None:
    turned = {name: FACTS[name] for name in reversed(FACTS)} | {"recipe": {"flip": True, "epochs": 8}}
    assert list(turned) != list(FACTS)
    assert identity(device="cpu", **turned).key == key()
    assert len(bytes.fromhex(key())) == 8


@pytest.mark.parametrize(
    "changes",
    [{"split": "56789/01234"}, {"seed": 1}, {"recipe": {"epochs": 9, "flip": True}}, {"more": None}],
)
def test_any_fact_changes_the_key(changes: dict[str, Any]) -> None:
    assert key(**changes) != key()


def test_the_kind_of_device_changes_the_key_and_its_number_does_not() -> None:
    assert key("cuda:0") == key("cuda:1") == key("cuda")
    assert len({key(device) for device in ("cpu", "cuda", "mps")}) == 3


def test_other_numerics_change_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    before = key()
    monkeypatch.setattr(module, "NUMERICS_VERSION", module.NUMERICS_VERSION + 1)
    assert key() != before


def test_a_patch_of_torch_changes_no_key_and_a_release_does(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = []
    for version in ("2.11.0+cpu", "2.11.1", "2.12.0"):
        monkeypatch.setattr(torch, "__version__", version)
        keys.append(key())
    assert keys[0] == keys[1] != keys[2]


def test_facts_are_what_was_given_and_what_results_depend_on() -> None:
    facts = identity(device="cuda:1", **FACTS).facts
    assert facts == FACTS | {
        "numerics_version": module.NUMERICS_VERSION,
        "torch": ".".join(torch.__version__.split(".")[:2]),
        "device": "cuda",
    }
    assert json.loads(json.dumps(facts)) == facts
    assert set(FACTS) == {"split", "seed", "recipe"}  # what was given is left as it is
