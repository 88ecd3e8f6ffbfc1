"""When a refused call is tried again."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass

import grpc

from taste_grpc_client.limits import MAX_MESSAGE_BYTES

_SERVICE = "taste.v1.TasteService"
_ALLOWED = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED)
# gRPC counts no further than five attempts, and keeps sizes in 32 bits.
_MAX_ATTEMPTS = 5
_MAX_BUFFER_BYTES = 2**31 - 1


@dataclass(frozen=True)
class Retry:
    """When a refused call is tried again; gRPC does it, within the deadline of the call.

    The server's own wish (RetryInfo) comes before the times given here. A stream is tried again only while
    nothing of it has arrived.

    Attributes:
        max_attempts: how often a call is made at most, the first time included: 2 to 5.
        initial_backoff_s: longest wait before the second attempt; the wait is drawn at random around it.
        max_backoff_s: upper limit of such a wait.
        backoff_multiplier: how much longer each further wait is.
        codes: what is tried again: UNAVAILABLE (not reachable, loading, draining), RESOURCE_EXHAUSTED (no room).
        buffer_bytes: how much of a call's requests is kept for another attempt; a larger call is made once. What is
            larger than the server's `limits.max_request_bytes` will never be let in, so this should not exceed it.
    """

    max_attempts: int = 4
    initial_backoff_s: float = 0.5
    max_backoff_s: float = 5.0
    backoff_multiplier: float = 2.0
    codes: tuple[grpc.StatusCode, ...] = _ALLOWED
    buffer_bytes: int = MAX_MESSAGE_BYTES

    def __post_init__(self) -> None:
        if not 2 <= self.max_attempts <= _MAX_ATTEMPTS:
            raise ValueError(
                f"max_attempts: 2 to {_MAX_ATTEMPTS} were expected, not {self.max_attempts!r}; retry=None makes one"
            )
        for name in ("initial_backoff_s", "max_backoff_s", "backoff_multiplier"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name}: a number above 0 was expected, not {value!r}")
        if not self.codes or not set(self.codes) <= set(_ALLOWED):
            raise ValueError(f"codes: some of {', '.join(code.name for code in _ALLOWED)} were expected")
        if not 0 <= self.buffer_bytes <= _MAX_BUFFER_BYTES:
            raise ValueError(f"buffer_bytes: 0 to {_MAX_BUFFER_BYTES} was expected, not {self.buffer_bytes!r}")

    def channel_options(self) -> list[tuple[str, int | str]]:
        """Options that make gRPC retry so."""
        policy = {
            "maxAttempts": self.max_attempts,
            "initialBackoff": f"{self.initial_backoff_s:.9f}s",
            "maxBackoff": f"{self.max_backoff_s:.9f}s",
            "backoffMultiplier": self.backoff_multiplier,
            "retryableStatusCodes": [code.name for code in self.codes],
        }
        config = {"methodConfig": [{"name": [{"service": _SERVICE}], "retryPolicy": policy}]}
        return [
            ("grpc.enable_retries", 1),
            ("grpc.service_config", json.dumps(config)),
            # gRPC would keep 256 KiB otherwise, and never retry a call that sends a recording.
            ("grpc.per_rpc_retry_buffer_size", self.buffer_bytes),
        ]
