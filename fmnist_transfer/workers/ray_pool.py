"""Workers on a Ray cluster, one actor per CPU or share of a GPU. Ray itself retries and restarts nothing."""

import contextlib
import logging
import os
import queue
import signal
import socket
import time
from collections.abc import Sequence
from typing import Any, cast

import ray
from ray.exceptions import RayError

from fmnist_transfer.errors import UsageError
from fmnist_transfer.terminal.output import say, warn
from fmnist_transfer.workers.stop import SIGNALS
from fmnist_transfer.workers.task import POLL_SECONDS, Job, Pool, Worker, attempt

LOOK_SECONDS = 2.0  # between checks of the cluster for room


class RayPool(Pool):
    """At most `n` actors, as many as the cluster has room for at the moment; nodes that join later are used.

    Raises UsageError if the cluster cannot be reached, if no node has the resources of a task, or, from `idle`, for an
    actor on a node that lacks bf16 on the kind of device `bf16_on`: results must not depend on the node.
    """

    def __init__(self, n: int, gpus_per_task: float, bf16_on: str | None = None):
        self.workers: list[_Actor] = []
        self._n, self._gpus, self._bf16_on = n, gpus_per_task, bf16_on
        self._is_ours = not ray.is_initialized()  # else a program's, which stays connected
        if self._is_ours:
            _connect()
        remote = cast(Any, ray.remote)(concurrency_groups={"mail": 2})  # `message` and `cancel`, while it works
        options = {"num_cpus": 1, "num_gpus": gpus_per_task, "max_restarts": 0, "max_task_retries": 0}
        self._make = remote(RayActor).options(**options)
        nodes = self._fill()
        if not self._room:
            listed = ", ".join(f"{host}: {cpu:g} CPU, {gpu:g} GPU" for host, cpu, gpu in nodes) or "no node is alive"
            needs = f"1 CPU and {gpus_per_task:g} GPU" if gpus_per_task else "1 CPU"
            self.close()
            raise UsageError(f"--engine ray: a task needs {needs}, which no node of the cluster has ({listed})")
        say(f"Ray: room for {self._room} tasks at once on {len(nodes)} nodes")

    def idle(self) -> list["_Actor"]:
        idle = {worker.started: worker for worker in self.workers if worker.task is None}
        started, _ = ray.wait(list(idle), num_returns=max(1, len(idle)), timeout=0)  # or died: `message` reports that
        for reference in started:
            with contextlib.suppress(RayError):
                idle[reference].node, problem = ray.get(reference)
                if problem:
                    raise UsageError(f"--engine ray: {problem}; use --precision float32, or leave that node out")
        if time.monotonic() - self._looked_at >= LOOK_SECONDS:
            had_room = self._room
            self._fill()
            if had_room and not self._room:
                warn("the Ray cluster has no room for a task any more. Waiting for a node")
        return [worker for worker in self.workers if worker.task is None and worker.started in started]

    def wait(self, busy: Sequence[Any]) -> list["_Actor"]:
        by_mail = {worker.mail: worker for worker in busy}
        if not by_mail:
            time.sleep(POLL_SECONDS / 5)
            return []
        ray.wait(list(by_mail), timeout=POLL_SECONDS)
        ready, _ = ray.wait(list(by_mail), num_returns=len(by_mail), timeout=0)
        return [by_mail[mail] for mail in ready]

    def close(self) -> None:
        super().close()
        if self._is_ours:
            ray.shutdown()

    def _fill(self) -> list[tuple[str, float, float]]:
        """Forget idle actors of lost nodes and start actors if there is room. Returns host, CPUs and GPUs per node."""
        self._looked_at = time.monotonic()
        alive = {
            node["NodeID"]: (node["NodeManagerHostname"], node["Resources"]) for node in ray.nodes() if node["Alive"]
        }
        nodes = [(host, resources.get("CPU", 0), resources.get("GPU", 0)) for host, resources in alive.values()]
        share = self._gpus  # the room is that of a cluster which nobody else uses
        self._room = sum(int(min(cpu, gpu / share + 1e-9) if share else cpu) for _, cpu, gpu in nodes)
        self.workers = [worker for worker in self.workers if worker.task is not None or worker.node in ("", *alive)]
        while len(self.workers) < min(self._n, self._room):
            self.workers.append(_Actor(self._make.remote(), self._bf16_on))
        return nodes


class _Actor(Worker):
    """An actor; `mail` is the reference to its next message."""

    def __init__(self, handle: Any, bf16_on: str | None):
        self.mail: Any = None
        self.started = handle.place.remote(bf16_on)
        self.node = ""  # its id; empty while the actor is not known to have started
        self._handle = handle
        self._number = 0  # number of the current task, for `cancel`

    def send(self, job: Job, task: Any) -> None:
        self._number += 1
        job.reference = job.reference or ray.put((job.function, job.shared))  # once for all actors
        self._handle.work.remote(self._number, [job.reference], task)  # in a list, so that the actor itself fetches it
        self.mail = self._handle.message.remote()

    def message(self) -> tuple[str, Any]:
        try:
            kind, content = ray.get(self.mail)
        except RayError as error:
            self.kill()
            # "The actor is dead because its worker process has died. ..." becomes its first sentence.
            return "died", str(error).strip().rpartition("\n")[2].partition(". ")[0]
        if kind != "outcome":
            self.mail = self._handle.message.remote()
        return kind, content

    def cancel(self) -> None:
        with contextlib.suppress(RayError):
            self._handle.cancel.remote(self._number)

    def kill(self) -> None:
        with contextlib.suppress(RayError):
            ray.kill(self._handle)


class RayActor:
    """Runs one task at a time on its main thread. The threads of group `mail` answer the other calls meanwhile."""

    def __init__(self) -> None:
        from fmnist_transfer.training.device import prepare_process

        prepare_process()
        self._messages: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        self._cancelled = 0  # number of the task that was cancelled last
        self._job: Any = None
        self._shared: Any = None

    def place(self, bf16_on: str | None) -> tuple[str, str]:
        """Return the id of the actor's node; and, if that lacks bf16 on the kind of device `bf16_on`, a message."""
        from fmnist_transfer.training.device import bf16_support

        is_supported, reason = bf16_support(bf16_on) if bf16_on else (True, "")
        problem = "" if is_supported else f"node {socket.gethostname()} has no bf16, to train in ({reason})"
        return str(ray.get_runtime_context().get_node_id()), problem

    def work(self, number: int, shared: list[Any], task: Any) -> None:
        """Run the task `number`; its start, reports and outcome become messages. `shared` holds one reference."""

        def run(_: Any, task: Any, *more: Any) -> Any:
            if self._shared != shared:  # in `attempt`: the import may fail here
                self._job, self._shared = ray.get(shared[0]), shared
            function, data = self._job
            return function(data, task, *more)

        put = self._messages.put
        put(("begun", None))
        outcome = attempt(run, None, task, lambda news: put(("report", news)), lambda: self._cancelled == number)
        put(("outcome", outcome))

    @ray.method(concurrency_group="mail")
    def message(self) -> tuple[str, Any]:
        return self._messages.get()

    @ray.method(concurrency_group="mail")
    def cancel(self, number: int) -> None:
        self._cancelled = number


def _connect() -> None:
    """Connect to the cluster at `RAY_ADDRESS`, else to one on this machine, else start one."""
    address = os.environ.get("RAY_ADDRESS", "")
    host, _, port = address.partition(":")
    try:
        if port.isdecimal():  # Ray itself would retry for minutes
            socket.create_connection((host, int(port)), timeout=5).close()
    except OSError as error:
        raise UsageError(f"cannot reach the Ray cluster at {address} ({error.strerror or error})") from error
    logging.getLogger("ray").setLevel(logging.CRITICAL)
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        ray.init(log_to_driver=False, logging_level=logging.CRITICAL, include_dashboard=False)
    except (RayError, RuntimeError, OSError, ValueError) as error:
        text = str(error).strip().splitlines()[0]
        raise UsageError(f"cannot use the Ray cluster at {address or 'this machine'} ({text})") from error
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)  # ray.init replaces the handler of SIGTERM
