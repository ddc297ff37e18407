"""A store with a registered model, small data, and the real commands in processes of their own, to be broken."""

import contextlib
import hashlib
import http.client
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

from fmnist_transfer.data.split import DEFAULT_SPLIT
from fmnist_transfer.network.cnn2 import CNN2Spec, fresh_network
from fmnist_transfer.seeding import Streams
from fmnist_transfer.store.model_format import SPEC_FILE, WEIGHTS_FILE, TrainedModel
from fmnist_transfer.store.opening import open_store
from fmnist_transfer.store.registry import register, set_best
from fmnist_transfer.store.roles import TRANSFER, TUNING
from fmnist_transfer.store.runs import Store
from fmnist_transfer.training.recipe import Recipe

ROOT = Path(__file__).parents[2]
MODEL = ["--model-uri", "models:/cnn2/best"]
SPEC = CNN2Spec(channels=(4, 8), fc1=16, fc2=16)
RECIPE = Recipe(learning_rate=5e-3, batch_size=64, epochs=2)
LONGEST_SECONDS = 400.0  # that a test waits; a slow machine is no failure


class Done(NamedTuple):
    """A command that has ended."""

    status: int
    out: str
    err: str

    def names(self, *objects: str) -> None:
        """Assert that its messages name these: flags, files, runs, numbers, commands."""
        assert [name for name in objects if name not in self.err] == [], self.err


class Process:
    """A running command; its output goes to files, so that it can be read while it runs."""

    def __init__(self, command: list[str], folder: Path, env: dict[str, str], prefix: list[str]):
        folder.mkdir(parents=True, exist_ok=True)
        number = len(list(folder.glob("*.out")))
        self._out, self._err = folder / f"{number}.out", folder / f"{number}.err"
        with self._out.open("w") as out, self._err.open("w") as err:
            self.popen = subprocess.Popen(
                [*prefix, *command], stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=env, start_new_session=True
            )

    @property
    def pid(self) -> int:
        return self.popen.pid

    @property
    def out(self) -> str:
        return self._out.read_text()

    @property
    def err(self) -> str:
        return self._err.read_text()

    def done(self, *statuses: int, seconds: float = LONGEST_SECONDS) -> Done:
        """Wait for its end, which has to be with one of these exit statuses; default: 0."""
        try:
            self.popen.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"did not end within {seconds} s:\n{self.out}\n{self.err}") from None
        status = self.popen.returncode
        assert status in (statuses or (0,)), f"ended with {status}:\n{self.out}\n{self.err}"
        return Done(status, self.out, self.err)

    def ended_within(self, seconds: float) -> bool:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.popen.wait(seconds)
            return True
        return False

    def wait_for(self, condition: Any, seconds: float = LONGEST_SECONDS) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert self.popen.poll() is None, f"ended with {self.popen.returncode}:\n{self.out}\n{self.err}"
            assert time.monotonic() < deadline, f"waited too long:\n{self.out}\n{self.err}"
            time.sleep(0.02)

    def kill(self, *, group: bool = True) -> None:
        """SIGKILL to it, and to its workers unless they are to be orphans."""
        with contextlib.suppress(ProcessLookupError):
            (os.killpg if group else os.kill)(self.pid, signal.SIGKILL)
        self.popen.wait()

    def signal_group(self, number: int) -> None:
        """As a terminal does it."""
        os.killpg(self.pid, number)

    def workers(self) -> list[int]:
        """Its worker processes."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        return [int(pid) for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]


class Site:
    """A store's folder and the data; starts commands on them."""

    def __init__(self, folder: Path, data_dir: Path, scratch: Path):
        self.folder, self.data_dir, self.scratch = folder, data_dir, scratch
        self.processes: list[Process] = []

    @property
    def database(self) -> Path:
        return self.folder / "mlflow.db"

    @property
    def study_database(self) -> Path:
        return self.folder / "optuna.db"

    def open(self) -> Store:
        """The store, in this process."""
        return open_store(str(self.database))

    def start(
        self,
        module: str,
        *arguments: str,
        uri: str | None = None,
        data_dir: Path | None = None,
        fault: str = "",
        env: dict[str, str] | None = None,
        prefix: tuple[str, ...] = (),
    ) -> Process:
        """Start `python -m MODULE ARGUMENTS` on this store and data. `uri` "" names the store by the environment."""
        launcher = [
            sys.executable,
            str(ROOT / "tests" / "faults" / "inject.py"),
            str(data_dir or self.data_dir),
            module,
        ]
        where = [] if uri == "" else ["--tracking-uri", uri or str(self.database)]
        environment = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_HTTP")}
        environment |= {"XDG_STATE_HOME": str(self.scratch / "state")}
        environment |= {"PYTHONPATH": str(ROOT), "DESCRIBED_DATA": str(self.data_dir), "FAULT": fault} | (env or {})
        process = Process([*launcher, *where, *arguments], self.scratch / "output", environment, list(prefix))
        self.processes.append(process)
        return process

    def start_sweep(self, *arguments: str, running: int = 0, finished: int = 0, **options: Any) -> Process:
        """Start a sweep, and wait until so many of its cells are running or finished."""
        workers = () if "--workers" in arguments else ("--workers", "1")
        process = self.start("sweeps.transfer", *MODEL, "--device", "cpu", *workers, *arguments, **options)
        if running or finished:
            process.wait_for(lambda: self.n_cells("RUNNING") >= running and self.n_cells("FINISHED") >= finished)
        return process

    def start_search(self, *arguments: str, running: int = 0, **options: Any) -> Process:
        """Start a search, and wait until so many of its trials are running."""
        workers = () if "--workers" in arguments else ("--workers", "1")
        small = ("--top", "1", "--retrain-seeds", "1")
        process = self.start("tuning.search", "--device", "cpu", *small, *workers, *arguments, **options)
        if running:
            process.wait_for(lambda: self.n_running_trials() >= running)
        return process

    def start_report(self, *arguments: str, **options: Any) -> Process:
        return self.start("sweeps.report", *arguments, **options)

    def sweep(self, *arguments: str, status: int = 0, **options: Any) -> Done:
        """Run a sweep to its end, which has to be with this exit status."""
        return self.start_sweep(*arguments, **options).done(status)

    def search(self, *arguments: str, status: int = 0, **options: Any) -> Done:
        """Run a search to its end, which has to be with this exit status."""
        return self.start_search(*arguments, **options).done(status)

    def result(self) -> dict[str, Any]:
        """What `--json` of the last command wrote."""
        return json.loads(self.json.read_text())

    @property
    def json(self) -> Path:
        return self.scratch / "result.json"

    def cells(self, *, status: str | None = None) -> list[Any]:
        """Runs of cells, in any sweep of this store."""
        return self.open().find(TRANSFER, status=status, role="cell")

    def cell_states(self) -> list[str]:
        return [run.info.status for run in self.cells()]

    def digests(self) -> dict[tuple[str, str, str], str]:
        """(percent, init, replicate) -> digest of the weights, of the finished cells; each is there once."""
        finished = self.cells(status="FINISHED")
        keys = [run.data.tags["cell_key"] for run in finished]
        assert len(keys) == len(set(keys)), "a cell is there twice"
        labels = ("percent", "init", "replicate")
        return {tuple(run.data.tags[key] for key in labels): run.data.tags["weights_digest"] for run in finished}

    @property
    def study_uri(self) -> str:
        return f"sqlite:///{self.study_database}"

    def trials(self) -> list[Any]:
        """Trials of study `cnn2` that count, as Optuna has them."""
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        storage = optuna.storages.RDBStorage(self.study_uri)
        try:
            trials = optuna.load_study(study_name="cnn2", storage=storage).trials
        finally:
            storage.remove_session()
            storage.engine.dispose()
        again = {trial.user_attrs.get("again") for trial in trials}
        ended = [trial for trial in trials if trial.state.is_finished() and trial.number not in again]
        return [trial for trial in ended if trial.state.name != "FAIL" or "reason" in trial.user_attrs]

    def trial_states(self) -> dict[int, str]:
        return {trial.number: trial.state.name for trial in self.trials()}

    def trial_runs(self) -> list[Any]:
        return self.open().find(TUNING, role="trial")

    def retrained(self, status: str) -> list[Any]:
        return self.open().find(TUNING, status=status, role="retrained")

    def count(self, query: str, *, study: bool = False) -> int:
        """A number from the store's database or the study's, which other processes have open; 0 if it is not there."""
        database = self.study_database if study else self.database
        if not database.exists():
            return 0
        with contextlib.closing(sqlite3.connect(database)) as connection:
            return int(connection.execute(query).fetchone()[0])

    def n_cells(self, status: str) -> int:
        query = "SELECT count(*) FROM runs JOIN tags USING (run_uuid) WHERE key = 'role' AND value = 'cell'"
        return self.count(f"{query} AND status = '{status}' AND lifecycle_stage = 'active'")

    def n_running_trials(self) -> int:
        """Running, with all their parameters."""
        query = "SELECT count(*) FROM trials JOIN trial_user_attributes USING (trial_id)"
        return self.count(f"{query} WHERE state = 'RUNNING' AND key = 'recipe'", study=True)

    def files(self) -> dict[str, float]:
        """Every file below the store and below the user's state -> when it was changed."""
        folders = (self.folder, self.scratch / "state")
        return {str(file): file.stat().st_mtime_ns for folder in folders for file in folder.rglob("*")}

    def close(self) -> None:
        for process in self.processes:
            process.kill()


class Server:
    """A real `mlflow server` on a store's folder, at a loopback port that stays the same.

    Args:
        backend: database URI; default: the folder's sqlite file.
        flags: where it keeps artifacts; default: in the folder.
    """

    def __init__(self, folder: Path, backend: str | None = None, flags: tuple[str, ...] = ()):
        self._folder, self._flags = folder, flags
        self._backend = backend or f"sqlite:///{folder / 'mlflow.db'}"
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        where = ["--backend-store-uri", self._backend]
        where += self._flags or ["--artifacts-destination", str(self._folder / "artifacts")]
        command = [sys.executable, "-m", "mlflow", "server", "--port", str(self.port), "--workers", "1", *where]
        environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        with (self._folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
        deadline = time.monotonic() + LONGEST_SECONDS
        while True:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.uri}/health", timeout=1):
                return
            assert time.monotonic() < deadline, (self._folder / "server.log").read_text()
            time.sleep(0.1)

    def kill(self) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def restart(self) -> None:
        self.kill()
        self.start()

    def close(self) -> None:
        self.kill()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def proxy(port: int, *, loses: str = "", n: int = 0, forbids: str = "") -> Iterator[tuple[str, list[str]]]:
    """Pass requests on to `port`; URI, and the paths of those that something was done to.

    Args:
        loses: end of the paths of which the first `n` responses are lost.
        forbids: part of the paths that may be read, but not changed.
    """
    disturbed: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def _pass_on(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            is_change = self.command != "GET" and not self.path.endswith("/search")
            if forbids and forbids in self.path and is_change:
                disturbed.append(self.path)
                self._answer(403, json.dumps({"error_code": "PERMISSION_DENIED", "message": "read only"}).encode(), {})
                return
            with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port)) as upstream:
                upstream.request(self.command, self.path, body, dict(self.headers))
                response = upstream.getresponse()
                content = response.read()
            if loses and self.path.endswith(loses) and len(disturbed) < n:
                disturbed.append(self.path)
                self.close_connection = True
                return
            self._answer(response.status, content, dict(response.getheaders()))

        def _answer(self, status: int, content: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in headers.items():
                if name.lower() not in ("transfer-encoding", "content-length", "connection"):
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _pass_on  # noqa: N815

        def log_message(self, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", disturbed
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def is_alive(pid: int) -> bool:
    """Whether the process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


MakeSite = Callable[..., Site]


def small_model(spec: CNN2Spec = SPEC, recipe: Recipe = RECIPE) -> TrainedModel:
    return TrainedModel(spec, recipe, DEFAULT_SPLIT, fresh_network(spec, Streams(0)).state_dict(), facts={})


def register_model(store: Store, model: TrainedModel, name: str = "cnn2") -> None:
    run_id = store.start(TUNING, name)
    set_best(store, register(store, run_id, name, model, tags={"split": model.split}, description="small"))
    store.end(run_id)


def put_weights(folder: Path, content: bytes) -> None:
    """Replace the weights of the stored model in this folder of its files, with a fitting sha256."""
    (folder / WEIGHTS_FILE).write_bytes(content)
    edit_spec(folder, weights_sha256=hashlib.sha256(content).hexdigest())


def edit_spec(folder: Path, **changes: Any) -> None:
    file = folder / SPEC_FILE
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def remount(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)
