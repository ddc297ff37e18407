"""The one door to MLflow: where the store is, runs, logging. `registry.py` adds models.

    store = open_store(None)                     # the checkout's mlruns/, or MLFLOW_TRACKING_URI
    run_id = store.start(TRANSFER, "sweep", params={...})
    with store.ending(run_id):                   # FINISHED, FAILED or KILLED, truthfully
        store.log(run_id, metrics=[("val_loss", 0.2, 5)])

One process writes: workers return arrays, and the command logs them in batches.
"""

import contextlib
import functools
import io
import logging
import os
import shlex
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
from mlflow.data.code_dataset_source import CodeDatasetSource
from mlflow.data.meta_dataset import MetaDataset
from mlflow.entities import DatasetInput, InputTag, Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from fmnist_transfer.database import SQLITE, create_once, masked, sqlite_path, sqlite_uri
from fmnist_transfer.errors import Interrupted, StoreError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from fmnist_transfer.data import Half
    from fmnist_transfer.model import CNN2Spec
    from fmnist_transfer.recipe import Recipe
    from fmnist_transfer.training import Epoch, Result

TUNING, TRANSFER, BENCHMARK = "fmnist-tuning", "fmnist-transfer", "fmnist-benchmark"  # experiments
PROJECT = Path(__file__).resolve().parent.parent
METRICS_A_CALL, TEXTS_A_CALL = 800, 100  # MLflow takes 1,000 items a call, of them 100 params and 100 tags
HEALTH_SECONDS = 5.0

MetricRow = tuple[str, float, int]  # key, value, step


def default_folder() -> Path:
    """The `mlruns` of the checkout that holds this package, else of the current directory."""
    return (PROJECT if (PROJECT / "pyproject.toml").exists() else Path.cwd()) / "mlruns"


@dataclass(frozen=True)
class Store:
    """An open tracking store. Make it with `open_store`."""

    uri: str
    folder: Path
    """Beside the database; where the study database is by default."""
    client: MlflowClient

    @property
    def ui_command(self) -> str:
        """What the user runs to see the store in a browser."""
        if self.uri.startswith("http"):
            return f"open {masked(self.uri)} in a browser"
        if not self.uri.startswith(SQLITE):
            return f"mlflow server --backend-store-uri {masked(self.uri)}"
        return (
            f"MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false mlflow server --backend-store-uri {shlex.quote(self.uri)} "
            f"--artifacts-destination {shlex.quote(str(self.folder / 'artifacts'))} --workers 1"
        )

    def experiment(self, name: str) -> str:
        """Id of the experiment, created if it is not there."""
        found = self.client.get_experiment_by_name(name)
        if found:
            return str(found.experiment_id)
        location = (self.folder / "artifacts" / name).as_uri() if self.uri.startswith("sqlite") else None
        return self.client.create_experiment(name, artifact_location=location)

    def start(
        self,
        experiment: str,
        name: str,
        *,
        parent: str | None = None,
        params: Mapping[str, Any] | None = None,
        tags: Mapping[str, Any] | None = None,
    ) -> str:
        """Create a RUNNING run with its provenance and return its id."""
        all_tags = provenance() | {str(key): str(value) for key, value in (tags or {}).items()}
        if parent:
            all_tags["mlflow.parentRunId"] = parent
        run = self.client.create_run(self.experiment(experiment), run_name=name, tags=all_tags)
        self.log(run.info.run_id, params=params)
        return str(run.info.run_id)

    def log(
        self,
        run_id: str,
        *,
        metrics: Sequence[MetricRow] = (),
        params: Mapping[str, Any] | None = None,
        tags: Mapping[str, Any] | None = None,
    ) -> None:
        """Log everything in as few calls as MLflow allows."""
        now = int(time.time() * 1_000)
        values = [Metric(key, float(value), now, step) for key, value, step in metrics]
        texts = [Param(key, str(value)) for key, value in (params or {}).items()]
        labels = [RunTag(key, str(value)) for key, value in (tags or {}).items()]
        while values or texts or labels:
            self.client.log_batch(run_id, values[:METRICS_A_CALL], texts[:TEXTS_A_CALL], labels[:TEXTS_A_CALL])
            values, texts, labels = values[METRICS_A_CALL:], texts[TEXTS_A_CALL:], labels[TEXTS_A_CALL:]

    def log_data(self, run_id: str, half: "Half", role: str) -> None:
        """Name the half of Fashion-MNIST that the run used; `role` is `source` or `target`."""
        name = f"Fashion-MNIST classes {''.join(map(str, half.classes))}"
        source = CodeDatasetSource({"package": "fmnist-transfer", "sha256": half.data_sha256})
        dataset = MetaDataset(source, name=name, digest=half.data_sha256[:16])  # type: ignore[abstract]
        tag = InputTag("mlflow.data.context", role)
        self.client.log_inputs(run_id, [DatasetInput(dataset._to_mlflow_entity(), [tag])])

    def log_text(self, run_id: str, path: str, text: str) -> None:
        self.client.log_text(run_id, text, path)

    def log_figure(self, run_id: str, path: str, figure: "Figure") -> None:
        """Log the figure under `path` (.png); the figure stays open."""
        content = io.BytesIO()
        figure.savefig(content, format="png", dpi=150)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / Path(path).name
            file.write_bytes(content.getvalue())
            self.client.log_artifact(run_id, str(file), str(Path(path).parent) if "/" in path else None)

    def reopen(self, run_id: str) -> None:
        """Make a finished run RUNNING again, to extend it."""
        self.client.update_run(run_id, status="RUNNING")

    def end(self, run_id: str, status: str = "FINISHED") -> None:
        self.client.set_terminated(run_id, status)

    @contextlib.contextmanager
    def ending(self, run_id: str) -> Iterator[None]:
        """End the run when the block ends: FINISHED, KILLED by a signal, or FAILED by any other exception."""
        try:
            yield
        except (Interrupted, KeyboardInterrupt):
            self.end(run_id, "KILLED")
            raise
        except BaseException:
            self.end(run_id, "FAILED")
            raise
        self.end(run_id)

    def find(self, experiment: str, **tags: str) -> list[Run]:
        """Runs of the experiment with these tags, the newest first."""
        condition = " and ".join(f"tags.{key} = '{value}'" for key, value in tags.items())
        runs: list[Run] = []
        token = None
        while True:
            page = self.client.search_runs([self.experiment(experiment)], condition, page_token=token)
            runs += page
            if not (token := page.token):
                return runs


def open_store(tracking_uri: str | None) -> Store:
    """Open the store at `tracking_uri`, else `MLFLOW_TRACKING_URI`, else `sqlite` under `mlruns/`, made if need be.

    A sqlite file gets its artifacts in `artifacts/` beside it. Raises StoreError.
    """
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    os.environ.pop("MLFLOW_RUN_ID", None)  # it would beat the parent of every run
    asked = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or str(default_folder() / "mlflow.db")
    if "://" not in asked and asked.endswith(".db"):
        asked = f"{SQLITE}{Path(asked).absolute()}"
    folder = default_folder()
    if (database := sqlite_path(asked)) is not None:
        asked, folder = sqlite_uri(database), database.parent
        os.environ["_MLFLOW_SERVER_ARTIFACT_ROOT"] = (folder / "artifacts").as_uri()
        create_once(database, lambda path: _create_database(path, folder))
    elif asked.startswith(("http://", "https://")):
        _probe(asked)
    elif not asked.startswith(("postgresql", "mysql", "mssql")):
        raise StoreError(
            f"{masked(asked)} is no tracking store: give sqlite:////path/mlflow.db, a database URI or http://"
        )
    try:
        mlflow.set_tracking_uri(asked)
        client = MlflowClient(asked)
        client.search_experiments(max_results=1)
    except (MlflowException, ImportError) as error:
        reason = str(error).strip().splitlines()[0].replace(asked, masked(asked))
        raise StoreError(f"cannot open the tracking store {masked(asked)}: {reason}") from error
    return Store(asked, folder, client)


def _create_database(path: Path, folder: Path) -> None:
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    store = SqlAlchemyStore(sqlite_uri(path), (folder / "artifacts").as_uri())
    store.engine.dispose()


def _probe(uri: str) -> None:
    try:
        address = masked(uri).replace("***@", "").rstrip("/")
        with urllib.request.urlopen(f"{address}/health", timeout=HEALTH_SECONDS):
            pass
    except urllib.error.HTTPError:
        pass  # it answers; whether it lets us in is seen at the first call
    except OSError as error:
        reason = getattr(error, "reason", error)
        raise StoreError(
            f"no MLflow server at {masked(uri)} ({reason}); start it and run the same command again"
        ) from error


def settings_params(spec: "CNN2Spec", recipe: "Recipe") -> dict[str, Any]:
    """The whole spec and recipe as params: `spec.channels`, `recipe.learning_rate` ..."""
    params = {f"spec.{key}": value for key, value in spec.to_dict().items()}
    return params | {f"recipe.{key}": value for key, value in recipe.to_dict().items()}


def curve_rows(epochs: Sequence["Epoch"]) -> list[MetricRow]:
    """The epoch curves of a training, step = epoch."""
    return [
        row
        for e in epochs
        for row in (
            ("train/loss", e.train_loss, e.epoch),
            ("val/loss", e.val_loss, e.epoch),
            ("val/accuracy", e.val_accuracy, e.epoch),
            ("learning_rate", e.learning_rate, e.epoch),
            ("epoch_seconds", e.seconds, e.epoch),
        )
    ]


def score_rows(result: "Result") -> list[MetricRow]:
    """`final/...`, `best/...` and `test/...` of a finished training, one value each."""
    groups = result.to_dict().items()
    return [(f"{group}/{key}", value, 0) for group, scores in groups for key, value in scores.items()]


@functools.cache
def provenance() -> dict[str, str]:
    """Tags of every run: package version, git commit, host and process."""
    try:
        package = version("fmnist-transfer")
    except PackageNotFoundError:
        package = "not installed"
    tags = {"package_version": package, "host": socket.gethostname(), "pid": str(os.getpid())}
    git = ["git", "-C", str(PROJECT)]
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True).stdout
        tags |= {"mlflow.source.git.commit": commit, "git_dirty": str(bool(changed.strip())).lower()}
    return tags
