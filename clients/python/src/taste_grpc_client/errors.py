"""The exceptions a call can end in.

::

    TasteClientError
    ├── InvalidArgumentError (ValueError)   the server refused a field; `field` names it
    ├── ModelError                          the loaded model cannot do what was asked
    ├── OverloadedError                     no room for another call; `retry_after_s` says when to try again
    ├── MessageTooLargeError (ValueError)   a request, or an answer, is larger than one side accepts
    ├── UnavailableError                    not reachable, loading or draining; `retry_after_s` likewise
    │   └── TlsError                        client and server do not agree on who is who, or on TLS at all
    ├── AuthenticationError                 no, unknown or insufficient credentials
    ├── CallCancelledError                  the call was cancelled
    ├── DeadlineExceededError (TimeoutError)
    │   └── IdleError                       the server waited too long for the next segment
    ├── UnimplementedError                  the server does not offer the method
    ├── ConversationError                   the server gave a conversation up; `error_code` says why
    ├── ConversationEndedError              a conversation has ended, so nothing can be sent; the reader is told why
    └── ServerError                         a fault of the server; `request_id` finds it in its log

What is wrong before anything is sent (a file that does not exist, samples of an
unknown type) raises the usual OSError, ValueError and TypeError.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import cast

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from taste_grpc_client.conversation_events import ErrorCode

_DETAILS_KEY = "grpc-status-details-bin"
_REQUEST_ID_KEY = "x-request-id"
_PUSHBACK_KEY = "grpc-retry-pushback-ms"
_MILLISECONDS = re.compile(r"[0-9]{1,15}")


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """A field of the request the server refused: its path (`segments[2].text`) and what is wrong with it."""

    field: str
    description: str


@dataclass(frozen=True, slots=True)
class StatusDetails:
    """What a status carries beside code and message; see `TasteClientError`."""

    reason: str = ""
    violations: tuple[FieldViolation, ...] = ()
    retry_after_s: float | None = None
    is_final: bool = False
    request_id: str = ""


class TasteClientError(Exception):
    """A call failed.

    Attributes:
        code: the gRPC status.
        message: what the server, or gRPC, says about it.
        reason: name of a `taste.v1.ErrorReason` value; empty when the failure did not come from the server.
        violations: the fields the server refused.
        retry_after_s: when the server suggests to try again, in seconds; None when it does not.
        is_final: whether the server asks not to try again.
        request_id: the name of the call in the server's log; empty when not told.
    """

    def __init__(self, code: grpc.StatusCode, message: str, details: StatusDetails | None = None) -> None:
        details = details or StatusDetails()
        self.code = code
        self.message = message
        self.reason = details.reason
        self.violations = details.violations
        self.retry_after_s = details.retry_after_s
        self.is_final = details.is_final
        self.request_id = details.request_id
        super().__init__(f"{code.name}: {message}" + (f" (request {self.request_id})" if self.request_id else ""))

    @property
    def field(self) -> str:
        """Path of the first field the server refused; empty when it named none."""
        return self.violations[0].field if self.violations else ""


class InvalidArgumentError(TasteClientError, ValueError):
    """The server refused a value; `field` names the first, `violations` all."""


class ModelError(TasteClientError):
    """The loaded model cannot do what was asked, or could not be loaded."""


class OverloadedError(TasteClientError):
    """The server has no room for another call."""


class MessageTooLargeError(TasteClientError, ValueError):
    """A message is larger than the side that receives it accepts; `limits.max_request_bytes` says how much that is."""


class UnavailableError(TasteClientError):
    """The server cannot be reached, is loading, or is draining."""


class TlsError(UnavailableError):
    """The connection fails before any call: a certificate is not accepted, or one side does not speak TLS."""


class AuthenticationError(TasteClientError):
    """Credentials are missing, unknown, or do not allow the call."""


class CallCancelledError(TasteClientError):
    """The call was cancelled."""


class DeadlineExceededError(TasteClientError, TimeoutError):
    """The call took longer than its timeout."""


class IdleError(DeadlineExceededError):
    """The server waited longer for the next segment of the call than it allows (`limits.max_idle_ms`)."""


class UnimplementedError(TasteClientError):
    """The server does not offer the method."""


class ServerError(TasteClientError):
    """A fault of the server."""


class ConversationError(TasteClientError):
    """The server gave a conversation up.

    Attributes:
        error_code: what failed.
        code: the gRPC status that is nearest to it.
        reason: its name in `taste.v1.ConverseErrorCode`.
        request_id: the name of the conversation in the server's log (`Started.session_id`).
    """

    def __init__(self, error_code: ErrorCode, message: str, session_id: str = "") -> None:
        details = StatusDetails(reason=f"CONVERSE_ERROR_CODE_{error_code}", request_id=session_id)
        super().__init__(_STATUS_OF.get(error_code, grpc.StatusCode.INTERNAL), message, details)
        self.error_code = error_code
        self.args = (f"{error_code}: {message}" + (f" (conversation {session_id})" if session_id else ""),)


class ConversationEndedError(TasteClientError):
    """A conversation has ended, so nothing can be sent; who reads its events is told why.

    Its cause (`__cause__`) is why, where that is known.
    """

    def __init__(self, cause: BaseException | None = None) -> None:
        code = cause.code if isinstance(cause, TasteClientError) else grpc.StatusCode.FAILED_PRECONDITION
        super().__init__(code, "the conversation has ended" + (f": {cause}" if cause else ""))
        self.__cause__ = cause


_STATUS_OF = {
    ErrorCode.PROTOCOL_VIOLATION: grpc.StatusCode.FAILED_PRECONDITION,
    ErrorCode.MODEL_LOAD_FAIL: grpc.StatusCode.UNAVAILABLE,
    ErrorCode.UNSUPPORTED_SAMPLE_RATE: grpc.StatusCode.INVALID_ARGUMENT,
}

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


def cancelled_call() -> CallCancelledError:
    """The exception for a call that was cancelled on this side."""
    return CallCancelledError(grpc.StatusCode.CANCELLED, "cancelled by the client")


def late_opening() -> DeadlineExceededError:
    """The exception for a conversation that the server did not begin in time."""
    return DeadlineExceededError(
        grpc.StatusCode.DEADLINE_EXCEEDED, "the server did not begin the conversation within timeout_s"
    )


def from_status(
    code: grpc.StatusCode, message: str, trailers: object, kind: type[TasteClientError] | None = None
) -> TasteClientError:
    """The exception for a call that ended with `code`.

    `trailers` is the trailing metadata of a blocking call (pairs) or of an asyncio one (iterates as pairs), or None.
    `kind` is used when something better than the status tells.
    """
    details = _details(dict(cast("Iterable[tuple[str, str | bytes]]", trailers or ())))
    return (kind or _class_of(code, details.reason, message))(code, message, details)


def _class_of(code: grpc.StatusCode, reason: str, message: str) -> type[TasteClientError]:
    if reason == "ERROR_REASON_IDLE":
        return IdleError
    # gRPC itself refuses it, on either side, and says no more than this.
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and not reason and "larger than max" in message:
        return MessageTooLargeError
    return _CLASSES.get(code, ServerError)


def _details(trailers: dict[str, str | bytes]) -> StatusDetails:
    status = status_pb2.Status()
    blob = trailers.get(_DETAILS_KEY)
    info = error_details_pb2.ErrorInfo()
    bad = error_details_pb2.BadRequest()
    retry = error_details_pb2.RetryInfo()
    request = error_details_pb2.RequestInfo(request_id=str(trailers.get(_REQUEST_ID_KEY, "")))
    retry_after_s, is_final = _pushback(trailers.get(_PUSHBACK_KEY))
    with suppress(DecodeError):  # the code and the message still hold
        status.ParseFromString(blob if isinstance(blob, bytes) else b"")
        for packed in status.details:
            if packed.Unpack(retry):
                retry_after_s = retry.retry_delay.seconds + retry.retry_delay.nanos * 1e-9
            else:
                _ = packed.Unpack(info) or packed.Unpack(bad) or packed.Unpack(request)
    return StatusDetails(
        reason=info.reason,
        violations=tuple(FieldViolation(v.field, v.description) for v in bad.field_violations),
        retry_after_s=retry_after_s,
        is_final=is_final,
        request_id=request.request_id,
    )


def _pushback(value: str | bytes | None) -> tuple[float | None, bool]:
    """When to try again, and whether not to; what is no number of milliseconds means not to, as in gRPC."""
    if value is None:
        return None, False
    if isinstance(value, str) and _MILLISECONDS.fullmatch(value):
        return int(value) / 1000, False
    return None, True
