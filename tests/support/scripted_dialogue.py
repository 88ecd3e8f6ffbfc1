"""A DialogueService that keeps to the contract and has no models: sound is speech, zeros are silence."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np

from taste.v1 import common_pb2, dialogue_pb2, dialogue_pb2_grpc
from taste.v1.dialogue_pb2 import ConverseRequest, ConverseResponse

ANSWER = ("Well,", " I", " heard", " you.")
CHUNKS, CHUNK_MS = 3, 100
_RATE_HZ = 16_000


@dataclass
class ScriptedDialogue(dialogue_pb2_grpc.DialogueServiceServicer):
    """Answers each turn with `ANSWER`, over `CHUNKS` chunks of `CHUNK_MS`.

    A turn is over when the answer has been acknowledged as played. The system prompt `fail CODE` makes every turn fail,
    `fatal` ends the conversation at the first, `cut` aborts the call there, `long` makes the first answer ten times as
    long, `away` announces that the server stops.

    Attributes:
        conversations: every conversation that began.
    """

    conversations: list[_Conversation] = field(default_factory=list)
    changed: threading.Condition = field(default_factory=threading.Condition)

    async def Converse(self, requests: AsyncIterator[ConverseRequest], context: Any) -> AsyncIterator[ConverseResponse]:
        talk: _Conversation | None = None
        try:
            async for request in requests:
                if talk is None:
                    talk = _Conversation(request.start)
                    self.conversations.append(talk)
                for response in talk.take(request):
                    yield response
                if talk.is_cut:
                    await context.abort(grpc.StatusCode.INTERNAL, "cut")
                if talk.is_ended:
                    return
                self._tell()
            if talk is not None:
                for response in talk.half_close():
                    yield response
        finally:
            if talk is not None:
                talk.over = True
            self._tell()

    def _tell(self) -> None:
        with self.changed:
            self.changed.notify_all()

    def wait_for(self, condition: Any, timeout_s: float = 30.0) -> None:
        """Wait, on another thread, until `condition` holds for the last conversation."""
        with self.changed:
            assert self.changed.wait_for(lambda: self.conversations and condition(self.conversations[-1]), timeout_s)


class _Conversation:
    def __init__(self, start: dialogue_pb2.ConverseStart) -> None:
        self.start = start
        self.received: list[ConverseRequest] = []
        self.phases: list[str] = []
        self.acks: list[tuple[int, int]] = []
        self.half_closed = self.over = self.is_cut = self.is_ended = False
        self.turn = 0
        self._phase = "IDLE"
        self._silence_ms = start.options.vad_silence_ms or 700
        self._silent_ms = self._spoken_ms = self._interrupting_ms = 0.0

    def take(self, request: ConverseRequest) -> Iterator[ConverseResponse]:
        """What happens because of a request."""
        self.received.append(request)
        kind = request.WhichOneof("event")
        if kind == "start":
            form = common_pb2.AudioFormat(
                encoding=common_pb2.AUDIO_ENCODING_LINEAR16, sample_rate_hz=_RATE_HZ, channels=1
            )
            yield ConverseResponse(started=dialogue_pb2.ConverseStarted(session_id="s-1", output_format=form))
            if self.start.system_prompt == "away":
                yield ConverseResponse(going_away=dialogue_pb2.GoingAway(resume_token="t", grace_ms=1500))
        elif kind == "audio":
            yield from self._listen(request.audio)
        elif kind == "mark":
            yield ConverseResponse(mark=request.mark)
        elif kind == "stop" and self._phase == "CAPTURING":
            yield from self._answer()
        elif kind == "cancel":
            yield self._error("CANCELLED", recoverable=True)
            yield from self._end("COMPLETE")
        elif kind == "playback_ack":
            self.acks.append((request.playback_ack.turn_index, request.playback_ack.played_ms))
            if self._phase == "RESPONDING" and self.acks[-1] == (self.turn, CHUNKS * CHUNK_MS):
                yield from self._end("COMPLETE")

    def half_close(self) -> Iterator[ConverseResponse]:
        """What happens because nothing more will come."""
        self.half_closed = True
        if self._phase == "RESPONDING":
            yield from self._end("COMPLETE")

    def _listen(self, audio: bytes) -> Iterator[ConverseResponse]:
        form = self.start.input_format
        samples = np.frombuffer(audio, "<i2").reshape(-1, form.channels)
        ms, is_speech = 1000 * len(samples) / form.sample_rate_hz, bool(samples.any())
        if self._phase == "IDLE" and is_speech:
            self._spoken_ms = 0.0
            yield self._enter("CAPTURING")
        if self._phase == "CAPTURING":
            self._silent_ms = 0.0 if is_speech else self._silent_ms + ms
            self._spoken_ms += ms * is_speech
            yield self._response(partial_transcript={"text": "hel", "audio_ms": int(self._spoken_ms)})
            if self._silent_ms >= self._silence_ms:
                yield from self._answer()
        elif self._phase == "RESPONDING":
            self._interrupting_ms = self._interrupting_ms + ms if is_speech else 0.0
            if self._interrupting_ms >= 240 and (self.start.options.barge_in or not self._says_barge_in):
                heard = self.acks[-1][1] if self.acks and self.acks[-1][0] == self.turn else 0
                yield self._response(interruption={"heard_ms": heard, "heard_text": "Well,"})
                yield from self._end("COMPLETE")

    @property
    def _says_barge_in(self) -> bool:
        return self.start.options.HasField("barge_in")

    def _answer(self) -> Iterator[ConverseResponse]:
        yield self._response(final_transcript={"text": "hello there", "audio_ms": int(self._spoken_ms)})
        yield self._enter("THINKING")
        order, _, code = self.start.system_prompt.partition(" ")
        if order == "fail":
            yield self._error(code, recoverable=True)
            yield from self._end("ERROR")
            return
        if order in ("fatal", "cut"):
            self.is_ended, self.is_cut = True, order == "cut"
            if order == "fatal":
                yield self._error("INTERNAL", recoverable=False)
            return
        for token in ANSWER:
            yield self._response(llm_token={"text": token})
        yield self._response(llm_token={"done": True})
        yield self._enter("RESPONDING")
        self._interrupting_ms = 0.0
        yield from self._speech()

    def _speech(self) -> Iterator[ConverseResponse]:
        chunk_ms = CHUNK_MS * (10 if self.start.system_prompt == "long" and self.turn == 0 else 1)
        samples = _RATE_HZ * chunk_ms // 1000
        for seq in range(CHUNKS):
            chunk = dialogue_pb2.TtsChunk(
                seq=seq,
                audio=np.full(samples, 1000 * (self.turn + 1), "<i2").tobytes(),
                first_sample=seq * samples,
                chunk_duration_ms=chunk_ms,
                phrase_text="".join(ANSWER) if seq == 0 else None,
            )
            yield self._response(tts_chunk=chunk)
        yield self._response(tts_complete={"chunks": CHUNKS, "audio_ms": CHUNKS * chunk_ms})

    def _end(self, phase: str) -> Iterator[ConverseResponse]:
        metrics = dialogue_pb2.TurnMetrics(first_partial_ms=40, final_transcript_ms=610.4, first_audio_ms=750)
        yield self._response(turn_metrics=metrics)
        yield self._enter(phase)
        self.turn += 1
        yield self._enter("IDLE")

    def _enter(self, phase: str) -> ConverseResponse:
        self._phase = phase
        self.phases.append(phase)
        return self._response(phase_change={"phase": f"TURN_PHASE_{phase}"})

    def _error(self, code: str, *, recoverable: bool) -> ConverseResponse:
        name = f"CONVERSE_ERROR_CODE_{code}"
        return self._response(error={"code": name, "message": "as scripted", "recoverable": recoverable})

    def _response(self, **event: Any) -> ConverseResponse:
        return ConverseResponse(turn_index=self.turn, **event)


@dataclass(frozen=True)
class ScriptedServer:
    """The service, and where it is served."""

    dialogue: ScriptedDialogue
    address: str


@contextmanager
def scripted_server() -> Iterator[ScriptedServer]:
    """A ScriptedDialogue, served by grpc.aio on a thread of its own."""
    ready: Future[ScriptedServer] = Future()
    stop = threading.Event()

    async def main() -> None:
        server = grpc.aio.server()
        dialogue = ScriptedDialogue()
        dialogue_pb2_grpc.add_DialogueServiceServicer_to_server(dialogue, server)  # type: ignore[no-untyped-call]
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        ready.set_result(ScriptedServer(dialogue, f"127.0.0.1:{port}"))
        await asyncio.to_thread(stop.wait)
        await server.stop(None)

    thread = threading.Thread(target=lambda: asyncio.run(main()), name="scripted-server")
    thread.start()
    try:
        yield ready.result(30)
    finally:
        stop.set()
        thread.join(30)
