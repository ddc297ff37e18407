"""Locations of the store and the study, and the form of their URIs."""

import hashlib
import os
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from fmnist_transfer.errors import StoreError
from fmnist_transfer.terminal.output import masked

PROJECT = Path(__file__).resolve().parents[2]  # the checkout, or the folder of an installed package
SQLITE = "sqlite:///"  # followed by a path
ARTIFACTS = "artifacts"  # the folder beside the database
POSTGRESQL = "postgresql"  # followed by :// or +driver://


def without_user(uri: str) -> str:
    """The URI without user information and a slash at its end."""
    return masked(uri).replace("***@", "").rstrip("/")


def short_name(uri: str) -> str:
    """A file name for the store at `uri`, equal for all users."""
    return hashlib.sha256(without_user(uri).encode()).hexdigest()[:16]


def sqlite_uri(path: Path) -> str:
    """The sqlite URI of an absolute path. Raises StoreError if the path holds characters that no sqlite URI can."""
    if {"?", "%"} & set(str(path)) or str(path) != str(path).encode("utf-8", "replace").decode():
        raise StoreError(f"{path} cannot be written as a sqlite URI (no ?, no %, only UTF-8); use another folder")
    return f"{SQLITE}{path}"  # not sqlalchemy.URL.create: it quotes # and ü, which not every reader unquotes


def sqlite_path(uri: str) -> Path | None:
    """The absolute path of a sqlite URI's file; None for any other URI."""
    return Path(uri.removeprefix(SQLITE)).absolute() if uri.startswith(SQLITE) else None


def file_path(uri: str) -> Path:
    """The path of a `file:` URI; a plain path stays."""
    return Path(url2pathname(urlsplit(uri).path))


def default_folder() -> Path:
    """The `mlruns` of the checkout that holds this package, else of the current directory."""
    return (PROJECT if (PROJECT / "pyproject.toml").exists() else Path.cwd()) / "mlruns"


def study_uri(given: str | None, folder: Path) -> str:
    """The study database's URI: `given` (a URI or a file's path), else `optuna.db` in `folder`."""
    uri = given or str(folder / "optuna.db")
    return uri if "://" in uri else sqlite_uri(Path(uri).absolute())


def store_uri(given: str | None) -> str:
    """The tracking store's URI, a file's path made absolute: `given`, else `MLFLOW_TRACKING_URI`, else the default."""
    uri = given or os.environ.get("MLFLOW_TRACKING_URI") or str(default_folder() / "mlflow.db")
    if "://" not in uri and uri.endswith(".db"):
        uri = f"{SQLITE}{uri}"
    database = sqlite_path(uri)
    return uri if database is None else sqlite_uri(database)
