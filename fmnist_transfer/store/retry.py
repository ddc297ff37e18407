"""Retry calls of a store that may be unreachable for a while. Imports neither mlflow nor optuna."""

import errno
import functools
import random
import sqlite3
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from fmnist_transfer.errors import FULL, SAME_COMMAND, StoreError, UserError, causes
from fmnist_transfer.terminal.output import duration, masked, warn

T = TypeVar("T")
FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 0.25, 2.0  # a signal during a wait is noticed at its end
TIMEOUT_SECONDS, LONGEST_TIMEOUT_SECONDS = 300.0, 86_400.0
STOPPED_TIMEOUT_SECONDS = 5.0  # time left to log the end of a stopped command
# Fragments of permanent errors that sqlite and PostgreSQL raise as an OperationalError, like passing ones.
LASTING = ("readonly database", "does not exist", "authentication failed", "no password supplied")


@dataclass
class RetryPolicy:
    """Duration of retries, counted from the start of each call; once `should_stop()`, only a few seconds more."""

    timeout_seconds: float = TIMEOUT_SECONDS
    should_stop: Callable[[], bool] = lambda: False
    gave_up: bool = field(default=False, init=False)  # after that no call waits any more: the command is ending

    def call(self, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Call `function` until it succeeds. Raises StoreError when it gives up or the store's error is permanent."""
        start, longest_wait, has_failed, is_stopping = time.monotonic(), FIRST_WAIT_SECONDS, False, False
        deadline = start + self.timeout_seconds
        while True:
            try:
                result = function(*args, **kwargs)
                if has_failed:
                    warn(f"the store answers again, after {duration(time.monotonic() - start)}")
                return result
            except Exception as error:
                if (kind := trouble(error)) is None:
                    raise
                if kind == "lasting":
                    raise StoreError(f"the store cannot be used ({reason(error)}). Finished work is kept") from error
                if self.should_stop() and not is_stopping:
                    is_stopping, deadline = True, min(deadline, time.monotonic() + STOPPED_TIMEOUT_SECONDS)
                if self.gave_up or time.monotonic() >= deadline:
                    self.gave_up = True
                    away = f"{duration(time.monotonic() - start)} ({reason(error)})"
                    text = f"the store did not answer for {away}. Finished work is kept; {SAME_COMMAND}"
                    raise StoreError(text) from error
                if not has_failed:
                    most = duration(self.timeout_seconds)
                    warn(f"the store does not answer ({reason(error)}); trying again for up to {most}")
                has_failed = True
                time.sleep(random.uniform(0, longest_wait))
                longest_wait = min(2 * longest_wait, LONGEST_WAIT_SECONDS)


class RetryingClient:
    def __init__(self, client: Any, retry: RetryPolicy):
        self._client, self._retry = client, retry

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._client, name)
        return functools.partial(self._retry.call, value) if callable(value) else value


def trouble(error: BaseException) -> Literal["passing", "lasting"] | None:
    """Classify an error: `passing` (no connection, locked, full ...), `lasting`, or None if it is not the store's."""
    import requests.exceptions as http
    import sqlalchemy.exc as sql

    if isinstance(error, UserError):
        return None
    from_server = http.ConnectionError | http.Timeout | http.RetryError | http.ChunkedEncodingError | ConnectionError
    from_database = sql.OperationalError | sql.InterfaceError | sqlite3.OperationalError
    for link in causes(error):
        if isinstance(link, from_server | from_database):
            return "lasting" if any(words in str(link) for words in LASTING) else "passing"
        if isinstance(link, OSError) and link.errno in FULL:
            return "passing"
        if isinstance(link, OSError) and link.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
            return "lasting"
    return None


def reason(error: BaseException) -> str:
    """The innermost error in one line: `Connection refused`, `database is locked`, `Permission denied: /mlruns`."""
    # A LookupError in the chain, such as a miss in a library's cache, is no reason.
    *_, innermost = (link for link in causes(error) if link is error or not isinstance(link, LookupError))
    while innermost.args and isinstance(innermost.args[-1], BaseException):
        innermost = innermost.args[-1]
    text = getattr(innermost, "strerror", None) or str(innermost) or type(innermost).__name__
    if isinstance(innermost, OSError) and innermost.errno in FULL:
        text = "disk full"
    file = getattr(innermost, "filename", None)
    return masked(str(text).strip().splitlines()[0]) + (f": {file}" if file else "")
