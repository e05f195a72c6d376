"""SIGTERM and SIGINT: the first lets the step finish and is saved, one that comes later ends it."""

from __future__ import annotations

import signal
import time
from types import FrameType, TracebackType
from typing import Any

from chanprune.processes.errors import SIGNALS, Interrupted
from chanprune.processes.parallel import largest

ONE = 1.0  # seconds: launchers forward a signal that the process got already


class Interruption:
    """Takes note of a request to stop, while it is entered.

    Signals that come within a second of the first are the same request. A later one does what it
    would do otherwise: it ends the process.

    Attributes:
        requested: The signal that came, or None.
    """

    def __init__(self) -> None:
        self.requested: int | None = None
        self._first = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        """Take over the signals."""
        self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Give the signals back, unless one came: its repeats must not end what is left to do."""
        if self.requested is None:
            self._give_back()

    def stop_if_requested(self) -> None:
        """Stop here, where everything is saved.

        Raises:
            Interrupted: A signal came.
        """
        if self.requested is not None:
            raise Interrupted(self.requested)

    def stop_if_any_requested(self) -> None:
        """Stop here if any process was asked to; all call this together.

        Raises:
            Interrupted: A signal came.
        """
        number = largest(self.requested or 0)
        if number:
            raise Interrupted(number)

    def _note(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.requested is None:
            self.requested, self._first = number, now
        elif now - self._first > ONE:
            self._give_back()
            signal.raise_signal(number)

    def _give_back(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
