"""SIGTERM and SIGINT: the first lets the step finish and is saved, the second stops at once."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType
from typing import Any

from chanprune.errors import SIGNALS, Interrupted
from chanprune.parallel import largest


class Interruption:
    """Takes note of a request to stop, while it is entered.

    Attributes:
        requested: The signal that came, or None.
    """

    def __init__(self) -> None:
        self.requested: int | None = None
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
        """Give the signals back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

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
        self.requested = number
        for again in SIGNALS:
            signal.signal(again, signal.SIG_DFL)
