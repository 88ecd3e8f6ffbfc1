"""A client of Converse that notes all it is told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import numpy as np

from taste.v1 import common_pb2, dialogue_pb2, dialogue_pb2_grpc
from taste_grpc.audio import Encoding, decode_pcm, encode_pcm
from taste_grpc.audio.waveform import Float32Array

RATE_HZ = 16_000
PHASES = {number: name.removeprefix("TURN_PHASE_") for name, number in dialogue_pb2.TurnPhase.items()}
TURN = ["CAPTURING", "THINKING", "RESPONDING", "COMPLETE", "IDLE"]
TYPED = TURN[1:]


def start(rate_hz: int = RATE_HZ, **fields: Any) -> dialogue_pb2.ConverseRequest:
    options = dialogue_pb2.ConverseOptions(**fields.pop("options", {}))
    form = common_pb2.AudioFormat(encoding=common_pb2.AUDIO_ENCODING_LINEAR16, sample_rate_hz=rate_hz)
    return dialogue_pb2.ConverseRequest(start=dialogue_pb2.ConverseStart(input_format=form, options=options, **fields))


class Talk:
    """One call.

    Attributes:
        told: everything it was told, in order.
    """

    def __init__(self, call: Any) -> None:
        self.call = call
        self.told: list[dialogue_pb2.ConverseResponse] = []
        self.acks = True
        self._news = asyncio.Condition()
        self._writing = asyncio.Lock()
        self._reading = asyncio.create_task(self._read())

    async def send(self, request: dialogue_pb2.ConverseRequest | None = None, **event: Any) -> None:
        async with self._writing:
            await self.call.write(request or dialogue_pb2.ConverseRequest(**event))

    async def say(self, samples: Float32Array, silence_s: float = 1.0, *, paced: bool = False) -> None:
        """Speech, then silence, in frames of 100 ms."""
        heard = np.concatenate([samples, np.zeros(int(silence_s * RATE_HZ), np.float32)])
        for at in range(0, len(heard), RATE_HZ // 10):
            frame = heard[at : at + RATE_HZ // 10]
            await self.send(audio=encode_pcm(frame, Encoding.LINEAR16))
            if paced:
                await asyncio.sleep(len(frame) / RATE_HZ)

    async def type(self, text: str) -> None:
        await self.send(text_turn=dialogue_pb2.TextTurn(text=text))

    async def until(self, condition: Callable[[], Any], timeout_s: float = 60.0) -> Any:
        """Wait until what was told makes `condition` true; the end of the call makes it fail."""
        async with asyncio.timeout(timeout_s), self._news:
            while not (found := condition()):
                assert not self._reading.done(), f"the call ended: {self.told[-3:]}"
                await self._news.wait()
        return found

    async def until_phase(self, phase: str, turn: int) -> None:
        await self.until(lambda: phase in self.phases(turn))

    async def until_idle(self, turn: int) -> None:
        """Wait until the turn with this number is over."""
        await self.until_phase("IDLE", turn + 1)

    async def ended(self) -> grpc.StatusCode:
        """How the call ended; waits for it."""
        async with asyncio.timeout(30):
            await asyncio.wait([self._reading])
            return await self.call.code()

    def all(self, kind: str, turn: int | None = None) -> list[Any]:
        """The events of this kind, of one turn or of all."""
        return [
            getattr(response, kind)
            for response in self.told
            if response.WhichOneof("event") == kind and turn in (None, response.turn_index)
        ]

    def phases(self, turn: int | None = None) -> list[str]:
        return [PHASES[change.phase] for change in self.all("phase_change", turn)]

    def answer(self, turn: int) -> str:
        return "".join(token.text for token in self.all("llm_token", turn))

    def is_done(self, turn: int) -> bool:
        return any(token.done for token in self.all("llm_token", turn))

    def audio(self, turn: int) -> Float32Array:
        pcm = b"".join(chunk.audio for chunk in self.all("tts_chunk", turn))
        return decode_pcm(pcm, Encoding.LINEAR16)

    async def close(self) -> None:
        self.call.cancel()
        await asyncio.wait([self._reading])

    async def _read(self) -> None:
        try:
            while (response := await self.call.read()) is not grpc.aio.EOF:
                if self.acks and response.WhichOneof("event") == "tts_complete":
                    played = dialogue_pb2.PlaybackAck(turn_index=response.turn_index, played_ms=1 << 40)
                    await self.send(playback_ack=played)
                async with self._news:
                    self.told.append(response)
                    self._news.notify_all()
        except (grpc.aio.AioRpcError, asyncio.CancelledError, asyncio.InvalidStateError):
            pass
        finally:
            async with self._news:
                self._news.notify_all()


@asynccontextmanager
async def talking(address: str, first: dialogue_pb2.ConverseRequest | None = None) -> AsyncIterator[Talk]:
    """A conversation that is open."""
    async with grpc.aio.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        talk = Talk(dialogue_pb2_grpc.DialogueServiceStub(channel).Converse())
        try:
            await talk.send(first or start())
            await talk.until(lambda: talk.all("started"))
            yield talk
        finally:
            await talk.close()


@asynccontextmanager
async def calling(address: str) -> AsyncIterator[Talk]:
    """A call on which nothing was sent yet."""
    async with grpc.aio.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        talk = Talk(dialogue_pb2_grpc.DialogueServiceStub(channel).Converse())
        try:
            yield talk
        finally:
            await talk.close()
