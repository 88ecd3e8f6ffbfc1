"""A stand-in for an engine that records what is done to it, for tests of the server alone."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator

import numpy as np

from taste_grpc.engine.protocol import (
    DetokenizeChunk,
    DetokenizeConfig,
    EngineStats,
    GenerateRequest,
    GenerateResult,
    ModelInfo,
    SegmentInput,
    TokenizeRequest,
    TokenizeResult,
)

INFO = ModelInfo(
    model_id="recording",
    revision="r1",
    parts_trained={"audio_tower": False, "spoken_lm": True},
    text_vocab_size=1000,
    asr_vocab_size=2000,
    vq_dim=4,
    codebook_size=512,
    speaker_embedding_dim=192,
    input_sample_rate_hz=16_000,
    output_sample_rate_hz=22_050,
    speech_unit_rate_hz=50,
    special_tokens={"sos": 1},
    conversation_formats=("completion",),
    device="cpu",
    dtype="float32",
    asr="none in particular",
)


class RecordingEngine:
    """Answers every call with made-up numbers.

    Attributes:
        events: counts `tokenize:begin`, `tokenize:end`, ... and the steps of each method; the end
            is counted however a call ended.
        progress: the steps of each Generate and Detokenize, in the order they came.
        results: how many results a Generate that begins now will have.
        held: while it is cleared, the model work of every call waits.
        load: what `start` waits for.
        broken: once it is set, the engine says that it can serve no more.
        failure: raised by every call, and by `start` when `fail_start`.
    """

    def __init__(self) -> None:
        self.events: Counter[str] = Counter()
        self.progress: list[int] = []
        self.held = asyncio.Event()
        self.held.set()
        self.load = asyncio.Event()
        self.load.set()
        self.broken = asyncio.Event()
        self.results = 5
        self.chunk_samples = 1600
        self.failure: Exception | None = None
        self.fail_start: Exception | None = None
        self.requests: list[object] = []

    @property
    def info(self) -> ModelInfo:
        return INFO

    @property
    def running(self) -> int:
        return sum(n for e, n in self.events.items() if e.endswith(":begin")) - sum(
            n for e, n in self.events.items() if e.endswith(":end")
        )

    async def start(self) -> None:
        await self.load.wait()
        if self.fail_start:
            raise self.fail_start
        self.events["start"] += 1

    async def _step(self, name: str) -> None:
        self.events[name] += 1
        if self.failure:
            raise self.failure
        await asyncio.sleep(0)
        await self.held.wait()

    async def tokenize(self, request: TokenizeRequest) -> TokenizeResult:
        self.requests.append(request)
        self.events["tokenize:begin"] += 1
        try:
            await self._step("tokenize")
            return TokenizeResult(
                text=request.text or "made up",
                text_ids=np.array([5, 6]),
                word_ids=np.array([0, 1]),
                taste_ids=np.arange(8).reshape(2, 4),
                speaker_embedding=np.full(192, 192**-0.5, np.float32),
                audio_ms=request.audio.duration_ms,
                words=("made", "up"),
                timing_ms={"audio_tower": 1.5},
            )
        finally:
            self.events["tokenize:end"] += 1

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[GenerateResult]:
        self.requests.append(request)
        self.events["generate:begin"] += 1
        try:
            call, results = len(self.progress), self.results
            self.progress.append(0)
            for index in range(results):
                await self._step("generate")
                self.progress[call] += 1
                last = index == results - 1
                count = 0 if last else 1
                yield GenerateResult(
                    is_complete=last,
                    completion_reason="segment_end" if last else "continuing",
                    text=" word" * count,
                    text_ids=(7,) * count,
                    word_ids=(index,) * count,
                    taste_ids=((3,) * 4,) * count,
                    index=index,
                    words=("word",) * count,
                )
        finally:
            self.events["generate:end"] += 1

    async def detokenize(
        self, config: DetokenizeConfig, segments: AsyncIterator[SegmentInput]
    ) -> AsyncGenerator[DetokenizeChunk]:
        self.requests.append(config)
        self.events["detokenize:begin"] += 1
        try:
            number = first = 0
            call = len(self.progress)
            self.progress.append(0)
            async for segment in segments:
                self.requests.append(segment)
                await self._step("detokenize")
                self.progress[call] += 1
                yield DetokenizeChunk(
                    samples=np.full(self.chunk_samples, 0.25, np.float32),
                    sample_rate_hz=config.out_sample_rate_hz or 16_000,
                    first_sample=first,
                    speech_ids=np.arange(5),
                    index=number,
                    segment_index=number,
                    is_final=True,
                    resume_state=b"state",
                )
                first += self.chunk_samples
                number += 1
        finally:
            self.events["detokenize:end"] += 1

    def stats(self) -> EngineStats:
        return EngineStats(self.running, 0, 0, 0, 0, 0, 0, 0, 0)

    async def failed(self) -> None:
        await self.broken.wait()

    async def drain(self, grace_s: float) -> None:
        self.events["drain"] += 1
