"""When a refused call is made again."""

from __future__ import annotations

import math
import random
import time
from dataclasses import dataclass

import grpc

from taste_grpc_client.errors import MessageTooLargeError, TasteClientError, TlsError
from taste_grpc_client.limits import MAX_MESSAGE_BYTES

_ALLOWED = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED)
_JITTER = 0.2
_LONGEST_WISH_S = 3600.0
"""A server that wishes for more than an hour is not waited for: its refusal is told."""


@dataclass(frozen=True)
class Retry:
    """When a refused call is made again, within its deadline.

    The server's own wish (RetryInfo, or the trailer `grpc-retry-pushback-ms`) comes before the times given here, up to
    an hour. A stream is begun again only while nothing of it has arrived; what was sent is then sent again.

    Attributes:
        max_attempts: how often a call is made at most, the first time included.
        initial_backoff_s: wait before the second attempt, give or take a fifth.
        max_backoff_s: upper limit of such a wait.
        backoff_multiplier: how much longer each further wait is.
        codes: what is tried again: UNAVAILABLE (not reachable, loading, draining), RESOURCE_EXHAUSTED (no room).
        buffer_bytes: how much of what a Detokenize call has sent is kept for another attempt; a call that sends more
            is not begun again.
    """

    max_attempts: int = 4
    initial_backoff_s: float = 0.5
    max_backoff_s: float = 5.0
    backoff_multiplier: float = 2.0
    codes: tuple[grpc.StatusCode, ...] = _ALLOWED
    buffer_bytes: int = MAX_MESSAGE_BYTES

    def __post_init__(self) -> None:
        if self.max_attempts < 2:
            raise ValueError(f"max_attempts: 2 or more were expected, not {self.max_attempts!r}; retry=None makes one")
        for name, low in (("initial_backoff_s", 0), ("max_backoff_s", 0), ("backoff_multiplier", 1)):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= low):
                raise ValueError(f"{name}: a number from {low} up was expected, not {value!r}")
        if not self.codes or not set(self.codes) <= set(_ALLOWED):
            raise ValueError(f"codes: some of {', '.join(code.name for code in _ALLOWED)} were expected")
        if self.buffer_bytes < 0:
            raise ValueError(f"buffer_bytes: 0 or more was expected, not {self.buffer_bytes!r}")

    def wait_s(self, error: TasteClientError, made: int) -> float | None:
        """How long to wait after attempt number `made` failed with `error`; None: it is not to be made again."""
        if made >= self.max_attempts or error.code not in self.codes:
            return None
        if isinstance(error, MessageTooLargeError | TlsError) or error.is_final:
            return None
        if error.retry_after_s is not None:
            return error.retry_after_s if error.retry_after_s <= _LONGEST_WISH_S else None
        backoff = min(self.initial_backoff_s * self.backoff_multiplier ** (made - 1), self.max_backoff_s)
        return backoff * random.uniform(1 - _JITTER, 1 + _JITTER)


class Attempts:
    """The attempts of one call: how many there were, and how long there is for another."""

    def __init__(self, retry: Retry | None, timeout_s: float | None) -> None:
        self._retry = retry
        self._deadline = None if timeout_s is None else time.monotonic() + timeout_s
        self._made = 1

    @property
    def timeout_s(self) -> float | None:
        """What is left until the deadline of the call; None when it has none."""
        return None if self._deadline is None else max(0.0, self._deadline - time.monotonic())

    def wait_s(self, error: TasteClientError) -> float | None:
        """How long to wait for the next attempt, which is then counted; None when there is to be none."""
        wait_s = self._retry.wait_s(error, self._made) if self._retry else None
        # A wait that outlasts the call would only hide why it was refused.
        if wait_s is None or (self.timeout_s is not None and wait_s >= self.timeout_s):
            return None
        self._made += 1
        return wait_s

    def settle(self) -> None:
        """Something has arrived: the call is not made again."""
        self._retry = None
