"""A real gRPC server that records what it is sent and answers by fixed rules."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2

from taste.v1 import common_pb2, taste_pb2, taste_pb2_grpc


def rich_status(code: int, message: str) -> status_pb2.Status:
    details = [
        error_details_pb2.ErrorInfo(reason="ERROR_REASON_INVALID_FIELD", domain="taste-grpc"),
        error_details_pb2.BadRequest(
            field_violations=[error_details_pb2.BadRequest.FieldViolation(field="text", description="is empty")]
        ),
        error_details_pb2.RetryInfo(retry_delay=duration_pb2.Duration(seconds=1, nanos=500_000_000)),
        error_details_pb2.RequestInfo(request_id="r-7"),
    ]
    packed = []
    for detail in details:
        packed.append(any_pb2.Any())
        packed[-1].Pack(detail)
    return status_pb2.Status(code=code, message=message, details=packed)


class EchoServicer(taste_pb2_grpc.TasteServiceServicer):
    """Generate counts words until it is cancelled when seed is 0; Detokenize says each segment's text in bytes."""

    def __init__(self) -> None:
        self.received: list[Any] = []
        self.speaking = threading.Event()
        self.cancelled = threading.Event()

    def GetModelInfo(self, request: Any, context: grpc.ServicerContext) -> taste_pb2.GetModelInfoResponse:
        if (context.time_remaining() or 1e9) < 5:
            threading.Event().wait(2)
        return taste_pb2.GetModelInfoResponse(model_id="echo", vq_dim=4)

    def Tokenize(self, request: Any, context: grpc.ServicerContext) -> taste_pb2.TokenizeResponse:
        self.received.append(request)
        if request.HasField("text") and not request.text:
            status = rich_status(code_pb2.INVALID_ARGUMENT, "text: is empty")
            context.set_trailing_metadata([("grpc-status-details-bin", status.SerializeToString())])
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, status.message)
        if request.text == "garbled":
            context.set_trailing_metadata([("grpc-status-details-bin", b"\xff\xff\xff")])
            context.abort(grpc.StatusCode.INTERNAL, "broken")
        return taste_pb2.TokenizeResponse(text=request.text, text_ids=request.text_ids)

    def Generate(self, request: Any, context: grpc.ServicerContext) -> Iterator[taste_pb2.StreamingResult]:
        self.received.append(request)
        context.add_callback(self.cancelled.set)
        index = 0
        while context.is_active() and (not request.seed or index < request.seed):
            tokens = common_pb2.SegmentTokens(text_ids=[index], text=f"w{index}")
            yield taste_pb2.StreamingResult(
                index=index, segment=common_pb2.Segment(tokens=tokens), is_complete=index + 1 == request.seed
            )
            index += 1

    def Detokenize(self, requests: Any, context: grpc.ServicerContext) -> Iterator[taste_pb2.DetokenizeResponse]:
        context.add_callback(self.cancelled.set)
        for index, request in enumerate(requests):
            self.received.append(request)
            if request.HasField("segment"):
                self.speaking.set()
                response = taste_pb2.DetokenizeResponse(audio=request.segment.text.encode(), index=index - 1)
                if index == 1:
                    response.format.CopyFrom(
                        common_pb2.AudioFormat(encoding=common_pb2.AUDIO_ENCODING_LINEAR16, sample_rate_hz=24000)
                    )
                yield response
