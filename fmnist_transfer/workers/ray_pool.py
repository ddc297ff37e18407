"""Workers on a Ray cluster: one actor per CPU or share of a GPU.

    with Workers(100, stop, engine="ray", gpus_per_task=0.25) as workers: ...

Ray places the actors and transports data; it retries and restarts nothing. An actor imports torch once and fetches the
data that a job's tasks share once. Nodes that join later are used; if a node leaves, only its own tasks are lost. The
cluster is that at `RAY_ADDRESS`, else one running on this machine, else a new one here.
"""

import contextlib
import logging
import math
import os
import signal
import socket
import time
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, cast

import ray
from ray.exceptions import RayError

from fmnist_transfer.errors import UsageError
from fmnist_transfer.terminal.output import say, warn
from fmnist_transfer.workers.ray_actor import RayActor
from fmnist_transfer.workers.stop import SIGNALS
from fmnist_transfer.workers.task import POLL_SECONDS, Job, Outcome, Worker, died

CONNECT_SECONDS = 5.0
LOOK_SECONDS = 2.0  # between checks of the cluster for room
MAILS = 2  # concurrent calls that an actor answers while it works: `message`, and `stop` or `cancel`


class RayPool:
    """At most `n` actors, as many as the cluster has room for at the moment.

    Raises UsageError if the cluster cannot be reached, or if no node has the resources of a task.
    """

    def __init__(self, n: int, gpus_per_task: float):
        self._n, self._gpus = n, gpus_per_task
        self._workers: list[_Actor] = []
        self._looked_at = -math.inf
        self._is_stopping = False
        self._shared = _Shared()
        self._has_warned = False
        self._is_ours = not ray.is_initialized()
        if self._is_ours:
            _connect()
        options = {"num_cpus": 1, "num_gpus": gpus_per_task, "max_restarts": 0, "max_task_retries": 0}
        remote = cast(Any, ray.remote)(concurrency_groups={"mail": MAILS})
        self._make = remote(RayActor).options(**options)
        if not self._room():
            nodes = ", ".join(_resources(node) for node in _nodes()) or "no node is alive"
            needs = f"1 CPU and {gpus_per_task:g} GPU" if gpus_per_task else "1 CPU"
            self.close()
            raise UsageError(f"--engine ray: a task needs {needs}, which no node of the cluster has ({nodes})")
        say(f"Ray: room for {self._room()} tasks at once on {len(_nodes())} nodes")
        self._look()

    def idle(self) -> list["_Actor"]:
        self._look()
        return [worker for worker in self._workers if worker.task is None and worker.is_ready()]

    def wait(self, busy: Sequence[Worker]) -> Iterator["_Actor"]:
        by_mail = {worker.mail: worker for worker in cast("Sequence[_Actor]", busy)}
        if not by_mail:
            time.sleep(POLL_SECONDS / 5)
            return
        ready, _ = ray.wait(list(by_mail), timeout=POLL_SECONDS)
        if ready:  # collect all that are ready by now
            ready, _ = ray.wait(list(by_mail), num_returns=len(by_mail), timeout=0)
        yield from (by_mail[mail] for mail in ready)

    def remove(self, worker: Worker) -> None:
        self._workers.remove(cast(_Actor, worker))
        if worker.has_worked:  # else wait a moment: its node may have gone without Ray's knowing it yet
            self._looked_at = -math.inf

    def stop_tasks(self) -> None:
        if not self._is_stopping:
            self._is_stopping = True
            for worker in self._workers:
                worker.stop()

    def close(self) -> None:
        for worker in self._workers:
            worker.leave()
        self._workers = []
        if self._is_ours:
            ray.shutdown()

    def _look(self) -> None:
        """Forget idle actors of lost nodes, and start actors if there is room."""
        if time.monotonic() - self._looked_at < LOOK_SECONDS:
            return
        self._looked_at = time.monotonic()
        alive = {node["NodeID"] for node in _nodes()}
        self._workers = [worker for worker in self._workers if worker.task is not None or worker.node in (None, *alive)]
        room = self._room()
        if not room and not self._has_warned:
            warn("the Ray cluster has no room for a task any more. Waiting for a node")
        self._has_warned = not room
        while len(self._workers) < min(self._n, room):
            self._workers.append(_Actor(self._make.remote(), self._shared))

    def _room(self) -> int:
        """Number of tasks that the nodes can hold at once if nobody else uses them."""
        return sum(self._room_of(node["Resources"]) for node in _nodes())

    def _room_of(self, resources: dict[str, float]) -> int:
        cpus = int(resources.get("CPU", 0))
        return min(cpus, int(resources.get("GPU", 0) / self._gpus + 1e-9)) if self._gpus else cpus


class _Shared:
    """Function and shared data of the present job, put into the object store once for all actors."""

    def __init__(self) -> None:
        self._job: Job | None = None
        self._reference: Any = None

    def reference(self, job: Job) -> Any:
        """Reference to (function, shared)."""
        if self._job is not job:
            self._job, self._reference = job, ray.put((job.function, job.shared))
        return self._reference


class _Actor:
    """An actor; `mail` is the reference to its next message."""

    def __init__(self, handle: Any, shared: "_Shared"):
        self.task: Any = None
        self.is_at_work = self.has_worked = False
        self.mail: Any = None
        self.node: str | None = None
        self._handle, self._shared = handle, shared
        self._ready = handle.node.remote()
        self._number = 0  # number of the current task, for `cancel`
        self._job: Job | None = None  # the last job sent to it

    def is_ready(self) -> bool:
        """Return whether the actor has started or died."""
        if self.node is None and ray.wait([self._ready], timeout=0)[0]:
            with contextlib.suppress(RayError):  # it died; `receive` reports that
                self.node = ""
                self.node = ray.get(self._ready)
        return self.node is not None

    def hand_out(self, job: Job, task: Any) -> None:
        self.task, self.is_at_work = task, False
        self._number += 1
        if self._job is not job:
            self._handle.begin.remote([self._shared.reference(job)])  # in a list, so that the actor itself fetches it
            self._job = job
        self._handle.work.remote(self._number, task)
        self.mail = self._handle.message.remote()

    def receive(self, job: Job) -> Outcome[Any, Any] | None:
        try:
            kind, content = ray.get(self.mail)
        except RayError as error:
            self.leave()
            return died(self.task, _reason(error))
        if kind != "outcome":
            self.mail = self._handle.message.remote()
            self.is_at_work = self.has_worked = True
            if kind == "report":
                job.on_report(self.task, content)
            return None
        self.task = None
        return cast(Outcome[Any, Any], content)

    def cancel(self) -> None:
        with contextlib.suppress(RayError):
            self._handle.cancel.remote(self._number)

    def stop(self) -> None:
        with contextlib.suppress(RayError):
            self._handle.stop.remote()

    def leave(self) -> None:
        with contextlib.suppress(RayError):
            ray.kill(self._handle)


def _connect() -> None:
    """Connect to the cluster at `RAY_ADDRESS`, else to one on this machine, else start one. Raises UsageError."""
    address = os.environ.get("RAY_ADDRESS", "")
    host, _, port = address.partition(":")
    try:
        if port.isdecimal():  # Ray itself would retry for minutes
            socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
    except OSError as error:
        raise UsageError(f"cannot reach the Ray cluster at {address} ({error.strerror or error})") from error
    logging.getLogger("ray").setLevel(logging.CRITICAL)
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # FutureWarnings about Ray's own defaults
            ray.init(log_to_driver=False, logging_level=logging.CRITICAL, include_dashboard=False)
    except (RayError, RuntimeError, OSError, ValueError) as error:
        text = str(error).strip().splitlines()[0]
        raise UsageError(f"cannot use the Ray cluster at {address or 'this machine'} ({text})") from error
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)  # ray.init replaces the handler of SIGTERM
    with contextlib.suppress(
        Exception
    ):  # a private name that may vanish; it prints a paragraph per dead actor, for which we print a line
        from ray._private.ray_logging import global_worker_stdstream_dispatcher

        global_worker_stdstream_dispatcher.remove_handler("ray_print_logs")


def _nodes() -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]


def _resources(node: dict[str, Any]) -> str:
    resources = node["Resources"]
    return f"{node['NodeManagerHostname']}: {resources.get('CPU', 0):g} CPU, {resources.get('GPU', 0):g} GPU"


def _reason(error: RayError) -> str:
    """The first sentence of Ray's long message: `the actor is dead because its worker process has died`."""
    text = str(error).strip().splitlines()[-1].strip() or type(error).__name__
    first = text.split(". ")[0].rstrip(".")
    return first[:1].lower() + first[1:]
