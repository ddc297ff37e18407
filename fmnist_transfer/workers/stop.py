"""Signals and the loss of the store become a flag that ends tasks. Imports no torch."""

import contextlib
import os
import signal
from collections.abc import Iterator
from typing import Any

from fmnist_transfer.errors import Interrupted, StoreError

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


class StopSignal:
    """Turns SIGINT, SIGTERM and SIGHUP into a flag. If it `may_quit`, a second signal ends the process at once."""

    def __init__(self, *, may_quit: bool = True) -> None:
        self._may_quit = may_quit
        self.number: int | None = None
        self.outage: StoreError | None = None  # the first one that `held` suppressed
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignal":
        for number in SIGNALS:
            if signal.getsignal(number) != signal.SIG_IGN:  # ignored, for example under nohup
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, kind: object, error: BaseException | None, _: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if isinstance(error, StoreError):  # a stop takes precedence over a lost store
            self.raise_if_set(str(error))

    def _handle(self, number: int, frame: object) -> None:
        is_second, self.number = self.number is not None, number
        if not self._may_quit:
            return
        if is_second:
            os._exit(Interrupted("", number).exit_status)
        with contextlib.suppress(OSError):
            os.write(2, b"\nstopping after the current batches; repeat to quit at once\n")

    def is_set(self) -> bool:
        return self.number is not None or self.outage is not None

    def raise_if_set(self, message: str) -> None:
        """Raise Interrupted with the signal's exit status if a signal came."""
        if self.number is not None:
            raise Interrupted(message, self.number)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Suppress a StoreError of the block and stop the tasks; the caller raises `outage` after they have ended."""
        try:
            yield
        except StoreError as error:
            self.outage = self.outage or error
