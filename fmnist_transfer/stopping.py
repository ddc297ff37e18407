"""Signals become a flag that running tasks ask for, in this process and in its workers. Imports no torch."""

import contextlib
import multiprocessing
import os
import signal
from typing import Any

from fmnist_transfer.errors import Interrupted

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


class StopSignal:
    """Turns SIGINT, SIGTERM and SIGHUP into a flag that tasks ask for before each batch.

    The second signal leaves at once. A context manager: handlers are restored on exit.
    """

    def __init__(self) -> None:
        # A plain byte: the handler of a signal must take no lock, and a killed worker must leave none taken.
        self.flag = multiprocessing.get_context("spawn").RawValue("b", 0)
        self.number: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignal":
        for number in SIGNALS:
            if signal.getsignal(number) != signal.SIG_IGN:  # as under nohup
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: object) -> None:
        if self.number is not None:
            os._exit(128 + number)
        self.number = number
        self.flag.value = 1
        with contextlib.suppress(OSError):
            os.write(2, b"\nstopping after the current batches; once more to leave at once\n")

    def is_set(self) -> bool:
        return bool(self.flag.value)

    def raise_if_set(self, message: str) -> None:
        """Raise Interrupted, with the signal's exit status, if a signal came."""
        if self.number is not None:
            raise Interrupted(message, self.number)
