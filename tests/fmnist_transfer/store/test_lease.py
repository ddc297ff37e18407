"""Who lives and who owns, on a store that machines share: here a sqlite store that is taken for one."""

import dataclasses
import json
import time

import pytest

from fmnist_transfer.errors import BusyError, TakenOver
from fmnist_transfer.store import lease as lease_module
from fmnist_transfer.store.lease import Lease, own_or_help
from fmnist_transfer.store.lock import Owner
from fmnist_transfer.store.pending_results import PendingResult
from fmnist_transfer.store.roles import TRANSFER
from fmnist_transfer.store.runs import Store

ALPHA = Owner("alpha", 4711, "boot", 100.0)


@pytest.fixture
def shared(store: Store, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setattr(lease_module, "LEASE_SECONDS", 0.3)
    monkeypatch.setattr(lease_module, "BEAT_SECONDS", 0.05)
    return dataclasses.replace(store, uri="http://127.0.0.1:5000")


@pytest.fixture
def lease(shared: Store) -> Lease:
    return Lease(shared, shared.start(TRANSFER, "sweep"))


def params(lease: Lease) -> dict[str, str]:
    return dict(lease._store.client.get_run(lease._run_id).data.params)


def give_to(lease: Lease, owner: Owner, n: int = 1) -> None:
    lease._store.log(lease._run_id, params={f"owner.{n}": json.dumps(dataclasses.asdict(owner))})


def test_nobody_s_is_taken_and_taken_once(lease: Lease) -> None:
    assert lease.take("sweep") is None
    assert lease.take("sweep") is None
    assert Lease.owner_of(params(lease)) == (1, Owner.this_process())
    assert lease.is_owner()


def test_a_living_owner_of_another_machine_keeps_it(lease: Lease, monkeypatch: pytest.MonkeyPatch) -> None:
    give_to(lease, ALPHA)
    monkeypatch.setattr(lease_module, "LEASE_SECONDS", 30.0)
    monkeypatch.setattr(lease_module, "LOOK_SECONDS", 0.02)
    lease._store.client.set_tag(lease._run_id, f"sign.{ALPHA.name}", "0")  # which may have been its last
    with lease.alive():  # this one's own signs say nothing of the other
        n = 0

        def beat(_: float) -> None:
            nonlocal n
            n += 1
            lease._store.client.set_tag(lease._run_id, f"sign.{ALPHA.name}", str(n))

        monkeypatch.setattr(lease_module.time, "sleep", beat)
        assert lease.take("sweep") == ALPHA
    assert n == 1
    assert not lease.is_owner()


def test_a_silent_owner_loses_it_after_a_lease(lease: Lease, capsys: pytest.CaptureFixture[str]) -> None:
    give_to(lease, ALPHA)
    begin = time.monotonic()
    assert lease.take("sweep") is None
    assert time.monotonic() - begin >= 0.3
    assert "This sweep belongs to host alpha, pid 4711; waiting up to 0 s for a sign of life" in capsys.readouterr().out
    assert Lease.owner_of(params(lease))[0] == 2


def test_an_owner_of_this_machine_is_judged_at_once(lease: Lease, monkeypatch: pytest.MonkeyPatch) -> None:
    give_to(lease, dataclasses.replace(Owner.this_process(), pid=2**22 + 1))
    monkeypatch.setattr(lease_module, "LEASE_SECONDS", 3_600.0)
    assert lease.take("sweep") is None


def test_two_machines_of_one_name_are_not_taken_for_one(lease: Lease) -> None:
    namesake = dataclasses.replace(Owner.this_process(), pid=2**22 + 1, boot="another machine's")
    assert not lease.is_dead(namesake, {f"sign.{namesake.name}": "1"})


def test_what_has_ended_is_free(lease: Lease) -> None:
    give_to(lease, ALPHA)
    lease._store.end(lease._run_id)
    assert lease.take("sweep") is None


def test_a_lease_counts_the_watcher_s_time(lease: Lease, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1_000.0
    monkeypatch.setattr(lease_module.time, "monotonic", lambda: now)
    assert not lease.is_dead(ALPHA, {f"sign.{ALPHA.name}": "7"})
    now += 0.2
    assert not lease.is_dead(ALPHA, {f"sign.{ALPHA.name}": "7"})
    now += 0.2
    assert lease.is_dead(ALPHA, {f"sign.{ALPHA.name}": "7"})
    assert not lease.is_dead(ALPHA, {f"sign.{ALPHA.name}": "8"})


def test_a_file_s_owner_needs_no_lease(store: Store) -> None:
    lease = Lease(store, store.start(TRANSFER, "sweep"))
    with lease.alive():
        assert lease.take("sweep") is None
    assert params(lease) == {}
    assert lease.is_dead(ALPHA, {})  # no other machine uses a file


def test_a_run_that_another_has_ended_takes_no_result(shared: Store) -> None:
    run_id = shared.start(TRANSFER, "cell")
    shared.end(run_id, "KILLED")
    with pytest.raises(TakenOver, match="is KILLED: another process has taken it over"):
        shared.conclude(PendingResult(run_id, "FINISHED", [("final/val_loss", 0.1, 0)]))
    assert shared.client.get_run(run_id).data.metrics == {}
    assert list(shared.pending.endings()) == []


def test_own_or_help() -> None:
    calls: list[str] = []

    def busy_then(result: str, n_busy: int) -> str:
        calls.append("own")
        if calls.count("own") <= n_busy:
            raise BusyError("another process works on this sweep (alpha); wait for it")
        return result

    def run(n_busy: int, *, may_help: bool = True, is_finished: bool = False) -> str:
        calls.clear()
        return own_or_help(
            lambda: busy_then("mine", n_busy),
            (lambda: calls.append("help")) if may_help else None,
            lambda: "left",
            lambda: is_finished,
        )

    assert (run(0), calls) == ("mine", ["own"])
    assert (run(1), calls) == ("mine", ["own", "help", "own"])  # the owner has died meanwhile
    assert (run(9), calls) == ("left", ["own", "help", "own"])
    assert (run(9, is_finished=True), calls) == ("left", ["own", "help"])
    with pytest.raises(BusyError):
        run(1, may_help=False)
