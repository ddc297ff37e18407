"""The parent run of a sweep or a search has one driver, also where several machines share the store."""

import threading
from dataclasses import replace

import pytest

from fmnist_transfer.errors import BusyError
from fmnist_transfer.store.lock import Owner
from fmnist_transfer.store.opening import check_owner, open_parent
from fmnist_transfer.store.roles import TRANSFER
from fmnist_transfer.store.runs import Run, Store

HERE = Owner.this_process()
ELSEWHERE = replace(HERE, machine="another machine", pid=1)  # of the same name


@pytest.fixture
def parent(store: Store) -> Run:
    """A RUNNING run of another machine."""
    run_id = store.start(TRANSFER, "a sweep")
    store.log(run_id, tags=ELSEWHERE.to_tags())
    return store.client.get_run(run_id)


def test_another_machine_is_refused_while_the_parent_is_running(store: Store, parent: Run) -> None:
    with pytest.raises(BusyError, match="--take-over") as refused:
        check_owner(True, parent, "sweep", take_over=False)
    assert refused.value.exit_status == 5
    check_owner(True, parent, "sweep", take_over=True)
    check_owner(False, parent, "sweep", take_over=False)  # a store of this machine alone, whose lock says enough
    store.end(parent.info.run_id)
    check_owner(True, store.client.get_run(parent.info.run_id), "sweep", take_over=False)


def parents(store: Store) -> list[Run]:
    return store.find(TRANSFER, work="w")


def start(store: Store) -> str:
    return store.start(TRANSFER, "a sweep", tags={"work": "w"})


def test_a_parent_is_started_once_and_reopened(store: Store) -> None:
    opened = []
    for _ in range(2):
        how = {"find": lambda: parents(store), "start": lambda: start(store), "params": {"seed": "0"}}
        opened.append(open_parent(store, "sweep", **how, take_over=False).info.run_id)
        (run,) = parents(store)
        assert run.info.status == "RUNNING"
        assert run.data.tags["host"] == HERE.host
        store.log(opened[-1], tags={"host": "elsewhere"})
        store.end(opened[-1])
    assert opened[0] == opened[1]
    assert parents(store)[0].data.params == {"seed": "0"}


@pytest.mark.parametrize("n_machines", [2, 4])
def test_of_machines_that_start_at_once_one_goes_on(store: Store, n_machines: int) -> None:
    """Their locks do not see each other: threads stand for them, and each has looked before any starts."""
    everybody = threading.Barrier(n_machines)
    opened: list[str] = []
    refused: list[BusyError] = []

    def machine() -> None:
        has_looked = False

        def find() -> list[Run]:
            nonlocal has_looked
            if has_looked:
                return parents(store)
            has_looked = True
            everybody.wait(60)
            return []

        try:
            run = open_parent(store, "sweep", find=find, start=lambda: start(store), params={}, take_over=False)
            opened.append(run.info.run_id)
        except BusyError as error:
            refused.append(error)

    store.experiment(TRANSFER)
    threads = [threading.Thread(target=machine) for _ in range(n_machines)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(opened) == 1
    assert len(refused) == n_machines - 1
    assert [run.info.run_id for run in parents(store)] == opened
