"""Row 3: SIGKILL at seeded random instants, run again until done: the result is that of an undisturbed run.

pytest tests/faults/test_kill_anywhere.py --kills 50 -s      # more of them, with a line on each round
"""

import random
import time
from collections.abc import Callable
from typing import NamedTuple

import pytest
from proving import MakeSite, Process, Site

from fmnist_transfer.network.weights import weights_digest
from fmnist_transfer.store.registry import load, resolve
from fmnist_transfer.store.roles import TRANSFER, TUNING

SECONDS_OF_WORK = 2.5  # a kill comes this long after work began, at most
STARTING_SHARE = 0.15  # of the kills: at any instant of the start, when stores are opened
SECONDS_OF_START = 6.0


class Kills(NamedTuple):
    live: int
    """Hit a cell, a trial or a re-training that was running."""
    other: int


def kill_until_done(start: Callable[[], Process], is_at_work: Callable[[int], bool], n: int, seed: str) -> Kills:
    """Kill each process that `start` gives until `n` kills hit live work or one is done first; then let it finish.

    Args:
        is_at_work: whether the process of this pid has (or had, when it was killed) something running.
    """
    instants = random.Random(seed)
    live = other = 0
    while live < n:
        process = start()
        if instants.random() < STARTING_SHARE:
            ended = process.ended_within(instants.uniform(0, SECONDS_OF_START))
        else:
            while not (ended := process.ended_within(0.02)) and not is_at_work(process.pid):
                pass
            ended = ended or process.ended_within(instants.uniform(0, SECONDS_OF_WORK))
        if ended:
            break
        process.kill(group=instants.random() < 0.5)  # or leave its workers orphans
        hit = is_at_work(process.pid)
        live, other = live + hit, other + (not hit)
    start().done(seconds=600)
    return Kills(live, other)


def kill_rounds(request: pytest.FixtureRequest, what: str, one_round: Callable[[int, int], tuple[Kills, int]]) -> None:
    """Rounds of work, each with its own seed, until enough kills hit it."""
    wanted = request.config.getoption("--kills")
    live = other = n_checked = number = 0
    start = time.monotonic()
    while live < wanted:
        kills, n = one_round(number, wanted - live)
        live, other, n_checked, number = live + kills.live, other + kills.other, n_checked + n, number + 1
        print(
            f"\n{what}, round {number}: {live} kills hit live work, {other} the rest; {n_checked} checked "
            f"({time.monotonic() - start:.0f} s)"
        )
        assert number <= wanted, "the work is too little to be hit"


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_sweep_that_is_killed_anywhere(make_site: MakeSite, request: pytest.FixtureRequest, workers: str) -> None:
    """Row 3: each cell has exactly one FINISHED run, with equal weights, and nothing is RUNNING."""

    def one_round(number: int, n_kills: int) -> tuple[Kills, int]:
        site, undisturbed = make_site(f"killed {number}"), make_site(f"undisturbed {number}")
        arguments = ["--fractions", "20", "60", "100", "--replicates", "2", "--epochs", "60", "--seed", str(number)]
        arguments += ["--workers", workers]

        def is_at_work(pid: int) -> bool:
            return n_runs(site, "cell", pid) > 0

        kills = kill_until_done(lambda: site.start_sweep(*arguments), is_at_work, n_kills, f"sweep {workers} {number}")
        undisturbed.sweep(*arguments)
        digests = site.digests()
        assert len(digests) == 12
        assert digests == undisturbed.digests()
        assert set(site.cell_states()) <= {"FINISHED", "KILLED"}
        assert site.open().find(TRANSFER, status="RUNNING") == []
        return kills, len(digests)

    kill_rounds(request, f"sweep on {workers} workers", one_round)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_search_that_is_killed_anywhere(make_site: MakeSite, request: pytest.FixtureRequest, workers: str) -> None:
    """Row 3: no trial lost or counted twice; with one worker, the same trials and the same network registered.

    Two workers see their trials in the order in which they end, so only the counts are the same.
    """

    def one_round(number: int, n_kills: int) -> tuple[Kills, int]:
        site, undisturbed = make_site(f"killed {number}", bare=True), make_site(f"undisturbed {number}", bare=True)
        arguments = ["--trials", "8", "--epochs", "4", "--retrain-seeds", "2", "--seed", str(number)]
        arguments += ["--workers", workers]

        def is_at_work(pid: int) -> bool:
            trial = n_runs(site, "study", pid) > 0 and site.n_running_trials() > 0
            return trial or n_runs(site, "retrained", pid) > 0

        kills = kill_until_done(
            lambda: site.start_search(*arguments), is_at_work, n_kills, f"search {workers} {number}"
        )
        trials = site.trials()
        assert len(trials) == 8
        assert site.n_running_trials() == 0
        assert site.open().find(TUNING, status="RUNNING") == []
        complete = [int(run.data.tags["trial"]) for run in site.trial_runs() if "complete" in run.data.tags]
        assert sorted(complete) == [trial.number for trial in trials]
        assert len(site.retrained("FINISHED")) == 2
        assert len(site.open().client.search_model_versions("name = 'cnn2'")) == 1
        if workers == "1":
            undisturbed.search(*arguments)
            results = [[(t.params, t.value, t.state) for t in one.trials()] for one in (site, undisturbed)]
            assert results[0] == results[1]
            assert best_digest(site) == best_digest(undisturbed)
        return kills, len(trials)

    kill_rounds(request, f"search on {workers} workers", one_round)


def n_runs(site: Site, role: str, pid: int) -> int:
    """RUNNING runs of this role and this process."""
    query = "SELECT count(*) FROM runs JOIN tags r USING (run_uuid) JOIN tags p USING (run_uuid)"
    what = f"r.key = 'role' AND r.value = '{role}' AND p.key = 'pid' AND p.value = '{pid}'"
    return site.count(f"{query} WHERE status = 'RUNNING' AND {what}")


def best_digest(site: Site) -> str:
    store = site.open()
    return weights_digest(load(store, resolve(store, "models:/cnn2/best")).state)
