"""A real PostgreSQL server, and sites whose store is an `mlflow server` on it."""

import contextlib
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import sqlalchemy
from proving import Process, Server, Site, free_port

from fmnist_transfer.store.opening import open_store
from fmnist_transfer.store.runs import Store
from fmnist_transfer.terminal.output import masked

PASSWORD = "canary-5e1f"  # which is to be found nowhere
MODEL_DATABASE = "model"  # of the template: a store in which a small network is models:/cnn2/best


def find_programs() -> Path | None:
    """Folder of `initdb` and `pg_ctl`, which Debian keeps off the path; None if they are not installed."""
    on_path = shutil.which("initdb")
    folders = [Path(on_path).parent] if on_path else sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    return folders[-1] if folders else None


class PostgreSQL:
    """A server of its own on a loopback port; `initdb` refuses root, so root becomes user `postgres` for it."""

    def __init__(self, programs: Path):
        self._programs = programs
        self._user = "postgres" if os.geteuid() == 0 else None
        self.folder = Path(tempfile.mkdtemp(prefix="postgres-"))
        self.port = free_port()
        password = self.folder / "password"
        password.write_text(PASSWORD)
        if self._user:
            shutil.chown(self.folder, self._user)
            shutil.chown(password, self._user)
        self._run("initdb", "--username=tester", "--auth=scram-sha-256", f"--pwfile={password}", "--no-sync")
        with (self.folder / "data" / "postgresql.conf").open("a") as settings:
            settings.write(f"port = {self.port}\nlisten_addresses = '127.0.0.1'\nunix_socket_directories = ''\n")
            settings.write("fsync = off\nmax_connections = 100\n")  # which a killed server does without

    def _run(self, program: str, *arguments: str) -> None:
        command = [self._programs / program, "-D", self.folder / "data", *arguments]
        log = (self.folder / "commands.log").open("ab")
        with log:
            done = subprocess.run(command, user=self._user, stdout=log, stderr=log, cwd="/", check=False)
        assert done.returncode == 0, (self.folder / "commands.log").read_text()

    def start(self) -> None:
        self._run("pg_ctl", "start", "-w", "-l", str(self.folder / "server.log"))

    def stop(self, mode: str) -> None:
        """`fast` ends every connection, `immediate` is a crash."""
        self._run("pg_ctl", "stop", "-w", "-m", mode)

    def restart(self, mode: str) -> None:
        self.stop(mode)
        self.start()

    def uri(self, database: str) -> str:
        return f"postgresql://tester:{PASSWORD}@127.0.0.1:{self.port}/{database}"

    def create(self, database: str, template: str = "template1") -> str:
        """URI of a new database."""
        self.execute("postgres", f'CREATE DATABASE "{database}" TEMPLATE "{template}"')
        return self.uri(database)

    def execute(self, database: str, statement: str) -> list[Any]:
        engine = sqlalchemy.create_engine(self.uri(database), poolclass=sqlalchemy.NullPool)
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            result = connection.execute(sqlalchemy.text(statement))
            return list(result) if result.returns_rows else []

    def close(self) -> None:
        with contextlib.suppress(AssertionError):
            self.stop("immediate")
        shutil.rmtree(self.folder, ignore_errors=True)


class SharedSite(Site):
    """A site that several machines may share: an MLflow server on PostgreSQL, and a study database there."""

    def __init__(self, folder: Path, data_dir: Path, scratch: Path, postgres: PostgreSQL, name: str):
        super().__init__(folder, data_dir, scratch)
        self.postgres, self.name = postgres, name
        self.server = Server(folder, postgres.uri(name))
        self.storage = postgres.uri(f"{name}-study")

    def open(self) -> Store:
        return open_store(self.server.uri)

    def start(self, module: str, *arguments: str, uri: str | None = None, **options: Any) -> Process:
        if module == "tuning.search" and "--reference" not in arguments:
            arguments = ("--storage", self.storage, *arguments)
        if machine := re.search(r"machine:(\w+)", options.get("fault", "")):  # it has locks of its own
            state = {"XDG_STATE_HOME": str(self.scratch / f"state of {machine[1]}")}
            options["env"] = state | (options.get("env") or {})
        return super().start(module, *arguments, uri=uri or self.server.uri, **options)

    def count(self, query: str, *, study: bool = False) -> int:
        """A number from the store's database or the study's; 0 while the server is away."""
        with contextlib.suppress(sqlalchemy.exc.SQLAlchemyError):
            return int(self.postgres.execute(f"{self.name}-study" if study else self.name, query)[0][0])
        return 0

    def n_trials(self, state: str) -> int:
        return self.count(f"SELECT count(*) FROM trials WHERE state = '{state}'", study=True)

    @property
    def study_uri(self) -> str:
        return self.storage

    def close(self) -> None:
        super().close()
        self.server.close()


def check_no_password(site: SharedSite) -> None:
    """In nothing that the site's commands printed or wrote to files and databases."""
    tables = {site.name: ["params", "tags"], f"{site.name}-study": ["study_user_attributes", "trial_user_attributes"]}
    for database, those in tables.items():
        for table in those:
            with contextlib.suppress(sqlalchemy.exc.ProgrammingError):  # no search has made them
                assert PASSWORD not in str(site.postgres.execute(database, f"SELECT * FROM {table}"))
    assert masked(f"postgresql://tester:{PASSWORD}@host") == "postgresql://***@host"
    for file in [*site.scratch.rglob("*"), *site.folder.rglob("*")]:
        if file.is_file():
            assert PASSWORD.encode() not in file.read_bytes(), file
