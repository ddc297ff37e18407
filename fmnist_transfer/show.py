"""Show a store in a browser: MLflow's UI at the latest sweep, and the command for Optuna's dashboard of a search."""

import contextlib
import functools
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
import webbrowser
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fmnist_transfer.errors import StoreError, UsageError
from fmnist_transfer.flags import CommandFlags, StoreFlags, SweepFlags
from fmnist_transfer.store.places import ARTIFACTS, STUDY_FILE, sqlite_path, store_uri, study_uri, without_user
from fmnist_transfer.store.retry import RetryPolicy
from fmnist_transfer.terminal.command import check_range, run_command
from fmnist_transfer.terminal.output import masked, print_pairs, say
from fmnist_transfer.workers.stop import StopSignal

if TYPE_CHECKING:
    from fmnist_transfer.store.runs import Store

HOST = "127.0.0.1"


@dataclass(frozen=True, kw_only=True)
class ShowSettings(CommandFlags, StoreFlags, SweepFlags):
    """Show the results in a browser: start MLflow's user interface and open the comparison of the latest sweep. It
    listens on this machine only, until Ctrl-C. For a store with a server it only prints addresses."""

    port: int = 5000
    """Port to listen on; if it is taken, the next free one."""
    browser: bool = True
    """Open the page in a browser, if there is a desktop. The address is always printed."""

    def __post_init__(self) -> None:
        check_range("--port", self.port, 1, 65_535)
        super().__post_init__()


def main(settings: ShowSettings) -> int:
    """Show the store until Ctrl-C or SIGTERM; return 0. For a store with its own server, only print addresses."""
    if (file := sqlite_path(store_uri(settings.tracking_uri))) is not None and not file.exists():
        raise StoreError(f"there is no store {file} yet; python -m tuning.search makes one")
    say("Loading mlflow ...")
    from fmnist_transfer.store.opening import open_store

    store = open_store(settings.tracking_uri, RetryPolicy(settings.store_timeout), mend_copy=settings.mend_copy)
    has_server, port = store.uri.startswith("http"), free_port(settings.port)
    root = without_user(store.uri) if has_server else f"http://{HOST}:{port}"
    addresses = {title: f"{root}/{page}" for title, page in pages(store, settings.sweep).items()}
    first = next(iter(addresses.values()))
    if (store.folder / STUDY_FILE).exists():
        addresses["the search, by Optuna"] = f"optuna-dashboard {shlex.quote(study_uri(None, store.folder))}"
    print_pairs(f"{masked(store.uri)} in a browser", addresses)
    if has_server:
        return 0
    is_desktop = sys.platform == "darwin" or bool({"DISPLAY", "WAYLAND_DISPLAY"} & set(os.environ))
    is_opened = not (settings.browser and is_desktop and sys.stdout.isatty())
    with StopSignal(may_quit=False) as end, served(*mlflow_server(store, port)) as server:
        say("Ctrl-C ends it.")
        while not end.is_set():
            if (status := server.poll()) is not None:
                raise StoreError(f"the server ended with exit status {status}; see its output above")
            if not is_opened and not is_free(port):  # the server answers
                is_opened = webbrowser.open(first) or True
            time.sleep(0.2)
    return 0


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


def mlflow_server(store: "Store", port: int) -> tuple[list[str], dict[str, str]]:
    """Return command and environment of MLflow's UI. The list of processes must not show a URI's password."""
    hosts = ",".join(f"{name}:{port}" for name in ("localhost", HOST))  # the default accepts other names, too
    command = [sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(port), "--workers", "1"]
    command += ["--artifacts-destination", str(store.folder / ARTIFACTS), "--allowed-hosts", hosts]
    # Without the second variable the server starts seven more processes.
    return command, {"MLFLOW_BACKEND_STORE_URI": store.uri, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}


@contextlib.contextmanager
def served(command: list[str], environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """Run a web server in its own process group, which ends with the block."""
    server = subprocess.Popen(command, env=os.environ | environment, stdin=subprocess.DEVNULL, start_new_session=True)
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


command = functools.partial(run_command, ShowSettings, main, "fmnist_transfer.show")


if __name__ == "__main__":
    sys.exit(command())
