"""Rows 2, 3, 8, 10, 17 and 20: sweeps and searches on a Ray cluster whose workers, nodes and driver die.

The cluster is Ray's own emulation: several nodes on this machine, each with the resources that it declares.
"""

import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest
from postgres import SharedSite
from proving import Process, Site

from fmnist_transfer.store.roles import TRANSFER, TUNING

pytestmark = pytest.mark.cluster

RAY = ("--engine", "ray")
SMALL = ["--fractions", "20", "100", "--replicates", "1", "--epochs", "1"]
CELLS_24 = ["--fractions", "20", "40", "60", "100", "--replicates", "3", "--curve-replicates", "3", "--epochs", "40"]


class RayCluster:
    """An emulated cluster; its head has no CPU, so all work is on the nodes that are added."""

    def __init__(self) -> None:
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        from ray.cluster_utils import Cluster

        self._cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        self.nodes: list[Any] = []

    def add_node(self, **resources: float) -> Any:
        self.nodes.append(self._cluster.add_node(**resources))
        return self.nodes[-1]

    def remove_node(self, node: Any) -> None:
        self.nodes.remove(node)
        self._cluster.remove_node(node, allow_graceful=False)

    @property
    def env(self) -> dict[str, str]:
        return {"RAY_ADDRESS": str(self._cluster.address)}

    def close(self) -> None:
        self._cluster.shutdown()


@pytest.fixture
def ray_cluster() -> Iterator[RayCluster]:
    if os.environ.get("CI") is None:
        pytest.importorskip("ray", reason="Ray is not installed (pip install 'fmnist-transfer[ray]')")
    cluster = RayCluster()
    yield cluster
    cluster.close()


def kill_an_actor(process: Process) -> None:
    """One that is at a task, on whichever node."""
    killed = False

    def kill_one() -> bool:
        nonlocal killed
        for one in psutil.process_iter(["cmdline"]):
            if not killed and any("RayActor.work" in part for part in one.info["cmdline"] or []):
                one.kill()
                killed = True
        return killed

    process.wait_for(kill_one)


def test_a_sweep_survives_a_worker_a_node_and_restarts(
    shared_site: SharedSite, site: Site, ray_cluster: RayCluster
) -> None:
    """Rows 8, 10 and 17: 24 cells on two nodes; a third joins later. Results are those of a local run."""
    first, _ = (ray_cluster.add_node(num_cpus=1) for _ in range(2))
    process = shared_site.start_sweep(*CELLS_24, *RAY, "--workers", "auto", env=ray_cluster.env)
    for n, disturb in [
        (2, lambda: kill_an_actor(process)),
        (5, lambda: ray_cluster.remove_node(first)),
        (8, lambda: shared_site.postgres.restart("fast")),
        (11, lambda: ray_cluster.add_node(num_cpus=1)),
        (14, lambda: shared_site.postgres.restart("immediate")),
        (17, shared_site.server.restart),
    ]:
        process.wait_for(lambda n=n: shared_site.n_cells("FINISHED") >= n)
        disturb()
    assert "died" in process.done().out
    site.sweep(*CELLS_24)
    digests = shared_site.digests()
    assert len(digests) == 24
    assert digests == site.digests()


@pytest.mark.parametrize("study_in_file", [False, True], ids=["postgresql", "sqlite"])
def test_a_search_survives_a_worker_and_a_node(
    shared_site: SharedSite, site: Site, ray_cluster: RayCluster, study_in_file: bool
) -> None:
    """Rows 10 and 17: 24 trials, all logged, none counted twice; the winner is trained again on the cluster, too."""
    searched = site if study_in_file else shared_site
    n_ended = "SELECT count(*) FROM trials WHERE state IN ('COMPLETE', 'PRUNED')"

    first, _ = (ray_cluster.add_node(num_cpus=1) for _ in range(2))
    process = searched.start_search("--trials", "24", "--epochs", "4", *RAY, "--workers", "auto", env=ray_cluster.env)
    for n, disturb in [
        (2, lambda: kill_an_actor(process)),
        (6, lambda: ray_cluster.remove_node(first)),
        (9, lambda: None if study_in_file else shared_site.postgres.restart("immediate")),
        (12, lambda: ray_cluster.add_node(num_cpus=1)),
    ]:
        process.wait_for(lambda n=n: searched.count(n_ended, study=True) >= n)
        disturb()
    assert "died" in process.done().out
    assert len(searched.trials()) == 24
    store = searched.open()
    logged = [int(run.data.tags["trial"]) for run in store.find(TUNING, role="trial")]
    assert sorted(logged) == [trial.number for trial in searched.trials()]
    assert len(store.client.search_model_versions("name = 'cnn2'")) == 2


def test_a_driver_that_dies_leaves_nothing_that_runs_and_nothing_is_lost(
    shared_site: SharedSite, ray_cluster: RayCluster
) -> None:
    """Rows 3 and 17."""
    ray_cluster.add_node(num_cpus=2)
    process = shared_site.start_sweep(*CELLS_24, *RAY, "--workers", "auto", env=ray_cluster.env, finished=3)
    finished = {run.info.run_id for run in shared_site.cells(status="FINISHED")}
    process.kill()
    shared_site.start_sweep(*CELLS_24, *RAY, "--workers", "auto", env=ray_cluster.env).done()
    assert finished <= {run.info.run_id for run in shared_site.cells(status="FINISHED")}
    assert len(shared_site.digests()) == 24


def test_a_signal_stops_the_actors_and_the_same_command_goes_on(site: Site, ray_cluster: RayCluster) -> None:
    """Rows 2 and 17, also on a local store: the driver alone writes to it."""
    ray_cluster.add_node(num_cpus=2)
    arguments = [*CELLS_24, *RAY, "--workers", "auto"]
    process = site.start_sweep(*arguments, env=ray_cluster.env, finished=2)
    process.signal_group(signal.SIGTERM)
    process.done(143).names(f"{site.n_cells('FINISHED')} of 24")
    assert site.n_cells("RUNNING") == 0
    site.start_sweep(*arguments, env=ray_cluster.env).done()
    assert len(site.digests()) == 24


def test_shares_of_a_gpu_and_what_no_node_has(site: Site, ray_cluster: RayCluster) -> None:
    """Row 17: the GPU is only declared, so training is on the CPU; what a task needs is told at once."""
    ray_cluster.add_node(num_cpus=8, num_gpus=1)
    device_and_share = [*RAY, "--workers", "auto", "--gpus-per-task"]
    done = site.sweep(*SMALL, *device_and_share, "0.25", env=ray_cluster.env)
    assert "4 tasks" in done.out
    refused = site.sweep(*SMALL, *device_and_share, "2", "--seed", "1", env=ray_cluster.env, status=2)
    for resources in ("2 GPU", "8 CPU", "1 GPU"):
        assert resources in refused.err


@pytest.mark.parametrize(
    ("flags", "share"),
    [([], "0.25"), ([*RAY], "-1"), ([*RAY], "nan"), ([*RAY, "--reference"], "1.5")],
)
def test_flags_that_cannot_be(make_site: Callable[..., Site], flags: list[str], share: str) -> None:
    """Row 20."""
    make_site(bare=True).start("tuning.search", *flags, "--gpus-per-task", share).done(2).names(
        f"--gpus-per-task {share}"
    )


def test_a_cluster_that_is_not_there(site: Site) -> None:
    """Row 17."""
    site.sweep(*SMALL, *RAY, env={"RAY_ADDRESS": "127.0.0.1:1"}, status=2).names("127.0.0.1:1")
    assert site.open().find(TRANSFER) == []
