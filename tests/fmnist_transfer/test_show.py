"""The command that shows a store: what it offers, and that its servers answer and end with it."""

import contextlib
import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from faults.proving import free_port, is_alive

from fmnist_transfer import show
from fmnist_transfer.show import ShowSettings, main, pages
from fmnist_transfer.store import opening
from fmnist_transfer.store.links import curves_page, experiment_page, run_page
from fmnist_transfer.store.roles import TRANSFER, TUNING, VIEW_TAG
from fmnist_transfer.store.runs import Store
from fmnist_transfer.workers.stop import SIGNALS

ROOT = Path(__file__).parents[2]
LONGEST_SECONDS = 120.0  # that a test waits; a slow machine is no failure
# `python -m fmnist_transfer.show` with SIGINT as a terminal has it: a shell's `&` would have it ignored
MODULE = """
import runpy, signal
signal.signal(signal.SIGINT, signal.default_int_handler)
runpy.run_module("fmnist_transfer.show", run_name="__main__", alter_sys=True)
"""


def command(*arguments: str) -> int:
    return show.command(["--no-browser", *arguments])


@contextlib.contextmanager
def listening(port: int) -> Iterator[None]:
    """Another program has the port."""
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", port))
        taken.listen()
        yield


def study(store: Store) -> str:
    return store.start(TUNING, "study cnn2", tags={"role": "study"})


def sweep(store: Store, *, curves: bool = True) -> str:
    run_id = store.start(TRANSFER, "cnn2/1 on classes 56789", tags={"role": "sweep"})
    if curves:
        store.client.set_experiment_tag(store.experiment(TRANSFER), f"{VIEW_TAG}{run_id}", "{}")
    return run_id


def test_pages_of_an_empty_store(store: Store) -> None:
    assert list(pages(store, "latest").values()) == [""]
    assert store.client.get_experiment_by_name(TRANSFER) is None  # looking makes nothing


def test_pages_of_a_store_with_a_search_alone(store: Store) -> None:
    study(store)
    assert list(pages(store, "latest").values()) == [experiment_page(store.experiment(TUNING)), "#/models"]


def test_pages_of_a_sweep(store: Store) -> None:
    older, newer = sweep(store), sweep(store, curves=False)
    study(store)
    experiment_id = store.experiment(TRANSFER)
    rest = [experiment_page(experiment_id), experiment_page(store.experiment(TUNING)), "#/models"]
    assert list(pages(store, older).values()) == [
        curves_page(experiment_id, older),
        run_page(experiment_id, older),
        *rest,
    ]
    assert list(pages(store, "latest").values()) == [run_page(experiment_id, newer), *rest]


def test_a_store_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "none" / "mlflow.db"
    assert command("--tracking-uri", str(path)) == 4
    err = capsys.readouterr().err
    assert str(path) in err
    assert "python -m tuning.search" in err
    assert not path.parent.exists()


def test_an_unknown_sweep(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    sweep(store)
    assert command("--tracking-uri", store.uri, "--sweep", "abc") == 2
    assert "--sweep abc" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--port", "0"], "--port 0.*65535"),
        (["--port", "70000"], "--port 70000.*65535"),
    ],
)
def test_bad_flags(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(*arguments) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert re.search(message, err)


def test_of_a_store_with_a_server_only_the_addresses_are_said(
    store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_id = sweep(store)
    object.__setattr__(store, "uri", "https://me:secret@example.org/mlflow/")
    monkeypatch.setattr(opening, "open_store", lambda *arguments, **options: store)
    monkeypatch.setattr(subprocess, "Popen", None)  # nothing is started
    assert main(ShowSettings(tracking_uri=store.uri, browser=False)) == 0
    out = capsys.readouterr().out
    experiment_id = store.experiment(TRANSFER)
    assert f"  https://example.org/mlflow/{run_page(experiment_id, run_id)}\n" in out
    assert "https://***@example.org/mlflow/" in out
    assert "Ctrl-C" not in out
    assert "secret" not in out


def test_a_database_is_named_by_the_environment_alone(store: Store) -> None:
    """For a command line is seen by every user of the machine."""
    uri = "postgresql://me:secret@host/store"
    object.__setattr__(store, "uri", uri)
    server, environment = show.mlflow_server(store, 5005)
    assert "secret" not in " ".join(server)
    assert environment["MLFLOW_BACKEND_STORE_URI"] == uri
    assert server[server.index("--allowed-hosts") + 1] == "localhost:5005,127.0.0.1:5005"
    assert server[server.index("--host") + 1] == "127.0.0.1"


def test_signals_that_come_while_servers_start_end_it(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second one does not cut the end short; the handlers of before are there again."""
    handlers = [signal.getsignal(number) for number in SIGNALS]
    servers: list[subprocess.Popen[bytes]] = []
    served = show.served

    @contextlib.contextmanager
    def signalled(command: list[str], environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
        with served([sys.executable, "-c", "import time; time.sleep(600)"], environment) as server:
            servers.append(server)
            os.kill(os.getpid(), signal.SIGHUP)  # the terminal was closed
            os.kill(os.getpid(), signal.SIGINT)
            yield server

    monkeypatch.setattr(show, "served", signalled)
    assert main(ShowSettings(tracking_uri=store.uri, browser=False)) == 0
    assert [server.returncode for server in servers] == [-signal.SIGTERM]
    assert [signal.getsignal(number) for number in SIGNALS] == handlers


def test_the_last_port_is_followed_by_lower_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    assert show.free_port(65_536) >= 1_024
    monkeypatch.setattr(show, "is_free", lambda port: port == 1_030)
    assert show.free_port(65_535) == 1_030


def test_a_server_that_ends_by_itself_ends_the_command(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(show, "mlflow_server", lambda store, port: ([sys.executable, "-c", "raise SystemExit(3)"], {}))
    assert command("--tracking-uri", store.uri) == 4


def family(pid: int) -> set[int]:
    """The process and all that it has started."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return {pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))}
    return set()


def get(port: int, path: str, host: str | None = None) -> tuple[int, bytes]:
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
        connection.request("GET", path, headers={"Host": host or f"127.0.0.1:{port}"})
        response = connection.getresponse()
        return response.status, response.read()


def answer(port: int) -> tuple[int, bytes] | None:
    """Of a server that may still start."""
    with contextlib.suppress(OSError):
        return get(port, "/health")
    return None


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_store_is_shown_until_a_signal(number: signal.Signals, store: Store, tmp_path: Path) -> None:
    """SIGINT with a study, whose dashboard is named, and with the port taken."""
    is_whole = number == signal.SIGINT
    run_id = sweep(store)
    store.client.log_text(run_id, "The answer", "report/report.md")
    arguments = ["--no-browser", "--tracking-uri", store.uri, "--port", str(port := free_port())]
    if is_whole:
        (store.folder / "optuna.db").touch()
    pids: set[int] = set()
    with (tmp_path / "out").open("w") as out, listening(port) if is_whole else contextlib.nullcontext():
        process = subprocess.Popen(
            [sys.executable, "-c", MODULE, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            start_new_session=True,
        )
        try:
            deadline = time.monotonic() + LONGEST_SECONDS
            while "Ctrl-C" not in (said := (tmp_path / "out").read_text()):
                pids |= family(process.pid)
                assert process.poll() is None, said
                assert time.monotonic() < deadline, said
                time.sleep(0.1)
            found = re.search(r"http://127.0.0.1:(\d+)/#/experiments/", said)
            assert found, said
            assert (int(found[1]) > port) == is_whole
            port = int(found[1])
            while answer(port) != (200, b"OK"):
                assert process.poll() is None, said
                assert time.monotonic() < deadline
                time.sleep(0.2)
            assert get(port, f"/get-artifact?path=report/report.md&run_uuid={run_id}") == (200, b"The answer")
            assert get(port, "/health", f"localhost:{port}")[0] == 200
            assert get(port, "/api/2.0/mlflow/experiments/search?max_results=1", "attacker.example")[0] == 403
            assert (f"optuna-dashboard 'sqlite:///{store.folder / 'optuna.db'}'" in said) == is_whole
            pids |= family(process.pid)
            assert len(pids) >= 3
            process.send_signal(number)
            process.send_signal(number)  # impatient
            assert process.wait(LONGEST_SECONDS) == 0, (tmp_path / "out").read_text()
            assert [pid for pid in pids if is_alive(pid)] == []
        finally:
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.wait()
