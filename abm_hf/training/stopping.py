"""Leaving a run in order: signals and the time limit."""

import math
import signal
import time
from typing import Any


class StopRequest:
    """Notes SIGTERM, SIGINT and the end of the time limit; the loop asks after each step.

    A second SIGINT interrupts at once, as without this class.

    Args:
        time_limit_minutes: Minutes after `started`; `None` for no limit.
        started: On the clock of `time.monotonic`.
    """

    def __init__(self, time_limit_minutes: float | None = None, started: float = 0.0) -> None:
        self.deadline = math.inf if time_limit_minutes is None else started + 60 * time_limit_minutes
        self.reason: str | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        for number in (signal.SIGTERM, signal.SIGINT):
            try:
                self._previous[number] = signal.signal(number, self._note)
            except ValueError:  # not in the main thread: signals are somebody else's matter
                break
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: object) -> None:
        self.reason = signal.Signals(number).name
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def wanted(self) -> bool:
        """Whether to stop after this step."""
        if self.reason is None and time.monotonic() >= self.deadline:
            self.reason = "the time limit"
        return self.reason is not None
