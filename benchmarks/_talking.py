"""People who talk to a server: a recording in real time, then silence, as a microphone would send it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt

from taste.v1 import common_pb2, dialogue_pb2, dialogue_pb2_grpc
from taste_grpc.audio import Encoding, decode_clip, encode_pcm, resample
from taste_grpc.speech import sample_recordings

RATE_HZ = 16_000
FRAME_MS = 20

LABELS = ((1.22, 4.64), (5.02, 10.37), (13.47, 16.77), (24.64, 28.35), (32.77, 38.50))
"""Utterances of the recording `two_cities`: where speech begins and ends, in seconds."""
LEAD_S = 0.3
"""Of the recording, before the speech of each."""


@dataclass(frozen=True)
class Utterance:
    """What somebody says: `[T]` float32 at 16 kHz, and where in it speech begins and ends."""

    samples: npt.NDArray[np.float32]
    begins_s: float
    ends_s: float


def utterances() -> list[Utterance]:
    """The labelled ones, each cut right after its speech."""
    clip = decode_clip(sample_recordings()["two_cities"].read_bytes(), Encoding.WAV, max_ms=60_000)
    samples = resample(clip.samples, clip.sample_rate_hz, RATE_HZ)
    cuts = []
    for begin, end in LABELS:
        first = int((begin - LEAD_S) * RATE_HZ)
        cuts.append(Utterance(samples[first : int(end * RATE_HZ)], LEAD_S, LEAD_S + end - begin))
    return cuts


@dataclass
class Heard:
    """One turn as the client saw it; moments are those of `time.perf_counter`, None for what did not happen.

    Attributes:
        begun, ended: when the microphone sent the first and the last of the speech.
        partial, final, token, audio: when the first of each came.
        phrase: when the text of the first phrase that was spoken was complete.
        transcript, answer: texts.
        tokens: of each token when it came, and the length of the answer with it.
    """

    begun: float
    ended: float
    partial: float | None = None
    final: float | None = None
    token: float | None = None
    phrase: float | None = None
    audio: float | None = None
    transcript: str = ""
    answer: str = ""
    tokens: list[tuple[float, int]] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def parts(self) -> dict[str, float]:
        """Seconds, for a turn that was answered."""
        assert None not in (self.partial, self.final, self.token, self.phrase, self.audio), self.errors
        return {
            "first_partial_s": self.partial - self.begun,
            "first_audio_s": self.audio - self.ended,
            "transcript_s": self.final - self.ended,
            "llm_first_token_s": self.token - self.final,
            "phrase_s": self.phrase - self.token,
            "tts_s": self.audio - self.phrase,
        }


class Talker:
    """One conversation over gRPC."""

    def __init__(self, address: str) -> None:
        self._channel = grpc.aio.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)])
        self._call: Any = dialogue_pb2_grpc.DialogueServiceStub(self._channel).Converse()
        self._writing = asyncio.Lock()  # one message at a time

    async def open(self, **options: Any) -> None:
        """Start, and wait until the server has."""
        form = common_pb2.AudioFormat(encoding=common_pb2.AUDIO_ENCODING_LINEAR16, sample_rate_hz=RATE_HZ)
        start = dialogue_pb2.ConverseStart(input_format=form, options=dialogue_pb2.ConverseOptions(**options))
        await self._call.write(dialogue_pb2.ConverseRequest(start=start))
        first = await self._call.read()
        assert first.WhichOneof("event") == "started", first

    async def turn(self, utterance: Utterance) -> Heard:
        """Say `utterance` in real time, be silent until the answer is there, and hear it at once."""
        heard = Heard(0.0, 0.0)
        over = asyncio.Event()
        speaking = asyncio.create_task(self._speak(utterance, heard, over))
        try:
            async for response in self._responses():
                if await self._take(response, heard):
                    break
        finally:
            over.set()
            await speaking
        return heard

    async def close(self) -> None:
        """End the conversation."""
        await self._call.done_writing()
        async for _ in self._responses():
            pass
        await self._channel.close()

    async def _send(self, request: dialogue_pb2.ConverseRequest) -> None:
        async with self._writing:
            await self._call.write(request)

    async def _responses(self) -> AsyncIterator[dialogue_pb2.ConverseResponse]:
        while (response := await self._call.read()) is not grpc.aio.EOF:
            yield response

    async def _speak(self, utterance: Utterance, heard: Heard, over: asyncio.Event) -> None:
        frame = RATE_HZ * FRAME_MS // 1000
        silence = np.zeros(frame, np.float32)
        begun = time.perf_counter()
        heard.begun, heard.ended = begun + utterance.begins_s, begun + utterance.ends_s
        at = 0
        while not over.is_set():
            samples = utterance.samples[at : at + frame] if at < len(utterance.samples) else silence
            at += frame
            # A frame can be sent once it has been recorded.
            await asyncio.sleep(max(0.0, begun + at / RATE_HZ - time.perf_counter()))
            audio = encode_pcm(samples, Encoding.LINEAR16)
            await self._send(dialogue_pb2.ConverseRequest(audio=audio))

    async def _take(self, response: dialogue_pb2.ConverseResponse, heard: Heard) -> bool:
        """Note what came; whether the turn is over."""
        now, kind = time.perf_counter(), response.WhichOneof("event")
        if kind == "partial_transcript":
            heard.partial = heard.partial or now
        elif kind == "final_transcript":
            heard.final, heard.transcript = now, response.final_transcript.text
        elif kind == "llm_token":
            heard.token = heard.token or now
            heard.answer += response.llm_token.text
            heard.tokens.append((now, len(heard.answer)))
        elif kind == "error":
            heard.errors.append(response.error.message)
        elif kind == "tts_complete":
            played = dialogue_pb2.PlaybackAck(
                turn_index=response.turn_index, played_ms=int(response.tts_complete.audio_ms) + 1
            )
            await self._send(dialogue_pb2.ConverseRequest(playback_ack=played))
        elif kind == "tts_chunk":
            if heard.audio is None:
                heard.audio = now
                end = heard.answer.find(response.tts_chunk.phrase_text) + len(response.tts_chunk.phrase_text)
                heard.phrase = next(moment for moment, length in heard.tokens if length >= end)
        elif kind == "phase_change":
            return response.phase_change.phase == dialogue_pb2.TURN_PHASE_IDLE
        return False
