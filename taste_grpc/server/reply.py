"""`taste.v1.DialogueService.Reply`: from message to reply model and back."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from taste.v1 import dialogue_pb2
from taste_grpc.dialogue import ReplyChunk, ReplyModel, check_reply_options
from taste_grpc.engine.admission import Admission
from taste_grpc.errors import InvalidInputError
from taste_grpc.server import checks
from taste_grpc.server.call import current_call
from taste_grpc.server.clips import ClipReader
from taste_grpc.server.decoding import Decoding
from taste_grpc.settings import LimitSettings, Settings

MAX_CHUNK_ID_BYTES = 256
_OPTIONS = (
    "system_prompt",
    "max_new_tokens",
    "temperature",
    "top_p",
    "chunk_size_words",
    "timeout_ms",
    "chunk_timeout_ms",
)
"""Fields of a request that are settings of the model."""


class ReplyCalls:
    """Validates, lets in as many calls as `settings.admission.reply` says, decodes, and asks a model.

    The model's iterators are closed in every ending of a call, which stops its work. To be used on one event loop.
    """

    def __init__(self, settings: Settings) -> None:
        self._limits = settings.limits
        self._door = Admission("Reply", settings.admission.reply, settings.admission.max_wait_ms)
        self._decoding = Decoding(settings.admission.max_wait_ms)

    def close(self) -> None:
        """Refuse those who wait to be let in, and end the decoding threads."""
        self._door.close()
        self._decoding.close()

    async def reply(
        self, model: ReplyModel, request: dialogue_pb2.ReplyRequest
    ) -> AsyncGenerator[dialogue_pb2.ReplyResponse]:
        """The answer to one question.

        Raises InvalidInputError naming the field, OverloadedError, or UnavailableError.
        """
        await self._decoding.run(lambda _: check_reply_request(request, self._limits))
        call, given = current_call(), _given(request)
        call.chunk_id = request.chunk_id or call.request_id
        async with self._door.enter():
            clip = await self._decoding.run(
                lambda still_wanted: ClipReader(self._limits, still_wanted).clip("audio", request.audio)
            )
            chunks = model.process_realtime_chunk_streaming(clip, call.chunk_id, **given)
            async with aclosing(chunks):
                async for chunk in chunks:
                    yield reply_response(chunk, call.elapsed_ms)


def check_reply_request(request: dialogue_pb2.ReplyRequest, limits: LimitSettings) -> None:
    """What can be told of a request without decoding its audio. Raises InvalidInputError naming the field."""
    if not request.HasField("audio"):
        raise InvalidInputError("audio", "is required")
    checks.check_clip("audio", request.audio, limits)
    if request.HasField("chunk_id"):
        checks.check_text("chunk_id", request.chunk_id, MAX_CHUNK_ID_BYTES)
    if request.HasField("system_prompt"):
        checks.check_text("system_prompt", request.system_prompt, limits.max_text_bytes)
    check_reply_options(**_given(request))


def _given(request: Any) -> dict[str, Any]:
    """What the request sets of mode and settings, by the names the model knows."""
    return {name: getattr(request, name) for name in ("mode", *_OPTIONS) if request.HasField(name)}


def reply_response(chunk: ReplyChunk, elapsed_ms: float) -> dialogue_pb2.ReplyResponse:
    """`chunk`, `elapsed_ms` after the call came in."""
    return dialogue_pb2.ReplyResponse(
        success=chunk.success,
        text=chunk.text,
        is_final=chunk.is_final,
        chunk_index=chunk.chunk_index,
        processing_time_ms=elapsed_ms,
        error=chunk.error,
        chunk_id=chunk.chunk_id,
    )
