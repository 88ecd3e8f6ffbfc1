"""Whether a call is still wanted."""

from __future__ import annotations

import time

from taste_grpc.errors import CallAbortedError


class CallAbort:
    """One call as the model thread knows it: whether it is still wanted, and how far it has come.

    Set on the event loop, called by the model thread between steps.

    Attributes:
        is_set: whether the call was asked to stop.
        checks: how often it was looked at, which is how many steps, layers and the like were begun.
    """

    def __init__(self) -> None:
        self.is_set = False
        self._arrived = time.monotonic()
        self._began: float | None = None
        self.checks = 0

    @property
    def queued_ms(self) -> float:
        """From the making of this object until the call's first piece of work began, or until now if none has."""
        return 1000.0 * ((self._began or time.monotonic()) - self._arrived)

    def begin(self) -> None:
        """Note that a piece of the call's work begins."""
        if self._began is None:
            self._began = time.monotonic()

    def set(self) -> None:
        """Ask the call's model work to stop at its next check."""
        self.is_set = True

    def __call__(self) -> None:
        """Raise CallAbortedError when the call is no longer wanted."""
        if self.is_set:
            raise CallAbortedError("the call was cancelled")
        self.checks += 1
