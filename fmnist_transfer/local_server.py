"""A web server of this machine alone, in a process of its own, that ends with the block it is started in.

A command line and an environment in, an address that answers out.
"""

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import IO

import psutil

from fmnist_transfer.errors import StoreError, UsageError
from fmnist_transfer.terminal.output import masked

HOST = "127.0.0.1"
START_SECONDS, END_SECONDS = 60.0, 10.0  # within which a server is to answer, and to end


@dataclass
class LocalServer:
    """A web server in a process group of its own."""

    process: "subprocess.Popen[bytes]"
    port: int
    log: IO[bytes]

    @property
    def address(self) -> str:
        return f"http://{HOST}:{self.port}"

    def wait_ready(self, is_stopped: Callable[[], bool]) -> None:
        """Until it answers. Raises StoreError if it ends instead."""
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # whatever `http_proxy` says
        deadline = time.monotonic() + START_SECONDS
        while not is_stopped():
            self.check_alive()
            if self.listens():  # or another program's answer would be taken for its own
                with contextlib.suppress(OSError, http.client.HTTPException), direct.open(self.address, timeout=1):
                    return
            if time.monotonic() > deadline:
                raise StoreError(f"{self.address} does not answer within {START_SECONDS:.0f} s; try again")
            time.sleep(0.1)

    def listens(self) -> bool:
        """Whether the port is its own, or that of a process that it has started."""
        with contextlib.suppress(psutil.Error):
            leader = psutil.Process(self.process.pid)
            return any(
                connection.status == psutil.CONN_LISTEN and connection.laddr.port == self.port
                for one in (leader, *leader.children(recursive=True))
                for connection in one.net_connections("tcp")
            )
        return False

    def check_alive(self) -> None:
        """Raise StoreError, with the last it said, if it has ended."""
        if self.process.poll() is not None:
            self.log.seek(0)
            said = self.log.read().decode(errors="replace").strip().splitlines() or ["it said nothing"]
            raise StoreError(f"the server at {self.address} has ended: {masked(said[-1])}")


@contextlib.contextmanager
def served(command: list[str], environment: Mapping[str, str], port: int) -> Iterator[LocalServer]:
    """A server that runs while the block does."""
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command,
            env=os.environ | environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            yield LocalServer(process, port, log)
        finally:
            for number in (signal.SIGTERM, signal.SIGKILL):  # the second for those whom it started
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, number)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=END_SECONDS)


def started(
    stack: contextlib.ExitStack,
    make: Callable[[int], contextlib.AbstractContextManager[LocalServer]],
    first_port: int,
    is_stopped: Callable[[], bool],
) -> LocalServer:
    """The server, ready, on the first port from `first_port` on that it gets; it ends with the stack."""
    while True:
        port = free_port(first_port)
        with contextlib.ExitStack() as own:
            server = own.enter_context(make(port))
            try:
                server.wait_ready(is_stopped)
            except StoreError:
                if is_free(port) or server.listens():
                    raise
                first_port = port + 1  # another program took it meanwhile
                continue
            stack.push(own.pop_all())
            return server


def free_port(first: int) -> int:
    """The first port from `first` on that nothing listens on. Raises UsageError."""
    if (found := next(filter(is_free, range(first, min(first + 100, 65_536))), None)) is None:
        raise UsageError(f"no port is free from {first} on; give another --port")
    return found


def is_free(port: int) -> bool:
    with contextlib.suppress(OSError), socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((HOST, port))
        return True
    return False
