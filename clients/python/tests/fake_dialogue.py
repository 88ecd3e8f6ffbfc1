"""A DialogueService that does what it is told by typed turns, and records what it is sent."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import grpc

from taste.v1 import common_pb2, dialogue_pb2, dialogue_pb2_grpc

SESSION = "c-1"

Response = dialogue_pb2.ConverseResponse
Responses = Iterator[dialogue_pb2.ConverseResponse]


@dataclass
class FakeDialogue(dialogue_pb2_grpc.DialogueServiceServicer):
    """A text turn is answered by its own text, or is one of the orders in `_ORDERS`.

    The system prompt `mute` keeps the conversation from beginning, `slow start` begins with something else.
    """

    refuse: Callable[[str, grpc.ServicerContext], None] = lambda method, context: None
    received: list[dialogue_pb2.ConverseRequest] = field(default_factory=list)
    conversations: int = 0
    sent: int = 0
    ended: threading.Event = field(default_factory=threading.Event)
    half_closed: threading.Event = field(default_factory=threading.Event)
    hold: threading.Event = field(default_factory=threading.Event)

    def Converse(self, requests: Any, context: grpc.ServicerContext) -> Responses:
        self.conversations += 1
        if not context.add_callback(self.ended.set):
            self.ended.set()  # it has ended already
        self.refuse("Converse", context)
        first = self._take(requests)
        if first is None or not first.HasField("start"):
            yield error("PROTOCOL_VIOLATION", "start was expected", recoverable=False)
            return
        if first.start.system_prompt == "mute":
            self.hold.wait(30)
        if first.start.system_prompt == "slow start":
            yield phase(0, "IDLE")
        if first.start.input_format.sample_rate_hz == 1:
            yield error("UNSUPPORTED_SAMPLE_RATE", "1 Hz", recoverable=True)
            return
        yield started(first.start)
        turn = 0
        while (request := self._take(requests)) is not None:
            ended = False
            for response in self._answers(request, turn, context):
                self.sent += 1
                yield response
                ended = response.error.code != 0 and not response.error.recoverable
            if ended:
                return
            turn += request.HasField("text_turn")
        if context.is_active():
            self.half_closed.set()

    def _take(self, requests: Any) -> dialogue_pb2.ConverseRequest | None:
        request = next(requests, None)
        if request is not None:
            self.received.append(request)
        return request

    def _answers(self, request: dialogue_pb2.ConverseRequest, turn: int, context: grpc.ServicerContext) -> Responses:
        kind = request.WhichOneof("event")
        if kind == "mark":
            yield Response(mark=request.mark)
        elif kind == "stop":
            yield Response(turn_index=turn, final_transcript=dialogue_pb2.FinalTranscript(text="hi", audio_ms=20))
        elif kind == "cancel":
            yield error("CANCELLED", "cancelled", recoverable=True, turn=turn)
        elif kind == "text_turn":
            order, _, argument = request.text_turn.text.partition(" ")
            yield from _ORDERS.get(order, FakeDialogue._answer)(self, turn, argument or order, context)

    def _answer(self, turn: int, text: str, context: grpc.ServicerContext) -> Responses:
        yield phase(turn, "THINKING")
        yield Response(turn_index=turn, llm_token=dialogue_pb2.LlmToken(text=text))
        yield Response(turn_index=turn, llm_token=dialogue_pb2.LlmToken(done=True))
        yield phase(turn, "RESPONDING")
        yield chunk(turn, 0, b"\x01\x00" * 8, text)
        yield chunk(turn, 1, b"\x02\x00" * 8)
        yield Response(turn_index=turn, tts_complete=dialogue_pb2.TtsComplete(chunks=2, audio_ms=1.0))
        yield Response(turn_index=turn, turn_metrics=dialogue_pb2.TurnMetrics(first_token_ms=3.5))
        yield phase(turn, "COMPLETE")
        yield phase(turn + 1, "IDLE")

    def _other_events(self, turn: int, text: str, context: grpc.ServicerContext) -> Responses:
        yield Response(turn_index=turn, partial_transcript=dialogue_pb2.PartialTranscript(text="h", audio_ms=10))
        heard = dialogue_pb2.Interruption(heard_ms=7, heard_text="seven", estimated=True)
        yield Response(turn_index=turn, interruption=heard)
        yield Response(notice=dialogue_pb2.Notice(message="slow"))

    def _strange(self, turn: int, text: str, context: grpc.ServicerContext) -> Responses:
        # Field 99 of a later version; then values of enums that are not known yet.
        yield Response.FromString(b"\x9a\x06\x00")
        yield Response.FromString(Response(turn_index=turn, phase_change={"phase": 77}).SerializeToString())
        yield Response(turn_index=turn, error=dialogue_pb2.ConverseError(code=78, message="?", recoverable=True))

    def _going_away(self, turn: int, text: str, context: grpc.ServicerContext) -> Responses:
        away = dialogue_pb2.GoingAway(resume_token="token", grace_ms=10, token_lifetime_ms=20)
        yield Response(going_away=away)

    def _fails(self, turn: int, text: str, context: grpc.ServicerContext) -> Responses:
        yield error(text, "gave up", recoverable=False)

    def _slips(self, turn: int, text: str, context: grpc.ServicerContext) -> Responses:
        yield error(text, "once", recoverable=True, turn=turn)

    def _aborts(self, turn: int, text: str, context: grpc.ServicerContext) -> Responses:
        context.abort(grpc.StatusCode[text], "as asked")
        yield phase(turn, "ERROR")

    def _floods(self, turn: int, text: str, context: grpc.ServicerContext) -> Responses:
        seq = 0
        while context.is_active():
            yield chunk(turn, seq, bytes(10_000))
            seq += 1

    def _goes_deaf(self, turn: int, text: str, context: grpc.ServicerContext) -> Responses:
        self.hold.wait(30)
        yield from ()


_ORDERS: dict[str, Callable[[FakeDialogue, int, str, grpc.ServicerContext], Responses]] = {
    "others": FakeDialogue._other_events,
    "strange": FakeDialogue._strange,
    "away": FakeDialogue._going_away,
    "fail": FakeDialogue._fails,
    "slip": FakeDialogue._slips,
    "abort": FakeDialogue._aborts,
    "flood": FakeDialogue._floods,
    "deaf": FakeDialogue._goes_deaf,
}


def started(start: dialogue_pb2.ConverseStart) -> dialogue_pb2.ConverseResponse:
    encoding = start.voice.encoding or common_pb2.AUDIO_ENCODING_LINEAR16
    rate = start.voice.out_sample_rate_hz or 16_000
    form = common_pb2.AudioFormat(encoding=encoding, sample_rate_hz=rate, channels=1)
    told = dialogue_pb2.ConverseStarted(session_id=SESSION, output_format=form, resumed=start.HasField("resume_token"))
    return Response(started=told)


def phase(turn: int, name: str) -> dialogue_pb2.ConverseResponse:
    change = dialogue_pb2.PhaseChange(phase=dialogue_pb2.TurnPhase.Value(f"TURN_PHASE_{name}"))
    return Response(turn_index=turn, phase_change=change)


def chunk(turn: int, seq: int, audio: bytes, phrase: str | None = None) -> dialogue_pb2.ConverseResponse:
    samples = len(audio) // 2
    told = dialogue_pb2.TtsChunk(
        seq=seq, audio=audio, first_sample=seq * samples, chunk_duration_ms=samples / 16, phrase_text=phrase
    )
    return Response(turn_index=turn, tts_chunk=told)


def error(code: str, message: str, *, recoverable: bool, turn: int | None = None) -> dialogue_pb2.ConverseResponse:
    told = dialogue_pb2.ConverseError(
        code=dialogue_pb2.ConverseErrorCode.Value(f"CONVERSE_ERROR_CODE_{code}"),
        message=message,
        recoverable=recoverable,
    )
    return Response(turn_index=turn, error=told)
