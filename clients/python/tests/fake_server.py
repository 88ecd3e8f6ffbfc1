"""A real gRPC server that records what it is sent and answers, or refuses, by fixed rules."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent import futures
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import grpc
from fake_dialogue import FakeDialogue
from google.protobuf import any_pb2, duration_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2

from taste.v1 import common_pb2, dialogue_pb2, dialogue_pb2_grpc, taste_pb2, taste_pb2_grpc

DETAILS = "grpc-status-details-bin"
CODES = {code.value[0]: code for code in grpc.StatusCode}


def rich_status(
    code: int, message: str, reason: str = "INVALID_FIELD", retry_ms: int | None = 1500
) -> status_pb2.Status:
    details = [
        error_details_pb2.ErrorInfo(reason=f"ERROR_REASON_{reason}", domain="taste-grpc"),
        error_details_pb2.BadRequest(
            field_violations=[
                error_details_pb2.BadRequest.FieldViolation(field="text", description="is empty"),
                error_details_pb2.BadRequest.FieldViolation(field="audio", description="is empty too"),
            ]
        ),
        error_details_pb2.RequestInfo(request_id="r-7"),
    ]
    if retry_ms is not None:
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(retry_ms)
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    packed = []
    for detail in details:
        packed.append(any_pb2.Any())
        packed[-1].Pack(detail)
    return status_pb2.Status(code=code, message=message, details=packed)


def refuse(context: grpc.ServicerContext, status: status_pb2.Status, *trailers: tuple[str, str]) -> None:
    context.set_trailing_metadata([(DETAILS, status.SerializeToString()), *trailers])
    context.abort(CODES[status.code], status.message)


@dataclass
class Refusals:
    """The first `times` attempts of each method are refused.

    `after`: only once so many responses have been sent. `wish_ms`: when to try again, in RetryInfo (unless negative)
    and the trailer of gRPC. `only`: of one method.
    """

    times: int = 0
    code: int = code_pb2.RESOURCE_EXHAUSTED
    wish_ms: int | None = 1
    after: int = 0
    only: str = ""


@dataclass
class FakeServicer(taste_pb2_grpc.TasteServiceServicer, dialogue_pb2_grpc.DialogueServiceServicer):
    """Generate says w0, w1, ... as many as `seed` tells, or until it is cancelled when seed is 0.

    Reply does so with `max_new_tokens`. Detokenize says each segment's text in bytes. Text `bad` is refused in both.
    """

    refusals: Refusals = field(default_factory=Refusals)
    bad: str = "bad"
    padding: str = ""
    received: list[Any] = field(default_factory=list)
    attempts: list[str] = field(default_factory=list)
    metadata: list[dict[str, Any]] = field(default_factory=list)
    speaking: threading.Event = field(default_factory=threading.Event)
    ended: dict[str, threading.Event] = field(default_factory=lambda: {"Generate": _event(), "Detokenize": _event()})
    reply_ended: threading.Event = field(default_factory=threading.Event)
    hold: threading.Event = field(default_factory=threading.Event)
    dialogue: FakeDialogue = field(default_factory=FakeDialogue)

    def __post_init__(self) -> None:
        self.dialogue.refuse = self._refuse_conversation

    def _refuse_conversation(self, method: str, context: grpc.ServicerContext) -> None:
        self._arrive(method, context)
        self._refuse(method, context)

    def _arrive(self, method: str, context: grpc.ServicerContext) -> None:
        self.attempts.append(method)
        self.metadata.append(dict(context.invocation_metadata()))
        if method in self.ended and not context.add_callback(self.ended[method].set):
            self.ended[method].set()  # it has ended already

    def _refuse(self, method: str, context: grpc.ServicerContext, sent: int = 0) -> None:
        plan = self.refusals
        if plan.only in ("", method) and sent == plan.after and self.attempts.count(method) <= plan.times:
            wish_ms = plan.wish_ms
            pushback = [] if wish_ms is None else [("grpc-retry-pushback-ms", str(wish_ms))]
            info_ms = wish_ms if wish_ms is not None and wish_ms >= 0 else None
            refuse(context, rich_status(plan.code, "not now", "OVERLOADED", info_ms), *pushback)

    def GetModelInfo(self, request: Any, context: grpc.ServicerContext) -> taste_pb2.GetModelInfoResponse:
        self._arrive("GetModelInfo", context)
        self._refuse("GetModelInfo", context)
        if (context.time_remaining() or 1e9) < 5:
            self.hold.wait(10)
        return taste_pb2.GetModelInfoResponse(model_id="fake", revision="r1", vq_dim=2, codebook_size=8)

    def Tokenize(self, request: Any, context: grpc.ServicerContext) -> taste_pb2.TokenizeResponse:
        self._arrive("Tokenize", context)
        self._refuse("Tokenize", context)
        self.received.append(request)
        if request.text == "bad":
            refuse(context, rich_status(code_pb2.INVALID_ARGUMENT, "text: is empty"))
        if request.text == "garbled":
            context.set_trailing_metadata([(DETAILS, b"\xff\xff\xff"), ("x-request-id", "r-8")])
            context.abort(grpc.StatusCode.INTERNAL, "broken")
        if request.text.startswith("status "):
            _, code, reason = request.text.split()
            refuse(context, rich_status(int(code), "as asked", reason))
        return taste_pb2.TokenizeResponse(text=request.text, text_ids=request.text_ids)

    def Generate(self, request: Any, context: grpc.ServicerContext) -> Iterator[taste_pb2.StreamingResult]:
        self._arrive("Generate", context)
        self._refuse("Generate", context)
        self.received.append(request)
        if request.conversation_format == "silent":
            yield taste_pb2.StreamingResult(is_complete=True)
            return
        index = 0
        while context.is_active() and (not request.seed or index < request.seed):
            tokens = common_pb2.SegmentTokens(text_ids=[index], text=f"w{index}{self.padding}")
            yield taste_pb2.StreamingResult(
                index=index, segment=common_pb2.Segment(tokens=tokens), is_complete=index + 1 == request.seed
            )
            index += 1
            self._refuse("Generate", context, index)
            if request.conversation_format == "fails" and index == 2:
                refuse(context, rich_status(code_pb2.INTERNAL, "the answer failed", "INTERNAL"))

    def Converse(self, requests: Any, context: grpc.ServicerContext) -> Iterator[dialogue_pb2.ConverseResponse]:
        return self.dialogue.Converse(requests, context)

    def Reply(self, request: Any, context: grpc.ServicerContext) -> Iterator[dialogue_pb2.ReplyResponse]:
        self._arrive("Reply", context)
        if not context.add_callback(self.reply_ended.set):
            self.reply_ended.set()  # it has ended already
        self._refuse("Reply", context)
        self.received.append(request)
        if request.system_prompt == self.bad:
            refuse(context, rich_status(code_pb2.INVALID_ARGUMENT, "system_prompt: is bad"))
        if request.mode == "transcription":
            yield dialogue_pb2.ReplyResponse(is_final=True, error="no speech was heard")
            return
        index = 0
        while context.is_active() and (not request.max_new_tokens or index < request.max_new_tokens):
            final = index + 1 == request.max_new_tokens
            yield dialogue_pb2.ReplyResponse(
                success=True, text=f" w{index}", is_final=final, chunk_index=index, chunk_id=request.chunk_id
            )
            index += 1
            self._refuse("Reply", context, index)

    def Detokenize(self, requests: Any, context: grpc.ServicerContext) -> Iterator[taste_pb2.DetokenizeResponse]:
        self._arrive("Detokenize", context)
        spoken = 0
        for request in requests:
            self.received.append(request)
            if not request.HasField("segment"):
                continue
            self._refuse("Detokenize", context, spoken)
            text = said(request.segment)
            if text == self.bad:
                refuse(context, rich_status(code_pb2.INVALID_ARGUMENT, "segment: is bad"))
            self.speaking.set()
            yield response(text.encode(), spoken)
            spoken += 1


def said(segment: common_pb2.Segment) -> str:
    if segment.HasField("words"):
        return " ".join(word.text for word in segment.words.words)
    return segment.text or segment.tokens.text


def response(audio: bytes, index: int) -> taste_pb2.DetokenizeResponse:
    made = taste_pb2.DetokenizeResponse(audio=audio, index=index, segment_index=index, is_final=True)
    if index == 0:
        made.format.encoding = common_pb2.AUDIO_ENCODING_LINEAR16
        made.format.sample_rate_hz = 24000
    return made


def _event() -> threading.Event:
    return threading.Event()


def start_server(
    servicer: FakeServicer,
    stack: ExitStack,
    *,
    credentials: grpc.ServerCredentials | None = None,
    interceptor: grpc.ServerInterceptor | None = None,
) -> int:
    """Port of a server that runs until `stack` is closed."""
    pool = stack.enter_context(futures.ThreadPoolExecutor(max_workers=8))
    # The limit of the real one.
    interceptors = [interceptor] if interceptor else []
    server = grpc.server(pool, interceptors=interceptors, options=[("grpc.max_receive_message_length", 16 << 20)])
    taste_pb2_grpc.add_TasteServiceServicer_to_server(servicer, server)
    dialogue_pb2_grpc.add_DialogueServiceServicer_to_server(servicer, server)
    where = "127.0.0.1:0"
    port = server.add_secure_port(where, credentials) if credentials else server.add_insecure_port(where)
    server.start()
    stack.callback(lambda: server.stop(None).wait())
    stack.callback(servicer.hold.set)
    stack.callback(servicer.dialogue.hold.set)
    return port
