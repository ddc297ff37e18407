"""Show a store in a browser: MLflow's UI, opened at the comparison of the latest sweep.

    python -m fmnist_transfer.show                 # the checkout's mlruns/, or MLFLOW_TRACKING_URI
    python -m fmnist_transfer.show --dashboard     # Optuna's dashboard on the study, too

The servers listen on this machine only and end with the command.
"""

import contextlib
import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
import webbrowser
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fmnist_transfer.errors import StoreError, UsageError
from fmnist_transfer.flags import CommandFlags, StoreFlags, SweepFlags
from fmnist_transfer.store.places import ARTIFACTS, sqlite_path, store_uri, study_uri
from fmnist_transfer.store.retry import RetryPolicy
from fmnist_transfer.terminal.command import check_range, run_command
from fmnist_transfer.terminal.output import masked, print_pairs, say, warn_of_password
from fmnist_transfer.workers.stop import SIGNALS

if TYPE_CHECKING:
    from fmnist_transfer.store.runs import Store

HOST = "127.0.0.1"
END_SECONDS = 10.0  # for a server to end after each signal
# URIs pass through the environment, because the list of processes would show a database's password.
DASHBOARD = "import os; from optuna_dashboard import run_server; run_server(os.environ['STUDY'], {host!r}, {port})"


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
    listens on this machine only and ends with the command (Ctrl-C)."""


def main(settings: ShowSettings) -> int:
    """Show the store until Ctrl-C or SIGTERM; return 0. For a store with its own server, only print addresses."""
    if (file := sqlite_path(store_uri(settings.tracking_uri))) is not None and not file.exists():
        raise StoreError(f"there is no store {file} yet; python -m tuning.search makes one")
    warn_of_password(settings.storage, "a .pgpass file")
    say("Loading mlflow ...")
    from fmnist_transfer.store.opening import open_store

    store = open_store(settings.tracking_uri, RetryPolicy(settings.store_timeout), mend_copy=settings.mend_copy)
    addresses = pages(store, settings.sweep)
    with signals() as received, contextlib.ExitStack() as servers:
        root = masked(store.uri).replace("***@", "").rstrip("/")
        port, started = settings.port - 1, []
        if not store.uri.startswith("http"):
            port = free_port(settings.port)
            started.append(servers.enter_context(Server(*mlflow_server(store, port))))
            root = f"http://{HOST}:{port}"
        addresses = {name: f"{root}/{page}" for name, page in addresses.items()}
        if settings.dashboard:
            port = free_port(port + 1)
            started.append(servers.enter_context(Server(*dashboard(settings.storage, store, port))))
            addresses["Optuna's dashboard"] = f"http://{HOST}:{port}"
        print_pairs(f"{masked(store.uri)} in a browser", addresses)
        say("Ctrl-C ends it." if started else "")
        is_opened = not (settings.browser and is_desktop())
        while started and not received:
            for server in started:
                server.check_alive()
            if not is_opened and not is_free(port):  # the server answers
                is_opened = webbrowser.open(next(iter(addresses.values()))) or True
            time.sleep(0.2)
    return 0


@contextlib.contextmanager
def signals() -> Iterator[list[int]]:
    """Collect the signals that end a command; even the second one must wait until the servers have ended."""
    received: list[int] = []
    # A signal that is ignored, as SIGHUP under nohup, stays ignored.
    handled = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, lambda number, _: received.append(number)) for number in handled}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def pages(store: "Store", sweep: str) -> dict[str, str]:
    """Return title -> address of each page; the first is opened. Raises UsageError for an unknown sweep."""
    from fmnist_transfer.store.links import curves_page, experiment_page, run_page
    from fmnist_transfer.store.roles import TRANSFER, TUNING, Role

    addresses: dict[str, str] = {}
    sweeps = store.find(TRANSFER, role=Role.SWEEP)
    if sweep != "latest":
        sweeps = [run for run in sweeps if run.info.run_id == sweep]
        if not sweeps:
            raise UsageError(f"--sweep {sweep}: no such sweep in this store; leave the flag out to show the latest")
    if sweeps:
        experiment_id, run_id = store.experiment(TRANSFER), str(sweeps[0].info.run_id)
        if store.find(TRANSFER, role=Role.CURVE, parent=run_id):
            addresses["the curves, compared"] = curves_page(experiment_id, run_id)
        addresses["the sweep, its answer"] = run_page(experiment_id, run_id)
        addresses["all sweeps"] = experiment_page(experiment_id)
    if store.find(TUNING, role=Role.STUDY):
        addresses["searches"] = experiment_page(store.experiment(TUNING))
        addresses["models"] = "#/models"
    return addresses or {"an empty store": ""}


def mlflow_server(store: "Store", port: int) -> tuple[list[str], dict[str, str]]:
    """Return the command and environment of MLflow's UI on the store, for this machine only."""
    hosts = ",".join(f"{name}:{port}" for name in ("localhost", HOST))  # the default accepts other names, too
    command = [sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(port), "--workers", "1"]
    command += ["--artifacts-destination", str(store.folder / ARTIFACTS), "--allowed-hosts", hosts]
    # Without the second variable the server starts seven more processes.
    return command, {"MLFLOW_BACKEND_STORE_URI": store.uri, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}


def dashboard(storage: str | None, store: "Store", port: int) -> tuple[list[str], dict[str, str]]:
    """Return the command and environment of Optuna's dashboard. Raises StoreError if there is no study database."""
    uri = study_uri(storage, store.folder)
    if (file := sqlite_path(uri)) is not None and not file.exists():
        raise StoreError(f"there is no study database {file} yet; python -m tuning.search makes one")
    return [sys.executable, "-c", DASHBOARD.format(host=HOST, port=port)], {"STUDY": uri}


class Server:
    """A web server in its own process group, which ends with the block."""

    def __init__(self, command: list[str], environment: Mapping[str, str]):
        self._process = subprocess.Popen(
            command, env=os.environ | environment, stdin=subprocess.DEVNULL, start_new_session=True
        )

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_: object) -> None:
        for number in (signal.SIGTERM, signal.SIGKILL):  # the second for its child processes
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=END_SECONDS)

    def check_alive(self) -> None:
        """Raise StoreError if the server has ended."""
        if (status := self._process.poll()) is not None:
            raise StoreError(f"the server ended with exit status {status}; see its output above")


def free_port(first: int) -> int:
    """Return the first free port of 100 from `first`. Raises UsageError if there is none."""
    if (port := next(filter(is_free, range(first, min(first + 100, 65_536))), None)) is None:
        raise UsageError(f"no free port from {first} on; give another --port")
    return port


def is_free(port: int) -> bool:
    with contextlib.suppress(OSError), socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((HOST, port))
        return True
    return False


def is_desktop() -> bool:
    """Return whether an opened browser would be visible."""
    windows = sys.platform == "darwin" or bool({"DISPLAY", "WAYLAND_DISPLAY"} & set(os.environ))
    return windows and sys.stdout.isatty()


def command(args: "list[str] | None" = None) -> int:
    """Run the command line and return its exit status."""
    return run_command(ShowSettings, main, "fmnist_transfer.show", args)


if __name__ == "__main__":
    sys.exit(command())
