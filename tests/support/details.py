"""Reading the `google.rpc` details of a failed call."""

from __future__ import annotations

from dataclasses import dataclass

import grpc
from google.rpc import error_details_pb2, status_pb2


@dataclass
class Failure:
    code: grpc.StatusCode
    message: str
    reason: str
    domain: str
    fields: list[str]
    descriptions: list[str]
    retry_s: float | None
    request_id: str
    trailer_bytes: int


def read_failure(error: grpc.aio.AioRpcError) -> Failure:
    trailers = list(error.trailing_metadata() or ())
    blob = next((value for key, value in trailers if key == "grpc-status-details-bin"), b"")
    status = status_pb2.Status.FromString(blob)
    info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    retry, request = error_details_pb2.RetryInfo(), error_details_pb2.RequestInfo()
    retry_s = None
    for detail in status.details:
        if detail.Unpack(retry):
            retry_s = retry.retry_delay.seconds + retry.retry_delay.nanos / 1e9
        else:
            assert detail.Unpack(info) or detail.Unpack(bad) or detail.Unpack(request), detail.type_url
    return Failure(
        code=error.code(),
        message=error.details() or "",
        reason=info.reason,
        domain=info.domain,
        fields=[violation.field for violation in bad.field_violations],
        descriptions=[violation.description for violation in bad.field_violations],
        retry_s=retry_s,
        request_id=request.request_id,
        trailer_bytes=sum(len(key) + len(value) for key, value in trailers) + 3 * len(error.details() or ""),
    )
