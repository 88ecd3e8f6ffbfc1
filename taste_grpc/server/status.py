"""The one place where exceptions become gRPC statuses with `google.rpc` details."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from taste_grpc.errors import (
    CallAbortedError,
    InvalidInputError,
    InvalidTypeError,
    OverloadedError,
    TasteError,
    UnavailableError,
)

ERROR_DOMAIN = "taste-grpc"
"""`google.rpc.ErrorInfo.domain` of every error."""

DETAILS_KEY = "grpc-status-details-bin"
"""Trailer that carries the `google.rpc.Status`."""

PUSHBACK_KEY = "grpc-retry-pushback-ms"
"""Trailer with the delay of RetryInfo, which the retrying that gRPC's own clients have built in obeys."""

# Trailers have about 8 KiB, of which the message takes up to three times its bytes (it is percent-encoded) and the
# details, which repeat it, four thirds of theirs (base64).
_MAX_MESSAGE_BYTES = 768
_MAX_FIELD_BYTES = 256


@dataclass(frozen=True, slots=True)
class CallStatus:
    """How a call ends: `code`, `message`, the `google.rpc.Status` with its details, and when to try again, if ever."""

    code: grpc.StatusCode
    message: str
    rich: status_pb2.Status
    retry_after_ms: int | None = None

    @property
    def trailers(self) -> tuple[tuple[str, str | bytes], ...]:
        """Trailing metadata that carries the details, and when to try again."""
        details = (DETAILS_KEY, self.rich.SerializeToString())
        return (details,) if self.retry_after_ms is None else (details, (PUSHBACK_KEY, str(self.retry_after_ms)))


def status_of(error: Exception, request_id: str, *, past_deadline: bool = False) -> CallStatus:
    """The status a call ends with when `error` was raised while it was served.

    What is not a TasteError, or one without a code of its own, becomes INTERNAL with a
    fixed text: nothing of it reaches the caller but `request_id`.
    """
    code = error_code(error, past_deadline=past_deadline)
    if code is grpc.StatusCode.INTERNAL:
        message = f"internal error; the server's log has the cause under request id {request_id}"
    else:
        message = _trim(str(error), _MAX_MESSAGE_BYTES)
    rich = status_pb2.Status(code=code.value[0], message=message)
    for detail in _details(error, request_id, past_deadline=past_deadline):
        rich.details.add().Pack(detail)
    return CallStatus(code, message, rich, _retry_after_ms(error))


def error_code(error: Exception, *, past_deadline: bool = False) -> grpc.StatusCode:
    """Code of the status `error` becomes."""
    if past_deadline and isinstance(error, CallAbortedError):
        return grpc.StatusCode.DEADLINE_EXCEEDED
    return grpc.StatusCode[error.grpc_code] if isinstance(error, TasteError) else grpc.StatusCode.INTERNAL


def _details(error: Exception, request_id: str, *, past_deadline: bool) -> Iterator[Message]:
    if past_deadline and isinstance(error, CallAbortedError):
        reason = "ERROR_REASON_DEADLINE_EXCEEDED"
    else:
        reason = error.reason if isinstance(error, TasteError) else TasteError.reason
    yield error_details_pb2.ErrorInfo(reason=reason, domain=ERROR_DOMAIN)
    if isinstance(error, InvalidInputError | InvalidTypeError):
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=_trim(error.field, _MAX_FIELD_BYTES), description=_trim(error.description, _MAX_MESSAGE_BYTES)
        )
        yield error_details_pb2.BadRequest(field_violations=[violation])
    retry_after_ms = _retry_after_ms(error)
    if retry_after_ms is not None:
        seconds, ms = divmod(retry_after_ms, 1000)
        yield error_details_pb2.RetryInfo(retry_delay=Duration(seconds=seconds, nanos=ms * 1_000_000))
    yield error_details_pb2.RequestInfo(request_id=request_id)


def _retry_after_ms(error: Exception) -> int | None:
    return error.retry_after_ms if isinstance(error, OverloadedError | UnavailableError) else None


def _trim(text: str, max_bytes: int) -> str:
    """`text`, cut to `max_bytes` of UTF-8 between characters."""
    data = text[: max_bytes + 1].encode("utf-8", "replace")  # a character has a byte at least
    if len(data) <= max_bytes:
        return data.decode()
    return data[: max_bytes - 3].decode("utf-8", "ignore") + "…"
