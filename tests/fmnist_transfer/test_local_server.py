"""A server of this machine alone: its port, its end, and what it says when it dies."""

import contextlib
import os
import signal
import socket
import sys
import time
import urllib.request
from collections.abc import Iterator

import psutil
import pytest
from faults.proving import is_alive

from fmnist_transfer import local_server
from fmnist_transfer.errors import StoreError, UsageError
from fmnist_transfer.local_server import LocalServer, free_port, served, started

PATIENCE_SECONDS = 120.0  # of the tests; a slow machine is no failure


ANSWER = """
import http.server, os, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(os.environ["NAME"].encode())
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def any_port() -> int:
    """One that is free now, with free ones after it, it is hoped."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def listening(port: int) -> Iterator[None]:
    """Another program has the port."""
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", port))
        taken.listen()
        yield


def test_the_next_port_is_used_if_one_is_taken() -> None:
    port = any_port()
    with listening(port):
        assert port < free_port(port) < port + 100
    assert free_port(port) == port
    with pytest.raises(UsageError, match="no port is free from 65536 on"):
        free_port(65_536)


def answering(port: int, name: str = "ours") -> contextlib.AbstractContextManager[LocalServer]:
    return served([sys.executable, "-c", ANSWER, str(port)], {"NAME": name}, port)


def test_a_server_that_dies_at_once_says_why() -> None:
    port = any_port()
    code = "import sys; print('first', flush=True); sys.exit('cannot open postgresql://me:secret@host/store')"
    with (
        pytest.raises(StoreError) as caught,
        contextlib.ExitStack() as stack,
    ):
        started(stack, lambda port: served([sys.executable, "-c", code], {}, port), port, lambda: False)
    assert str(caught.value) == (
        f"the server at http://127.0.0.1:{port} has ended: cannot open postgresql://***@host/store"
    )
    silent = served([sys.executable, "-c", ""], {}, port)
    with silent as server, pytest.raises(StoreError, match="has ended: it said nothing"):
        server.wait_ready(lambda: False)


def test_a_port_that_is_lost_while_the_server_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another program's answer is not taken for the server's own, which starts anew on the next port."""
    port = any_port()
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # of which a server of this machine is none
    with answering(port, "another's") as other, contextlib.ExitStack() as stack:
        other.wait_ready(lambda: False)
        ports = iter([port])
        monkeypatch.setattr(local_server, "free_port", lambda first: next(ports, None) or free_port(first))
        server = started(stack, answering, port, lambda: False)
        assert server.port > port
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(server.address, timeout=10) as response:
            assert response.read() == b"ours"
    assert server.process.poll() is not None
    assert free_port(port) == port


def test_a_server_that_will_not_end_is_killed_with_those_it_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_server, "END_SECONDS", 0.5)
    deaf = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
    child = f"[sys.executable, '-c', {deaf + 'import time; print(1, flush=True); time.sleep(600)'!r}]"
    code = f"import subprocess, sys, time; {deaf}subprocess.Popen({child}); time.sleep(600)"
    with served([sys.executable, "-c", code], {}, any_port()) as server:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while os.fstat(server.log.fileno()).st_size == 0:  # until the child is deaf
            assert time.monotonic() < deadline
            time.sleep(0.02)
        (child,) = psutil.Process(server.process.pid).children()
    assert server.process.returncode == -signal.SIGKILL
    while is_alive(child.pid):
        assert time.monotonic() < deadline
        time.sleep(0.02)
