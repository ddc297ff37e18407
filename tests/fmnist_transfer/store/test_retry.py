"""The one retry policy: what is retried, for how long, what is said, and what is never done twice."""

import errno
import re

import pytest
import requests
import sqlalchemy.exc

from fmnist_transfer.errors import StoreError
from fmnist_transfer.store import retry as module
from fmnist_transfer.store.retry import RetryingClient, RetryPolicy, reason, trouble

LOCKED = sqlalchemy.exc.OperationalError("INSERT", {}, Exception("database is locked"))
LOCKED.__cause__ = LOCKED.orig
READ_ONLY = sqlalchemy.exc.OperationalError("INSERT", {}, Exception("attempt to write a readonly database"))
REFUSED = requests.exceptions.ConnectionError("Connection refused")


class Flaky:
    """Fails with each error in turn, then answers how often it was called."""

    def __init__(self, *errors: Exception):
        self._errors, self.n_calls = list(errors), 0

    def ask(self) -> int:
        self.n_calls += 1
        if self._errors:
            raise self._errors.pop(0)
        return self.n_calls


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_WAIT_SECONDS", 0.001)


def wrapped(cause: Exception) -> Exception:
    """As MLflow and Optuna raise it: another error on top."""
    error = RuntimeError("API request failed")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (LOCKED, "passing"),
        (REFUSED, "passing"),
        (requests.exceptions.ReadTimeout(), "passing"),
        (wrapped(LOCKED), "passing"),
        (OSError(errno.ENOSPC, "No space left on device"), "passing"),
        (ConnectionError("another command is creating its tables"), "passing"),
        (READ_ONLY, "lasting"),
        (OSError(errno.EROFS, "Read-only file system"), "lasting"),
        (ValueError("a param cannot be changed"), None),
        (StoreError("given up"), None),
        (FileNotFoundError(errno.ENOENT, "No such file"), None),
    ],
)
def test_which_errors_are_the_stores(error: Exception, kind: str | None) -> None:
    assert trouble(error) == kind


def test_a_call_is_retried_until_it_succeeds_and_that_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    flaky = Flaky(LOCKED, REFUSED, wrapped(LOCKED))
    assert RetryPolicy().call(flaky.ask) == 4
    first, second = capsys.readouterr().err.splitlines()
    assert re.match(r"note: .*\(database is locked\).* 5 min 00 s", first)
    assert re.match(r"note: .* 0 s", second)


def test_it_gives_up_after_its_time_and_waits_for_nothing_then() -> None:
    retry = RetryPolicy(timeout_seconds=0.05)
    endless = Flaky(*[REFUSED] * 100_000)
    with pytest.raises(StoreError, match=r"\b0 s \(Connection refused\)"):
        retry.call(endless.ask)
    assert endless.n_calls > 1
    again = Flaky(REFUSED)
    with pytest.raises(StoreError):
        retry.call(again.ask)
    assert again.n_calls == 1


def test_it_gives_up_soon_once_the_command_is_to_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STOPPED_TIMEOUT_SECONDS", 0.05)
    with pytest.raises(StoreError):
        RetryPolicy(timeout_seconds=1e9, should_stop=lambda: True).call(Flaky(*[LOCKED] * 100_000).ask)


@pytest.mark.parametrize(("error", "kind"), [(ValueError("no"), ValueError), (READ_ONLY, StoreError)])
def test_what_does_not_pass_is_not_retried(error: Exception, kind: type[Exception]) -> None:
    flaky = Flaky(error)
    with pytest.raises(kind):
        RetryPolicy().call(flaky.ask)
    assert flaky.n_calls == 1


def test_every_method_of_a_retrying_client_is_retried() -> None:
    client = RetryingClient(Flaky(LOCKED), RetryPolicy())
    assert client.ask() == 2
    assert client.n_calls == 2


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (wrapped(OSError(errno.ENOSPC, "No space left on device")), "disk full"),
        (requests.exceptions.ConnectionError(("Connection aborted.", ValueError("gone"))), "('Connection aborted.'"),
        (ValueError("http://me:secret@host failed\nmore"), "http://***@host failed"),
        (ValueError(), "ValueError"),
    ],
)
def test_the_reason_is_the_innermost_errors_first_line(error: Exception, text: str) -> None:
    assert reason(error).startswith(text)
