"""`taste.v1.TasteService`: the four calls, from message to engine and back."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from typing import Any, TypeVar

from google.protobuf.message import Message

from taste.v1 import common_pb2, taste_pb2, taste_pb2_grpc
from taste_grpc.audio import Encoding
from taste_grpc.engine.protocol import DetokenizeConfig, Engine, GenerateRequest, SegmentInput, TokenizeRequest
from taste_grpc.errors import InvalidInputError
from taste_grpc.server import convert
from taste_grpc.server.call import current_call
from taste_grpc.server.checks import ENCODINGS
from taste_grpc.server.clips import ClipReader
from taste_grpc.server.decoding import Decoding, StillWanted
from taste_grpc.server.gate import Gate
from taste_grpc.server.patience import in_time
from taste_grpc.server.validate import RequestValidator
from taste_grpc.settings import LimitSettings

logger = logging.getLogger(__name__)

T = TypeVar("T")
M = TypeVar("M", bound=Message)

_MESSAGE_FIELDS = ("config", "segment")
_LIGHT_BYTES = 16_384
"""Messages up to this size, without audio, are checked and converted in well under 5 ms: on the event loop."""


class TasteService(taste_pb2_grpc.TasteServiceServicer):
    """Validates, converts and hands over to the engine behind the gate.

    Checking and decoding of large requests happens on threads of its own, for which calls wait at most `max_wait_ms`.
    Engine iterators are closed in every ending of a call, which stops their model work.
    """

    def __init__(self, gate: Gate[Engine], limits: LimitSettings, max_wait_ms: int) -> None:
        self._gate = gate
        self._limits = limits
        self._decoding = Decoding(max_wait_ms)

    def close(self) -> None:
        """Ends the decoding threads; what they work on is discarded."""
        self._decoding.close()

    async def GetModelInfo(
        self, request: taste_pb2.GetModelInfoRequest, context: Any
    ) -> taste_pb2.GetModelInfoResponse:
        """What is loaded."""
        with self._gate.enter() as engine:
            return convert.model_info_response(engine.info, self._limits)

    async def Tokenize(self, request: taste_pb2.TokenizeRequest, context: Any) -> taste_pb2.TokenizeResponse:
        """Audio to aligned text ids and codes."""
        with self._gate.enter() as engine:
            validator = RequestValidator(self._limits, engine.info)

            def prepare(still_wanted: StillWanted) -> TokenizeRequest:
                validator.tokenize(request)
                return convert.tokenize_request(request, ClipReader(self._limits, still_wanted))

            lead = _Lead()
            prepared = await self._decoding.run(prepare)
            lead.end()
            result = await engine.tokenize(prepared)
            lead.add_to(result.timing_ms)
            return convert.tokenize_response(result, current_call().elapsed_ms)

    async def Generate(
        self, request: taste_pb2.GenerateRequest, context: Any
    ) -> AsyncGenerator[taste_pb2.StreamingResult]:
        """Continue a conversation, word by word."""
        with self._gate.enter() as engine:
            validator = RequestValidator(self._limits, engine.info)

            def prepare(still_wanted: StillWanted) -> GenerateRequest:
                validator.generate(request)
                return convert.generate_request(request, ClipReader(self._limits, still_wanted))

            lead = _Lead()
            prepared = await self._prepare(request, _has_recordings, prepare)
            lead.end()
            call, messages = current_call(), convert.StreamingResults(self._limits.max_text_bytes, lead.ms)
            async with aclosing(engine.generate(prepared)) as results:
                async for result in results:
                    yield messages.message(result, call.elapsed_ms)

    async def Detokenize(self, request_iterator: Any, context: Any) -> AsyncGenerator[taste_pb2.DetokenizeResponse]:
        """Speak segments as they arrive."""
        with self._gate.enter() as engine:
            validator = RequestValidator(self._limits, engine.info)
            config = await self._first_message(request_iterator)
            lead = _Lead()

            def prepare(still_wanted: StillWanted) -> DetokenizeConfig:
                validator.detokenize_config(config)
                return convert.detokenize_config(config, ClipReader(self._limits, still_wanted))

            prepared = await self._prepare(config, lambda given: given.HasField("reference"), prepare)
            lead.end()
            encoding = ENCODINGS.get(config.encoding, Encoding.LINEAR16)
            segments = self._segments(request_iterator, validator)
            try:
                async with aclosing(engine.detokenize(prepared, segments)) as chunks:
                    async for chunk in chunks:
                        lead.add_to(chunk.timing_ms)
                        yield convert.detokenize_response(chunk, encoding, current_call().elapsed_ms)
            except InvalidInputError as error:
                # Of an engine, which knows the config as an argument of its own.
                raise error if error.field.startswith(_MESSAGE_FIELDS) else error.at("config") from error
            finally:
                await segments.aclose()

    async def _first_message(self, requests: AsyncIterator[taste_pb2.DetokenizeRequest]) -> taste_pb2.DetokenizeConfig:
        request = await self._next_message(requests)
        if request is None:
            raise InvalidInputError("config", "is required: the call ended before its first message")
        if request.WhichOneof("request") != "config":
            raise InvalidInputError("config", "is required in the first message of the call")
        return request.config

    async def _next_message(
        self, requests: AsyncIterator[taste_pb2.DetokenizeRequest]
    ) -> taste_pb2.DetokenizeRequest | None:
        """The caller's next message, None after the last one. Raises IdleError when it does not come in time."""
        idle_ms = self._limits.max_idle_ms
        message = (
            f"the server waited {idle_ms} ms for the next message of the call; half-close after the last one, "
            "and go on in a new call with the resume state of the last segment"
        )
        return await in_time(anext(requests, None), idle_ms, message)

    async def _segments(
        self, requests: AsyncIterator[taste_pb2.DetokenizeRequest], validator: RequestValidator
    ) -> AsyncGenerator[SegmentInput]:
        """The segments of a Detokenize stream, each checked as it comes; the engine sets the pace."""
        number = 1
        while (request := await self._next_message(requests)) is not None:
            number += 1
            try:
                yield await self._next_segment(request, validator)
            except InvalidInputError as error:
                raise InvalidInputError(error.field, f"{error.description} (message {number} of the call)") from error

    async def _next_segment(self, request: taste_pb2.DetokenizeRequest, validator: RequestValidator) -> SegmentInput:
        kind = request.WhichOneof("request")
        if kind == "config":
            raise InvalidInputError("config", "was sent a second time; it comes once, first")
        if kind is None:
            raise InvalidInputError("segment", "is required in every message after the first")
        segment: common_pb2.Segment = request.segment

        def prepare(still_wanted: StillWanted) -> SegmentInput:
            validator.detokenize_segment(segment)
            return convert.segment_input("segment", segment, ClipReader(self._limits, still_wanted))

        return await self._prepare(segment, lambda given: given.HasField("audio"), prepare)

    async def _prepare(self, message: M, has_audio: Callable[[M], bool], work: Callable[[StillWanted], T]) -> T:
        """The result of `work`, done here or on a decoding thread, by the weight of `message`."""
        # Its size first: looking for audio among millions of segments would itself hold up the event loop.
        if message.ByteSize() > _LIGHT_BYTES or has_audio(message):
            return await self._decoding.run(work)
        return work(lambda: None)


class _Lead:
    """The time from a request's arrival until the engine gets it, which belongs to what the caller was queued."""

    def __init__(self) -> None:
        self._begun = time.monotonic()
        self.ms = 0.0

    def end(self) -> None:
        """The engine gets it now."""
        self.ms = 1000.0 * (time.monotonic() - self._begun)

    def add_to(self, timing_ms: dict[str, float]) -> None:
        """Add it to what an engine tells."""
        timing_ms["queued"] = timing_ms.get("queued", 0.0) + self.ms


def _has_recordings(request: taste_pb2.GenerateRequest) -> bool:
    return any(segment.HasField("audio") for segment in request.segments)
