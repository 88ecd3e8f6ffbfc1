"""The exceptions a call can end in.

::

    TasteClientError
    ├── InvalidArgumentError (ValueError)   the server refused a field; `violations` names it
    ├── ModelError                          the loaded model cannot do what was asked
    ├── OverloadedError                     no room for another call; `retry_after_s` says when to try again
    ├── UnavailableError                    not reachable, loading or draining; `retry_after_s` likewise
    ├── AuthenticationError                 no, unknown or insufficient credentials
    ├── CallCancelledError                  the call was cancelled
    ├── DeadlineExceededError (TimeoutError)
    ├── UnimplementedError                  the server does not offer the method
    └── ServerError                         a fault of the server; `request_id` finds it in its log

What is wrong before anything is sent (a file that does not exist, samples of an
unknown type) raises the usual OSError, ValueError and TypeError.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, cast

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

_DETAILS_KEY = "grpc-status-details-bin"


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """A field of the request the server refused: its path (`segments[2].text`) and what is wrong with it."""

    field: str
    description: str


@dataclass(frozen=True, slots=True)
class _Details:
    """What a status carries beside code and message."""

    reason: str = ""
    violations: tuple[FieldViolation, ...] = ()
    retry_after_s: float | None = None
    request_id: str = ""


class TasteClientError(Exception):
    """A call failed.

    Attributes:
        code: the gRPC status.
        message: what the server, or gRPC, says about it.
        reason: name of a `taste.v1.ErrorReason` value; empty when the failure did not come from the server.
        violations: the fields the server refused.
        retry_after_s: when the server suggests to try again, in seconds; None when it does not.
        request_id: the name of the call in the server's log; empty when not told.
    """

    def __init__(self, code: grpc.StatusCode, message: str, details: _Details | None = None) -> None:
        details = details or _Details()
        self.code = code
        self.message = message
        self.reason = details.reason
        self.violations = details.violations
        self.retry_after_s = details.retry_after_s
        self.request_id = details.request_id
        super().__init__(f"{code.name}: {message}" + (f" (request {self.request_id})" if self.request_id else ""))


class InvalidArgumentError(TasteClientError, ValueError):
    """The server refused a value; `violations` names the fields."""


class ModelError(TasteClientError):
    """The loaded model cannot do what was asked, or could not be loaded."""


class OverloadedError(TasteClientError):
    """The server has no room for another call, or the message was too large."""


class UnavailableError(TasteClientError):
    """The server cannot be reached, is loading, or is draining."""


class AuthenticationError(TasteClientError):
    """Credentials are missing, unknown, or do not allow the call."""


class CallCancelledError(TasteClientError):
    """The call was cancelled."""


class DeadlineExceededError(TasteClientError, TimeoutError):
    """The call took longer than its timeout."""


class UnimplementedError(TasteClientError):
    """The server does not offer the method."""


class ServerError(TasteClientError):
    """A fault of the server."""


_CLASSES: dict[grpc.StatusCode, type[TasteClientError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidArgumentError,
    grpc.StatusCode.FAILED_PRECONDITION: ModelError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: OverloadedError,
    grpc.StatusCode.UNAVAILABLE: UnavailableError,
    grpc.StatusCode.UNAUTHENTICATED: AuthenticationError,
    grpc.StatusCode.PERMISSION_DENIED: AuthenticationError,
    grpc.StatusCode.CANCELLED: CallCancelledError,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceededError,
    grpc.StatusCode.UNIMPLEMENTED: UnimplementedError,
}


def from_rpc_error(error: grpc.RpcError) -> TasteClientError:
    """The exception for a failed call of a blocking or an asyncio stub."""
    # A blocking call's trailers are pairs, an asyncio call's a Metadata that iterates as pairs.
    trailers: Iterable[tuple[str, str | bytes]] = cast(Any, error.trailing_metadata()) or ()
    blob = next((value for key, value in trailers if key == _DETAILS_KEY), None)
    details = _parse(blob) if isinstance(blob, bytes) else _Details()
    return _CLASSES.get(error.code(), ServerError)(error.code(), error.details() or "no details", details)


def _parse(blob: bytes) -> _Details:
    status = status_pb2.Status()
    try:
        status.ParseFromString(blob)
        return _collect(status)
    except DecodeError:  # the code and the message still hold
        return _Details()


def _collect(status: status_pb2.Status) -> _Details:
    info = error_details_pb2.ErrorInfo()
    bad = error_details_pb2.BadRequest()
    retry = error_details_pb2.RetryInfo()
    request = error_details_pb2.RequestInfo()
    retry_after_s: float | None = None
    for packed in status.details:
        if packed.Unpack(retry):
            retry_after_s = retry.retry_delay.seconds + retry.retry_delay.nanos * 1e-9
        else:
            _ = packed.Unpack(info) or packed.Unpack(bad) or packed.Unpack(request)
    return _Details(
        reason=info.reason,
        violations=tuple(FieldViolation(v.field, v.description) for v in bad.field_violations),
        retry_after_s=retry_after_s,
        request_id=request.request_id,
    )
