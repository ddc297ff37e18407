"""Rows 7, 24, 26 and 31 to 37: what users do to a store, and their machines and environments to the commands."""

import os
import shutil
import subprocess
import tempfile
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest
from proving import MakeSite, Server, Site, free_port

from fmnist_transfer.store.registry import load, resolve
from fmnist_transfer.store.roles import TRANSFER, TUNING

SWEEP = ["--fractions", "20", "60", "--replicates", "1", "--epochs", "1"]
SEARCH = ["--trials", "4", "--epochs", "1"]
ENDLESS = ["--fractions", "100", "--replicates", "1", "--epochs", "100000"]


def test_a_version_without_its_model_is_registered_anew(make_site: MakeSite) -> None:
    """Row 24: its logged model is deleted, then the files of the next one."""
    site = make_site(bare=True)
    arguments = ["--trials", "1", "--epochs", "1"]
    site.search(*arguments)
    store = site.open()
    store.client.delete_logged_model(resolve(store, "models:/cnn2/best").model_id)
    site.sweep(*SWEEP, status=3)
    for version in (2, 3):
        site.search(*arguments, "--json", str(site.json))
        assert (site.result()["version"], site.result()["promoted"]) == (version, True)
        best = resolve(store, "models:/cnn2/best")
        load(store, best)
        for weights in (site.folder / "artifacts").rglob(f"{best.model_id}/artifacts/extra_files/weights.safetensors"):
            weights.unlink()
    assert len(site.retrained("FINISHED")) == 1


def test_a_deleted_sweep_has_no_report_and_is_begun_anew(site: Site) -> None:
    """Row 24."""
    site.sweep(*SWEEP)
    (parent,) = site.open().find(TRANSFER, role="sweep")
    site.open().client.delete_run(parent.info.run_id)
    site.start_report("--sweep", parent.info.run_id).done(3)
    site.sweep(*SWEEP)
    (anew,) = site.open().find(TRANSFER, role="sweep")
    assert anew.info.run_id != parent.info.run_id


def test_a_sweep_that_is_deleted_while_it_runs_ends(site: Site) -> None:
    """Row 24: its cells cannot be shown any more."""
    process = site.start_sweep(*SWEEP[:5], "--epochs", "300", running=1)
    (parent,) = site.open().find(TRANSFER, role="sweep")
    site.open().client.delete_run(parent.info.run_id)
    process.done(4).names(parent.info.run_id)


@pytest.mark.parametrize("experiment", [TUNING, TRANSFER])
def test_a_deleted_experiment_is_told_at_the_start_and_by_a_dry_run(site: Site, experiment: str) -> None:
    """Row 24."""
    site.sweep(*SWEEP)
    client = site.open().client
    number = client.get_experiment_by_name(experiment).experiment_id
    client.delete_experiment(number)
    start, arguments = (site.search, SEARCH) if experiment == TUNING else (site.sweep, SWEEP)
    for more in ([], ["--dry-run"]):
        assert f"--experiment-id {number}" in start(*arguments, *more, status=4).err
    client.restore_experiment(number)


def test_figures_are_the_same_whatever_the_user_has_set(make_site: MakeSite, tmp_path: Path) -> None:
    """Row 31: a backend that is not installed, as notebooks export it, and a matplotlibrc that wants LaTeX."""
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\nfigure.facecolor: red\nsavefig.format: pdf\n")
    theirs = {"MPLBACKEND": "module://no_such_package.backend_inline", "MATPLOTLIBRC": str(tmp_path)}
    pictures = []
    for name, environment in {"plain": {}, "theirs": theirs}.items():
        site = make_site(name)
        site.search(*SEARCH, "--promote", env=environment)
        site.sweep(*SWEEP, env=environment)
        site.start_report(env=environment).done()
        pictures.append({file.name: file.read_bytes() for file in (site.folder / "artifacts").rglob("*.png")})
    assert "overview.png" in pictures[0]
    assert pictures[0] == pictures[1]


def test_other_settings_of_mlflow_reach_nothing(site: Site, tmp_path: Path) -> None:
    """Row 31: models are registered beside their runs, and runs are where they belong."""
    theirs = {
        "MLFLOW_REGISTRY_URI": f"sqlite:///{tmp_path}/elsewhere.db",
        "MLFLOW_EXPERIMENT_NAME": "mine",
        "MLFLOW_EXPERIMENT_ID": "4711",
        "MLFLOW_RUN_ID": "0" * 32,
        "MLFLOW_ENABLE_ASYNC_LOGGING": "true",
        "MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING": "true",
        "MLFLOW_ARTIFACT_LOCATION_MAX_LENGTH": "10",
    }
    site.search(*SEARCH, "--promote", env=theirs)
    site.sweep(*SWEEP, env=theirs)
    assert resolve(site.open(), "models:/cnn2/best").pinned == "models:/cnn2/2"
    assert not (tmp_path / "elsewhere.db").exists()
    assert {experiment.name for experiment in site.open().client.search_experiments()} == {"Default", TUNING, TRANSFER}


def test_an_old_server_is_told_before_work_starts(site: Site) -> None:
    """Row 32: MLflow 2 has no logged models."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"2.22.0" if self.path == "/version" else b"OK")

        def log_message(self, *arguments: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        uri = f"http://127.0.0.1:{server.server_port}"
        for done in (site.search(*SEARCH, uri=uri, status=4), site.sweep(*SWEEP, uri=uri, status=4)):
            assert "2.22.0" in done.err


@pytest.mark.parametrize("root", ["file:///proc/artifacts", "s3://bucket/artifacts"])
def test_artifacts_that_cannot_be_written_are_told_before_work_starts(make_site: MakeSite, root: str) -> None:
    """Row 32: the server hands out a place that this user must reach; there is no S3 client here."""
    site = make_site(bare=True)
    site.folder.mkdir(parents=True)
    server = Server(site.folder, flags=("--no-serve-artifacts", "--default-artifact-root", root))
    server.start()
    try:
        site.search(*SEARCH, uri=server.uri, status=4).names(root)
        assert site.open().find(TUNING) == []
        assert not site.study_database.exists()
    finally:
        server.close()


def test_a_home_that_cannot_be_written_is_not_needed(site: Site, server: Server) -> None:
    """Row 33: as in a container whose user has none."""
    homeless = {"HOME": "/proc/none", "XDG_STATE_HOME": "", "XDG_CONFIG_HOME": "", "XDG_CACHE_HOME": ""}
    arguments = [*SEARCH, "--promote", "--storage", str(site.study_database)]
    site.search(*arguments, uri=server.uri, env=homeless)
    assert resolve(site.open(), "models:/cnn2/best").pinned == "models:/cnn2/2"
    process = site.start_sweep(*ENDLESS, uri=server.uri, env=homeless, running=1)
    locks = list((Path(tempfile.gettempdir()) / f"fmnist-transfer-{os.getuid()}").rglob("sweep-*.owner"))
    assert any(f"pid {process.pid}," in file.read_text() for file in locks)
    site.sweep(*ENDLESS, uri=server.uri, env=homeless, status=5)


@pytest.mark.parametrize("module", ["tuning.search", "sweeps.transfer"])
def test_workers_that_cannot_start_end_the_command(site: Site, tmp_path: Path, module: str) -> None:
    """Row 34: as in a program that is read from standard input. Nothing is left running."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\nif 'multiprocessing.spawn' in ' '.join(sys.orig_argv): os._exit(3)\n"
    )
    path = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2])])
    start, arguments = (site.search, SEARCH) if module == "tuning.search" else (site.sweep, SWEEP)
    start(*arguments, "--workers", "2", env={"PYTHONPATH": path}, status=2).names("--workers 1")
    for experiment in (TUNING, TRANSFER):
        assert site.open().find(experiment, status="RUNNING") == []
    start(*arguments, "--workers", "2")


@pytest.mark.parametrize("redirection", [">&- 2>&-", "<&- >&- 2>&-", ">/dev/full 2>/dev/full", "2>&1 | head -n 1"])
def test_output_that_goes_nowhere_stops_no_work(site: Site, redirection: str) -> None:
    """Row 35: closed streams, a full disk, a reader that has gone."""
    shell = ("bash", "-c", f'set -o pipefail; "$@" {redirection}', "bash")
    site.sweep(*SWEEP, prefix=shell)
    assert len(site.digests()) == 4
    site.sweep("--nonsense", prefix=shell, status=2)
    site.start("sweeps.transfer", "--model-uri", "models:/none/1", *SWEEP, prefix=shell).done(3)


def test_a_narrow_terminal_gets_help(site: Site) -> None:
    """Row 35."""
    for columns in ("0", "1", "39"):
        site.start_report("--help", env={"COLUMNS": columns}).done(seconds=60)


def test_a_proxy_that_leads_nowhere_is_told(site: Site, server: Server) -> None:
    """Row 7: the server is there, but the environment's proxy is asked for it."""
    site.sweep(*SWEEP, uri=server.uri, env={"http_proxy": f"http://127.0.0.1:{free_port()}"}, status=4).names(
        "NO_PROXY"
    )


def test_a_path_that_is_no_text_is_refused(site: Site) -> None:
    """Row 26: bytes that are not UTF-8."""
    site.sweep(*SWEEP, uri=os.fsdecode(b"/tmp/b\xff/mlflow.db"), status=4)


def test_little_shared_memory_is_told(site: Site) -> None:
    """Row 37: as a container has it; one worker needs none."""
    is_able = shutil.which("unshare") and not subprocess.run(["unshare", "--mount", "true"], check=False).returncode
    if not is_able and not os.environ.get("CI"):
        pytest.skip("cannot have mounts of its own")
    little = ("unshare", "--mount", "bash", "-c", 'mount -t tmpfs -o size=200k none /dev/shm && exec "$@"', "bash")
    site.sweep(*SWEEP, "--workers", "2", prefix=little, status=2).names("--workers 1")
    assert site.open().find(TRANSFER) == []
    site.sweep(*SWEEP, "--workers", "1", prefix=little)


def test_the_limit_of_open_files_is_raised_or_told(site: Site) -> None:
    """Row 36: for two workers."""
    soft, hard = (("bash", "-c", f'ulimit {flag} 64; exec "$@"', "bash") for flag in ("-Sn", "-n"))
    site.sweep(*SWEEP, "--workers", "2", prefix=hard, status=2).names("ulimit -n 128")
    assert site.open().find(TRANSFER) == []
    site.sweep(*SWEEP, "--workers", "2", prefix=soft)
    site.sweep(*SWEEP, "--workers", "1", "--seed", "1", prefix=hard)


def test_workers_that_hang_at_their_start_end_by_one_signal(site: Site, tmp_path: Path) -> None:
    """Row 36."""
    (tmp_path / "sitecustomize.py").write_text(
        "import sys, time\nif 'multiprocessing.spawn' in ' '.join(sys.orig_argv): time.sleep(3600)\n"
    )
    path = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2])])
    process = site.start_sweep(*SWEEP, "--workers", "2", env={"PYTHONPATH": path}, running=2)
    process.popen.terminate()
    process.done(143, seconds=60)
    assert site.open().find(TRANSFER, status="RUNNING") == []
