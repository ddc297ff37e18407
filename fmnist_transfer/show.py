"""Show a store in a browser: MLflow's UI at the latest sweep, and with --dashboard Optuna's dashboard of the search."""

import contextlib
import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
import webbrowser
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fmnist_transfer.errors import StoreError, UsageError
from fmnist_transfer.flags import CommandFlags, StoreFlags, SweepFlags
from fmnist_transfer.store.places import ARTIFACTS, sqlite_path, store_uri, study_uri, without_user
from fmnist_transfer.store.retry import RetryPolicy
from fmnist_transfer.terminal.command import check_range, run_command
from fmnist_transfer.terminal.output import masked, print_pairs, say, warn_of_password
from fmnist_transfer.workers.stop import StopSignal

if TYPE_CHECKING:
    from fmnist_transfer.store.runs import Store

HOST = "127.0.0.1"
Server = tuple[list[str], dict[str, str]]  # command, environment: the list of processes must not show a URI's password


@dataclass(frozen=True, kw_only=True)
class ShowFlags(SweepFlags):
    port: int = 5000
    """Port to listen on; if it is taken, the next free one."""
    browser: bool = True
    """Open the page in a browser, if there is a desktop. The address is always printed."""
    dashboard: bool = False
    """Also start Optuna's dashboard of the search, on the next free port."""
    storage: str | None = None
    """Storage of the search that --dashboard shows; default: optuna.db beside the runs."""

    def __post_init__(self) -> None:
        check_range("--port", self.port, 1, 65_535)
        if self.dashboard and not importlib.util.find_spec("optuna_dashboard"):
            raise UsageError("--dashboard needs: pip install 'fmnist-transfer[dashboard]'")
        if self.storage and not self.dashboard:
            raise UsageError("--storage is for --dashboard: give both, or neither")
        super().__post_init__()


@dataclass(frozen=True, kw_only=True)
class ShowSettings(CommandFlags, StoreFlags, ShowFlags):
    """Show the results in a browser: start MLflow's user interface and open the comparison of the latest sweep. It
    listens on this machine only, until Ctrl-C. For a store with a server it only prints addresses."""


def main(settings: ShowSettings) -> int:
    """Show the store until Ctrl-C or SIGTERM; return 0. For a store with its own server, only print addresses."""
    check_exists(store_uri(settings.tracking_uri), "store")
    warn_of_password(settings.storage, "a .pgpass file")
    say("Loading mlflow ...")
    from fmnist_transfer.store.opening import open_store

    store = open_store(settings.tracking_uri, RetryPolicy(settings.store_timeout), mend_copy=settings.mend_copy)
    root, port, commands = without_user(store.uri), settings.port - 1, []
    if not store.uri.startswith("http"):
        port = free_port(settings.port)
        root = f"http://{HOST}:{port}"
        commands.append(mlflow_server(store, port))
    addresses = {title: f"{root}/{page}" for title, page in pages(store, settings.sweep).items()}
    if settings.dashboard:
        port = free_port(port + 1)
        addresses["Optuna's dashboard"] = f"http://{HOST}:{port}"
        commands.append(dashboard(settings.storage, store, port))
    is_desktop = sys.platform == "darwin" or bool({"DISPLAY", "WAYLAND_DISPLAY"} & set(os.environ))
    is_opened = not (settings.browser and is_desktop and sys.stdout.isatty())
    with EndSignal() as end, contextlib.ExitStack() as running:
        servers = [running.enter_context(served(*command)) for command in commands]
        print_pairs(f"{masked(store.uri)} in a browser", addresses)
        say("Ctrl-C ends it." if servers else "")
        while servers and not end.is_set():
            for server in servers:
                if (status := server.poll()) is not None:
                    raise StoreError(f"the server ended with exit status {status}; see its output above")
            if not is_opened and not is_free(port):  # the server answers
                is_opened = webbrowser.open(next(iter(addresses.values()))) or True
            time.sleep(0.2)
    return 0


class EndSignal(StopSignal):
    """A StopSignal whose second signal does not cut short the end of the servers."""

    def handle(self, number: int, frame: object) -> None:
        self.halt()


def pages(store: "Store", sweep: str) -> dict[str, str]:
    """Return title -> path of each page; the first is opened. Raises UsageError for an unknown sweep."""
    from fmnist_transfer.store.links import curves_page, experiment_page, run_page
    from fmnist_transfer.store.roles import TRANSFER, TUNING, VIEW_TAG, Role

    addresses: dict[str, str] = {}
    run_ids = [str(run.info.run_id) for run in store.find(TRANSFER, role=Role.SWEEP)]
    if sweep not in ("latest", *run_ids):
        raise UsageError(f"--sweep {sweep}: no such sweep in this store; leave the flag out to show the latest")
    if run_ids:
        experiment_id, run_id = store.experiment(TRANSFER), run_ids[0] if sweep == "latest" else sweep
        if f"{VIEW_TAG}{run_id}" in store.client.get_experiment(experiment_id).tags:
            addresses["the curves, compared"] = curves_page(experiment_id, run_id)
        addresses["the sweep, its answer"] = run_page(experiment_id, run_id)
        addresses["all sweeps"] = experiment_page(experiment_id)
    if store.find(TUNING, role=Role.STUDY):
        addresses |= {"searches": experiment_page(store.experiment(TUNING)), "models": "#/models"}
    return addresses or {"an empty store": ""}


def mlflow_server(store: "Store", port: int) -> Server:
    """Return MLflow's UI on the store, for this machine only."""
    hosts = ",".join(f"{name}:{port}" for name in ("localhost", HOST))  # the default accepts other names, too
    command = [sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(port), "--workers", "1"]
    command += ["--artifacts-destination", str(store.folder / ARTIFACTS), "--allowed-hosts", hosts]
    # Without the second variable the server starts seven more processes.
    return command, {"MLFLOW_BACKEND_STORE_URI": store.uri, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}


def dashboard(storage: str | None, store: "Store", port: int) -> Server:
    uri = study_uri(storage, store.folder)
    check_exists(uri, "study database")
    code = f"import os; from optuna_dashboard import run_server; run_server(os.environ['STUDY'], {HOST!r}, {port})"
    return [sys.executable, "-c", code], {"STUDY": uri}


def check_exists(uri: str, title: str) -> None:
    """Raise StoreError if the URI is a sqlite file that does not exist."""
    if (file := sqlite_path(uri)) is not None and not file.exists():
        raise StoreError(f"there is no {title} {file} yet; python -m tuning.search makes one")


@contextlib.contextmanager
def served(command: list[str], environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """Run a web server in its own process group, which ends with the block."""
    env = os.environ | environment
    server = subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, start_new_session=True)
    try:
        yield server
    finally:
        for number in (signal.SIGTERM, signal.SIGKILL):  # the second for its child processes
            with contextlib.suppress(ProcessLookupError):
                os.killpg(server.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.wait(timeout=10)


def free_port(first: int) -> int:
    """Return the first free port from `first` on, then from 1024."""
    return next(filter(is_free, (*range(first, 65_536), *range(1_024, first))))


def is_free(port: int) -> bool:
    with contextlib.suppress(OSError), socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((HOST, port))
        return True
    return False


def command(args: Sequence[str] | None = None) -> int:
    return run_command(ShowSettings, main, "fmnist_transfer.show", args)


if __name__ == "__main__":
    sys.exit(command())
