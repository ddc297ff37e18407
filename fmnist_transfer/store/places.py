"""Where the store and the study are, and how their URIs are written."""

import hashlib
import os
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from fmnist_transfer.errors import StoreError
from fmnist_transfer.terminal.output import masked

PROJECT = Path(__file__).resolve().parents[2]  # the checkout, or the folder of an installed package
SQLITE = "sqlite:///"  # and a path
ARTIFACTS = "artifacts"  # the folder beside the database
POSTGRESQL = "postgresql"  # and ://, or +driver://


def short_name(uri: str) -> str:
    """A file name for the store at `uri`, whoever uses it."""
    return hashlib.sha256(masked(uri).replace("***@", "").rstrip("/").encode()).hexdigest()[:16]


def sqlite_uri(path: Path) -> str:
    """The URI of an absolute path. Raises StoreError for one that sqlite URIs cannot hold."""
    text = str(path)
    if any(character in text for character in "?%") or text != text.encode("utf-8", "replace").decode():
        raise StoreError(f"{path}: a sqlite URI holds no ?, no % and nothing but UTF-8; use another folder")
    return f"{SQLITE}{path}"  # not sqlalchemy.URL.create: it quotes # and ü, and not every reader unquotes them


def sqlite_path(uri: str) -> Path | None:
    """The absolute path of a sqlite URI's file; None for any other URI."""
    return Path(uri.removeprefix(SQLITE)).absolute() if uri.startswith(SQLITE) else None


def file_path(uri: str) -> Path:
    """The path of a `file:` URI, or of what is a path already."""
    return Path(url2pathname(urlsplit(uri).path))


def default_folder() -> Path:
    """The `mlruns` of the checkout that holds this package, else of the current directory."""
    return (PROJECT if (PROJECT / "pyproject.toml").exists() else Path.cwd()) / "mlruns"


def study_uri(given: str | None, folder: Path) -> str:
    """Of the study database: what was asked for, a file's path too, else `optuna.db` in the tracking store's folder."""
    uri = given or str(folder / "optuna.db")
    return uri if "://" in uri else sqlite_uri(Path(uri).absolute())


def store_uri(given: str | None) -> str:
    """The tracking store's URI: as asked for, else `MLFLOW_TRACKING_URI`, else sqlite under `mlruns/`.

    A mere path that ends in `.db` becomes a sqlite URI, and a sqlite URI's path absolute.
    """
    uri = given or os.environ.get("MLFLOW_TRACKING_URI") or str(default_folder() / "mlflow.db")
    if "://" not in uri and uri.endswith(".db"):
        uri = f"{SQLITE}{uri}"
    database = sqlite_path(uri)
    return uri if database is None else sqlite_uri(database)
