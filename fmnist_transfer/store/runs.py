"""An open tracking store, and the runs that a driver keeps open in it. `registry` adds models."""

import contextlib
import hashlib
import itertools
import json
import secrets
import shlex
import tempfile
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

from mlflow.entities import Dataset, DatasetInput, Experiment, InputTag, Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from fmnist_transfer.data.split import digits
from fmnist_transfer.errors import Interrupted, StoreError
from fmnist_transfer.store.links import experiment_tags
from fmnist_transfer.store.lock import Owner, provenance
from fmnist_transfer.store.places import ARTIFACTS
from fmnist_transfer.store.retry import RetryPolicy
from fmnist_transfer.store.roles import NOTE, TAG_LENGTH, MetricRow, Role
from fmnist_transfer.terminal.output import masked, warn

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from fmnist_transfer.data.examples import Half

__all__ = ["Run", "Store", "already_there"]
METRICS_PER_CALL, TEXTS_PER_CALL = 800, 100  # MLflow takes 1,000 items per call, among them 100 params and 100 tags
DPI, INLINE_DPI = 150, 90  # the UI shows pictures in descriptions at their natural size
Status = Literal["FINISHED", "FAILED", "KILLED"]
Tags = Mapping[str, Any] | None  # or params; values are written by str()
Files = Mapping[str, bytes] | None  # name -> content
Key = TypeVar("Key", bound=Hashable)
OUR_NOTE = "described"  # tag: sha256 of the description a command wrote, to tell it from a user's


@dataclass(frozen=True)
class Store:
    """An open tracking store, created by `open_store`."""

    uri: str
    folder: Path  # of the database, where the study database is by default
    client: MlflowClient  # its calls are retried with `retry`
    once: MlflowClient  # the same without retries, for calls that must not be repeated
    retry: RetryPolicy

    @property
    def show_command(self) -> str:
        """The command that shows the store in a browser; a password in its URI must be filled in."""
        return f"python -m fmnist_transfer.show --tracking-uri {shlex.quote(masked(self.uri))}"

    def experiment(self, name: str) -> str:
        """Id of the experiment. Creates it, its description and its saved views if missing."""
        while (experiment := self._existing(name)) is None:
            location = None if self.uri.startswith("http") else (self.folder / ARTIFACTS / name).as_uri()
            with already_there():  # another command created it first
                self.client.create_experiment(name, artifact_location=location)
        experiment_id = str(experiment.experiment_id)
        tags = experiment_tags(name, experiment_id, int(time.time() * 1_000))
        for key in tags.keys() - experiment.tags:  # a tag that a user changed stays
            with contextlib.suppress(MlflowException):  # another command set it, or this user may only read
                self.client.set_experiment_tag(experiment_id, key, tags[key])
        return experiment_id

    def _existing(self, name: str) -> Experiment | None:
        if (experiment := self.client.get_experiment_by_name(name)) and experiment.lifecycle_stage == "deleted":
            place = f"MLFLOW_TRACKING_URI={shlex.quote(self.uri)}"
            command = f"{place} mlflow experiments restore --experiment-id {experiment.experiment_id}"
            raise StoreError(masked(f"experiment {name!r} was deleted; its runs are kept. Restore it: {command}"))
        return experiment

    def start(
        self, experiment: str, name: str, *, parent: str = "", params: Tags = None, tags: Tags = None, start_ms: int = 0
    ) -> str:
        """Create a RUNNING run with provenance tags; return its id. `start_ms` is Unix time, default now."""
        creation = secrets.token_hex(8)  # finds the run again if only the response was lost
        all_tags = provenance() | {key: str(value) for key, value in (tags or {}).items()} | {"creation": creation}
        if parent:
            all_tags["mlflow.parentRunId"] = parent
        experiment_id = self.experiment(experiment)
        attempts = itertools.count()

        def create() -> Run:
            lost = self.find(experiment, creation=creation) if next(attempts) else []
            return lost[0] if lost else self.once.create_run(experiment_id, start_ms or None, all_tags, name)

        run = self.retry.call(create)
        self.log(run.info.run_id, params=params)
        return str(run.info.run_id)

    def log(self, run_id: str, *, metrics: Sequence[MetricRow] = (), params: Tags = None, tags: Tags = None) -> None:
        """Log everything in as few calls as MLflow allows. Tags go last and are cut to `TAG_LENGTH` characters."""
        time_ms = int(time.time() * 1_000)
        values = [Metric(key, float(value), time_ms, step) for key, value, step in metrics]
        texts = [Param(key, str(value)) for key, value in (params or {}).items()]
        labels = [RunTag(key, str(value)[:TAG_LENGTH]) for key, value in (tags or {}).items()]
        while values or texts or labels:
            last = len(values) <= METRICS_PER_CALL and len(texts) <= TEXTS_PER_CALL  # tags may mark completeness
            now = labels[:TEXTS_PER_CALL] if last else []
            self.client.log_batch(run_id, values[:METRICS_PER_CALL], texts[:TEXTS_PER_CALL], now)
            values, texts, labels = values[METRICS_PER_CALL:], texts[TEXTS_PER_CALL:], labels[len(now) :]

    def log_data(self, run_id: str, half: "Half", role: str) -> None:
        """Log which half of Fashion-MNIST the run used; `role` is `source` or `target`."""
        source = json.dumps({"tags": {"package": "fmnist-transfer", "sha256": half.data_sha256}})
        dataset = Dataset(data_name(half.classes), half.data_sha256[:16], "code", source)
        inputs = [DatasetInput(dataset, [InputTag("mlflow.data.context", role)])]
        try:
            self.client.log_inputs(run_id, inputs)
        except MlflowException:  # another command logged the same data at the same moment
            self.client.log_inputs(run_id, inputs)

    def describe(self, run_id: str, text: str) -> None:
        """Set the run's description (Markdown) unless the user has changed it."""
        tags = self.client.get_run(run_id).data.tags
        present = tags.get(NOTE, "")
        if not present or hashlib.sha256(present.encode()).hexdigest() == tags.get(OUR_NOTE):
            self.log(run_id, tags={NOTE: text, OUR_NOTE: hashlib.sha256(text[:TAG_LENGTH].encode()).hexdigest()})

    def log_figures(
        self, run_id: str, draw: "Callable[[], Mapping[str, Figure]]", small: tuple[str, str] = ("", "")
    ) -> None:
        """Log `draw()`'s figures by artifact path (.png); `small` is one of these and the path of its small copy."""
        import matplotlib.style  # imported late, so as not to delay the first training

        with matplotlib.style.context("default"):  # not the user's style
            figures = draw()
            for path, figure in figures.items():
                self.client.log_figure(run_id, figure, path, save_kwargs={"dpi": DPI})
            if small[0] in figures:
                self.client.log_figure(run_id, figures[small[0]], small[1], save_kwargs={"dpi": INLINE_DPI})

    def end(self, run_id: str, status: Status = "FINISHED", end_ms: int | None = None) -> None:
        self.client.set_terminated(run_id, status, end_ms)

    def end_orphans(self, experiment: str) -> None:
        """End as KILLED all RUNNING runs of the experiment whose process is certainly dead."""
        for run in self.find(experiment, status="RUNNING"):
            if Owner.from_tags(run.data.tags).is_dead():
                with contextlib.suppress(MlflowException):  # for example, this user may only read
                    self.end(run.info.run_id, "KILLED")

    @contextlib.contextmanager
    def ending(self, run_id: str) -> Iterator[None]:
        """End the run when the block ends: FINISHED, KILLED by a signal, or FAILED by any other exception."""
        try:
            yield
        except BaseException as error:
            stopped = isinstance(error, Interrupted | KeyboardInterrupt)
            with contextlib.suppress(StoreError):  # the block's own error is more useful
                self.end(run_id, "KILLED" if stopped else "FAILED")
            raise
        self.end(run_id)

    def get(self, run_id: str) -> Run | None:
        try:
            return self.client.get_run(run_id)
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None
            raise

    def find(self, experiment: str, *, status: str | None = None, **tags: str) -> list[Run]:
        """Active runs of the experiment with this status and these tags, newest first."""
        if (existing := self._existing(experiment)) is None:
            return []
        conditions = [f"tags.{key} = '{value}'" for key, value in tags.items()]
        conditions += [f"attributes.status = '{status}'"] if status else []
        runs, token = list[Run](), None
        while True:
            page = self.client.search_runs([existing.experiment_id], " and ".join(conditions), page_token=token)
            runs += page
            if not (token := page.token):
                return runs


def data_name(classes: tuple[int, ...]) -> str:
    return f"Fashion-MNIST classes {digits(classes)}"


@contextlib.contextmanager
def already_there() -> Iterator[None]:
    """Ignore MLflow's error for creating something that exists already."""
    try:
        yield
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


class OpenRuns(Generic[Key]):
    """Runs of one role below the run `parent`, each identified by a `Key` and with `half` as its data."""

    def __init__(self, store: Store, experiment: str, parent: str, role: Role, *, half: "Half", half_role: str):
        self._store, self._experiment, self._parent, self._role = store, experiment, parent, role
        self._half, self._half_role = half, half_role
        self._open: dict[Key, str] = {}

    def end_left(self, runs: Iterable[Run]) -> None:
        """End the RUNNING ones among `runs` as KILLED: a dead driver left them. The caller holds the parent's lock."""
        for run in runs:
            if run.info.status == "RUNNING":
                self._store.end(run.info.run_id, "KILLED")

    def begin(self, key: Key, name: str, params: Mapping[str, Any], tags: Mapping[str, Any]) -> None:
        tags = {"role": self._role, "parent": self._parent, **tags}
        self._open[key] = self._store.start(self._experiment, name, parent=self._parent, params=params, tags=tags)
        self._store.log_data(self._open[key], self._half, self._half_role)

    def end(
        self, key: Key, status: Status, *, metrics: Sequence[MetricRow] = (), tags: Tags = None, files: Files = None
    ) -> str:
        """Log the rest and end the run. Returns its id; empty if never begun, or deleted."""
        if not (run_id := self._open.pop(key, "")):
            return ""
        try:
            with tempfile.TemporaryDirectory() as folder:
                for name, content in (files or {}).items():
                    file = Path(folder) / name
                    file.write_bytes(content)
                    self._store.client.log_artifact(run_id, str(file))
            self._store.log(run_id, metrics=metrics, tags=tags)
            self._store.end(run_id, status)
        except MlflowException:
            if (run := self._store.get(run_id)) and run.info.lifecycle_stage == "active":
                raise
            warn(f"run {run_id} was deleted during its training; run the same command to train it again")
            return ""
        return run_id

    def fail(self, key: Key, reason: str, details: str = "") -> str:
        """End the run FAILED, with the reason as a tag and `details` as artifact `traceback.txt`."""
        files = {"traceback.txt": details.encode()} if details else {}
        return self.end(key, "FAILED", tags={"reason": reason}, files=files)

    def kill_rest(self) -> None:
        """End all open runs as KILLED; errors are suppressed so as not to hide an earlier one."""
        for key in list(self._open):
            with contextlib.suppress(Exception):
                self.end(key, "KILLED", tags={"reason": "the command ended before it"})
