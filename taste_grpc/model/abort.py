"""How a caller stops long model work from outside."""

from __future__ import annotations

from collections.abc import Callable

AbortCheck = Callable[[], None]
"""Called between layers, Euler steps, decode steps and vocoder chunks; raises (usually
`taste_grpc.errors.CallAbortedError`) when the work is no longer wanted."""


def never_abort() -> None:
    """The check of callers that run to the end."""
