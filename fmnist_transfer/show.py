"""Look at a store in a browser: MLflow's UI on the right store, at the comparison of its last sweep.

    python -m fmnist_transfer.show                 # the checkout's mlruns/, or MLFLOW_TRACKING_URI
    python -m fmnist_transfer.show --dashboard     # Optuna's dashboard on the study, too

The servers listen on this machine alone and end with the command.
"""

import contextlib
import functools
import importlib.util
import os
import signal
import sys
import time
import webbrowser
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fmnist_transfer.errors import StoreError, UsageError
from fmnist_transfer.flags import CommandFlags, SweepFlags, TrackingFlags
from fmnist_transfer.local_server import HOST, LocalServer, served, started
from fmnist_transfer.store.places import sqlite_path, store_uri, study_uri
from fmnist_transfer.terminal.command import check_range, run_command
from fmnist_transfer.terminal.output import masked, print_pairs, say, warn_of_password
from fmnist_transfer.workers.stop import SIGNALS

if TYPE_CHECKING:
    from fmnist_transfer.store.runs import Store


# A password in a database's URI is to be seen in no list of processes, so URIs pass through the environment.
DASHBOARD = "import os; from optuna_dashboard import run_server; run_server(os.environ['STUDY'], {host!r}, {port})"


@dataclass(frozen=True, kw_only=True)
class ShowFlags(SweepFlags):
    port: int = 5000
    """Port to listen on; if it is taken, the next free one."""
    browser: bool = True
    """Open the page in a browser, if there is a desktop. Its address is printed in any case."""
    dashboard: bool = False
    """Also start Optuna's dashboard, which shows the search, on the next free port."""
    storage: str | None = None
    """Where the search of --dashboard is kept; default: optuna.db beside the runs."""

    def __post_init__(self) -> None:
        check_range("--port", self.port, 1, 65_535)
        if self.dashboard and not importlib.util.find_spec("optuna_dashboard"):
            raise UsageError("--dashboard needs: pip install 'fmnist-transfer[dashboard]'")
        if self.storage and not self.dashboard:
            raise UsageError("--storage is for --dashboard: give both, or neither")
        super().__post_init__()


@dataclass(frozen=True, kw_only=True)
class ShowSettings(CommandFlags, TrackingFlags, ShowFlags):
    """Look at the results in a browser: start MLflow's user interface and open the comparison of the last sweep. It
    listens on this machine alone and ends with the command (Ctrl-C)."""


@contextlib.contextmanager
def signals() -> Iterator[list[int]]:
    """Those that have come while the block runs, and do no more than that.

    An exception would come between the start of a server and its `finally`, or within that, and leave it running.
    """
    came: list[int] = []
    handled = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]  # as under nohup
    before = {number: signal.signal(number, lambda number, _: came.append(number)) for number in handled}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def mlflow_server(store: "Store", port: int) -> contextlib.AbstractContextManager[LocalServer]:
    """MLflow's UI on the store, for this machine alone."""
    from fmnist_transfer.store.places import ARTIFACTS

    hosts = ",".join(f"{name}:{port}" for name in ("localhost", HOST))  # the default would take other names, too
    command = [sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(port), "--workers", "1"]
    command += ["--artifacts-destination", str(store.folder / ARTIFACTS), "--allowed-hosts", hosts]
    # Without the second variable it starts seven more processes.
    environment = {"MLFLOW_BACKEND_STORE_URI": store.uri, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    return served(command, environment, port)


def dashboard(storage: str | None, store: "Store", port: int) -> contextlib.AbstractContextManager[LocalServer]:
    """Optuna's dashboard on the study database. Raises StoreError if there is none."""
    uri = study_uri(storage, store.folder)
    if (file := sqlite_path(uri)) is not None and not file.exists():
        raise StoreError(f"there is no study database {file} yet; python -m tuning.search makes one")
    return served([sys.executable, "-c", DASHBOARD.format(host=HOST, port=port)], {"STUDY": uri}, port)


def pages(store: "Store", asked: str) -> dict[str, str]:
    """What there is to look at -> its address; the first is the one to open. Raises UserError for an unknown sweep."""
    from fmnist_transfer.store.links import curves_page, experiment_page, run_page
    from fmnist_transfer.store.roles import TRANSFER, TUNING, Role

    found: dict[str, str] = {}
    sweeps = store.find(TRANSFER, role=Role.SWEEP)
    if asked != "latest":
        sweeps = [run for run in sweeps if run.info.run_id == asked]
        if not sweeps:
            raise UsageError(f"--sweep {asked}: no sweep of this store; without the flag the latest is shown")
    if sweeps:
        experiment_id, run_id = store.experiment(TRANSFER), str(sweeps[0].info.run_id)
        if store.find(TRANSFER, role=Role.CURVE, parent=run_id):
            found["the curves, compared"] = curves_page(experiment_id, run_id)
        found["the sweep, its answer"] = run_page(experiment_id, run_id)
        found["all sweeps"] = experiment_page(experiment_id)
    if store.find(TUNING, role=Role.STUDY):
        found["searches"] = experiment_page(store.experiment(TUNING))
        found["models"] = "#/models"
    return found or {"an empty store": ""}


def is_desktop() -> bool:
    """Whether a browser that is opened would be seen."""
    windows = sys.platform == "darwin" or bool({"DISPLAY", "WAYLAND_DISPLAY"} & set(os.environ))
    return windows and sys.stdout.isatty()


def main(settings: ShowSettings) -> int:
    """Show the store until Ctrl-C or SIGTERM, which are the ordinary end; 0. A store with a server is only told of."""
    if (file := sqlite_path(store_uri(settings.tracking_uri))) is not None and not file.exists():
        raise StoreError(f"there is no store {file} yet; python -m tuning.search makes one")
    warn_of_password(settings.storage, "a .pgpass file")
    say("Loading mlflow ...")
    from fmnist_transfer.store.opening import open_store

    store = open_store(settings.tracking_uri)
    found = pages(store, settings.sweep)
    with signals() as came, contextlib.ExitStack() as stack:

        def start(make: Callable[[int], contextlib.AbstractContextManager[LocalServer]], first_port: int) -> str:
            servers.append(started(stack, make, first_port, lambda: bool(came)))
            return servers[-1].address

        servers: list[LocalServer] = []
        address = masked(store.uri).replace("***@", "").rstrip("/")
        if not store.uri.startswith("http"):
            address = start(functools.partial(mlflow_server, store), settings.port)
        addresses = {what: f"{address}/{page}" for what, page in found.items()}
        if settings.dashboard and not came:
            make = functools.partial(dashboard, settings.storage, store)
            addresses["Optuna's dashboard"] = start(make, settings.port + 1)
        if not came:
            print_pairs(f"{masked(store.uri)} in a browser", addresses)
            if settings.browser and is_desktop():
                webbrowser.open(next(iter(addresses.values())))
            if servers:
                say("Ctrl-C ends it.")
        while servers and not came:
            for server in servers:
                server.check_alive()
            time.sleep(0.2)
    return 0


def command(args: "list[str] | None" = None) -> int:
    """The command line."""
    return run_command(ShowSettings, main, "fmnist_transfer.show", args)


if __name__ == "__main__":
    sys.exit(command())
