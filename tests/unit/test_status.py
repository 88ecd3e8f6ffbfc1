"""From exceptions to statuses: what callers are told, what they are not, and that it fits into the trailers."""

from __future__ import annotations

import base64
from urllib.parse import quote

import grpc
import pytest
from google.rpc import error_details_pb2

from taste.v1 import common_pb2
from taste_grpc import errors
from taste_grpc.server.status import DETAILS_KEY, PUSHBACK_KEY, CallStatus, status_of

TRAILER_BYTES = 8192
HUGE = 16 << 20
REQUEST_ID = "r" * 128
"""The longest a caller may choose."""


def leaves(kind: type[errors.TasteError]) -> list[type[errors.TasteError]]:
    below = [leaf for child in kind.__subclasses__() for leaf in leaves(child)]
    own = kind.__module__ == errors.__name__ and not kind.__name__.startswith("_") and kind is not errors.TasteError
    return [kind, *below] if own else below


def made(kind: type[errors.TasteError], text: str = "why") -> errors.TasteError:
    named = issubclass(kind, errors.InvalidInputError | errors.InvalidTypeError)
    return kind(text, text) if named else kind(text)  # type: ignore[call-arg]


def on_the_wire(status: CallStatus) -> int:
    """Bytes of the trailers: binary ones travel as base64, the message percent-encoded."""
    values = [base64.b64encode(value) if isinstance(value, bytes) else value.encode() for _, value in status.trailers]
    keys = sum(len(key) + 32 for key, _ in status.trailers)  # HTTP/2 counts 32 bytes for each
    return keys + sum(map(len, values)) + len(quote(status.message, safe=" "))


@pytest.mark.parametrize("kind", leaves(errors.TasteError), ids=lambda kind: kind.__name__)
def test_every_error_has_a_code_and_a_reason_of_the_contract(kind: type[errors.TasteError]) -> None:
    status = status_of(made(kind), REQUEST_ID)
    assert status.code is grpc.StatusCode[kind.grpc_code] is not grpc.StatusCode.INTERNAL
    info = error_details_pb2.ErrorInfo()
    assert status.rich.details[0].Unpack(info)
    assert (info.reason, info.domain) == (kind.reason, "taste-grpc")
    assert common_pb2.ErrorReason.Value(info.reason)


@pytest.mark.parametrize(
    "text",
    [
        "x" * HUGE,
        "\x00\x1b\n" * (HUGE // 3),
        "語" * (HUGE // 3),
        "🎉" * (HUGE // 4),
        "\ud800" * HUGE,
        "% " * (HUGE // 2),
    ],
    ids=["letters", "control characters", "three bytes", "four bytes", "half a surrogate", "percent signs"],
)
@pytest.mark.parametrize("kind", [errors.InvalidInputError, errors.OverloadedError, errors.UnsupportedByModelError])
def test_whatever_an_error_quotes_fits_into_the_trailers(kind: type[errors.TasteError], text: str) -> None:
    status = status_of(made(kind, text), REQUEST_ID)
    assert on_the_wire(status) < TRAILER_BYTES
    assert status.message


def test_a_field_path_and_its_description_are_kept_when_they_are_short() -> None:
    status = status_of(errors.InvalidInputError("segments[2].text", "語 is too long"), REQUEST_ID)
    bad = error_details_pb2.BadRequest()
    assert any(detail.Unpack(bad) for detail in status.rich.details)
    assert [(v.field, v.description) for v in bad.field_violations] == [("segments[2].text", "語 is too long")]


@pytest.mark.parametrize("kind", [errors.OverloadedError, errors.UnavailableError])
def test_both_ways_to_say_when_to_try_again_agree(kind: type[errors.OverloadedError]) -> None:
    status = status_of(kind("later", retry_after_ms=1234), REQUEST_ID)
    retry = error_details_pb2.RetryInfo()
    assert any(detail.Unpack(retry) for detail in status.rich.details)
    assert retry.retry_delay.ToMilliseconds() == 1234
    assert dict(status.trailers)[PUSHBACK_KEY] == "1234"


@pytest.mark.parametrize(
    "error",
    [RuntimeError("secret"), KeyError("secret"), MemoryError("secret"), OSError(2, "secret"), UnicodeError("secret"),
     TimeoutError("secret"), ExceptionGroup("secret", [ValueError("secret")]), errors.TasteError("secret")],
    ids=lambda error: type(error).__name__,
)  # fmt: skip
def test_nothing_of_an_unknown_error_gets_out(error: Exception) -> None:
    try:
        raise error
    except Exception as caught:
        status = status_of(caught, REQUEST_ID)
    assert status.code is grpc.StatusCode.INTERNAL
    assert REQUEST_ID in status.message
    told = status.message.encode() + b"".join(v if isinstance(v, bytes) else v.encode() for _, v in status.trailers)
    assert b"secret" not in told
    assert b"Traceback" not in told
    assert type(error).__name__.encode() not in told or type(error) is errors.TasteError
    assert [key for key, _ in status.trailers] == [DETAILS_KEY]


def test_an_abort_is_a_deadline_when_that_has_passed() -> None:
    error = errors.CallAbortedError("stopped")
    assert status_of(error, REQUEST_ID).code is grpc.StatusCode.CANCELLED
    late = status_of(error, REQUEST_ID, past_deadline=True)
    assert late.code is grpc.StatusCode.DEADLINE_EXCEEDED
    info = error_details_pb2.ErrorInfo()
    assert late.rich.details[0].Unpack(info)
    assert info.reason == "ERROR_REASON_DEADLINE_EXCEEDED"
