"""Nodes of a cluster that lack what a command needs, with a fake Ray: no cluster is started."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("ray", reason="Ray is not installed (pip install 'fmnist-transfer[ray]')")

from fmnist_transfer.errors import UsageError
from fmnist_transfer.workers import ray_pool
from fmnist_transfer.workers.ray_pool import RayActor, RayPool


class FakeRay:
    """A cluster of one node with two CPUs; actors live in this process, and a call returns its result at once."""

    def __init__(self, place: Any):
        self.place = place  # of every actor

    def remote(self, **_: Any) -> Any:
        actor = SimpleNamespace(place=SimpleNamespace(remote=self.place))
        made = SimpleNamespace(remote=lambda: actor)
        return lambda actor_class: SimpleNamespace(options=lambda **options: made)

    def is_initialized(self) -> bool:
        return True

    def nodes(self) -> list[dict[str, Any]]:
        return [{"NodeID": "a", "NodeManagerHostname": "old", "Alive": True, "Resources": {"CPU": 2.0}}]

    def wait(self, references: Sequence[Any], **_: Any) -> tuple[list[Any], list[Any]]:
        return list(references), []

    def get(self, reference: Any) -> Any:
        return reference


def pool_on(monkeypatch: pytest.MonkeyPatch, bf16_on: str | None, **features: bool) -> RayPool:
    """Two workers on a node whose CPU has these features."""
    ray = FakeRay(lambda device: RayActor.place(object(), device))  # type: ignore[arg-type]
    ray.get_runtime_context = lambda: SimpleNamespace(get_node_id=lambda: "a")
    monkeypatch.setattr(ray_pool, "ray", ray)
    monkeypatch.setattr(ray_pool.socket, "gethostname", lambda: "old")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: features)
    return RayPool(2, 0.0, bf16_on)


def test_a_node_without_bf16_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = pool_on(monkeypatch, "cpu", avx512_f=True)
    with pytest.raises(UsageError, match=r"node old\b.*avx512_bf16.*--precision float32") as error:
        pool.idle()
    assert error.value.exit_status == 2


@pytest.mark.parametrize(("bf16_on", "has_bf16"), [("cpu", True), (None, False)])
def test_other_nodes_are_used(bf16_on: str | None, has_bf16: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = pool_on(monkeypatch, bf16_on, avx512_bf16=has_bf16)
    assert pool.idle()
