"""The call that is being served."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Iterable
from contextvars import ContextVar
from dataclasses import dataclass, field

REQUEST_ID_KEY = "x-request-id"
"""Metadata key of the request id: read from the caller's metadata, returned in the trailers."""

_USABLE_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")


@dataclass(slots=True)
class Call:
    """One running RPC, as log lines and answers name it.

    Attributes:
        method: full name, `/taste.v1.TasteService/Generate`.
        peer: address of the caller.
        request_id: the caller's own, or one made up.
        arrived: `time.monotonic()` when the call came in.
        refused_field: path of the request field that was refused, if one was.
        chunk_id: the caller's name of what it asks, of calls that have one.
    """

    method: str
    peer: str
    request_id: str
    arrived: float = field(default_factory=time.monotonic)
    refused_field: str = ""
    chunk_id: str = ""

    @property
    def elapsed_ms(self) -> float:
        """Milliseconds since the call came in."""
        return 1000.0 * (time.monotonic() - self.arrived)


_current: ContextVar[Call] = ContextVar("taste_grpc_call")


def current_call() -> Call:
    """The call this task serves. Raises LookupError outside of one."""
    return _current.get()


def enter_call(call: Call) -> None:
    """Make `call` the current one of this task; gRPC runs each call in a context of its own."""
    _current.set(call)


def request_id(metadata: Iterable[tuple[str, str | bytes]]) -> str:
    """The request id among a caller's metadata, or a new one when there is none that can be logged."""
    for key, value in metadata:
        if key == REQUEST_ID_KEY and isinstance(value, str) and _USABLE_ID.fullmatch(value):
            return value
    return uuid.uuid4().hex
