"""An engine in this process: one model, one model thread, many calls in its rounds."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from taste_grpc.engine.answering import RESULTS_AHEAD, Results, answer_options, check_format
from taste_grpc.engine.call_abort import CallAbort
from taste_grpc.engine.calls import Calls
from taste_grpc.engine.hearing import Hearing
from taste_grpc.engine.loading import LoadedModel, load_model
from taste_grpc.engine.machine import MachineSettings, SharedMachine
from taste_grpc.engine.memory import memory_bytes
from taste_grpc.engine.model_loop import ModelLoop
from taste_grpc.engine.model_thread import ModelThread
from taste_grpc.engine.next_segment import NextSegment
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
from taste_grpc.engine.speaking import Utterance
from taste_grpc.errors import UnavailableError
from taste_grpc.model.text.words import encode_words
from taste_grpc.settings import DEFAULT_MODEL, AdmissionSettings
from taste_grpc.streaming import Answer, GenerateOptions, TASTESegment
from taste_grpc.streaming.work import Emit, Turn, Work

T = TypeVar("T")

_PROMPT_EXTRAS = 1_024  # markers around the segments of a conversation
_MAX_LENGTH = 4_096


@dataclass(frozen=True)
class EngineSettings:
    """What to load and how to run it.

    Attributes:
        model: directory, hub id, or `taste-nano` for the embedded model.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        dtype: `auto`, `float32`, `bfloat16` or `float16`.
        threads: threads of one model operation on the CPU; None takes half of the cores.
        max_text_tokens: text ids a Generate request may hold.
        cache_dir: where the embedded model is assembled; None is the user's cache.
        admission: how many calls of each method may be under way, and how many may wait.
        cache_mib: keys and values of all calls together; None takes a quarter of the memory.
        deterministic: a call gives the same to the bit whatever runs beside it, at some cost.
        flush_after_ms: how long the end of a segment waits for the next one, for a joint that cannot be heard.
    """

    model: str | Path = DEFAULT_MODEL
    device: str = "auto"
    dtype: str = "auto"
    threads: int | None = None
    max_text_tokens: int = 8192
    cache_dir: Path | None = None
    admission: AdmissionSettings = field(default_factory=AdmissionSettings)
    cache_mib: int | None = None
    deterministic: bool = False
    flush_after_ms: int = 100


@dataclass
class _Started:
    loaded: LoadedModel
    machine: SharedMachine
    hearing: Hearing


class LocalEngine:
    """The Engine protocol over a model in this process."""

    def __init__(self, settings: EngineSettings | None = None) -> None:
        self.settings = settings or EngineSettings()
        self._loop = ModelLoop()
        self._asr_thread = ModelThread("taste-asr")
        self._audio_thread = ModelThread("taste-audio")
        self._calls = Calls(self.settings.admission)
        self._state: _Started | None = None
        self._prefill_tokens = self._speech_units = 0

    @property
    def _started(self) -> _Started:
        if self._state is None:
            raise UnavailableError("the model is still loading")
        return self._state

    @property
    def info(self) -> ModelInfo:
        """What is loaded; raises UnavailableError before `start` has returned."""
        return self._started.loaded.info

    async def start(self) -> None:
        """Load the model and run it once through all its parts. Raises CheckpointError."""
        loaded, machine = await self._loop.run(self._load)
        self._loop.attach(machine)
        await self._loop.run(machine.warm_up)
        await self._loop.do(_warm_up(loaded), CallAbort())
        machine.reset_counters()
        threads = (self._loop, self._asr_thread, self._audio_thread)
        hearing = Hearing(loaded, *threads, self.settings.max_text_tokens)
        self._state = _Started(loaded, machine, hearing)

    def _load(self) -> tuple[LoadedModel, SharedMachine]:
        settings, admission = self.settings, self.settings.admission
        with torch.inference_mode(False):
            loaded = load_model(settings.model, settings.device, settings.dtype, settings.threads, settings.cache_dir)
        shape = MachineSettings(
            text_slots=admission.generate.active,
            unit_slots=admission.detokenize.active,
            text_positions=settings.max_text_tokens + _MAX_LENGTH + _PROMPT_EXTRAS,
            cache_bytes=_cache_bytes(loaded, settings.cache_mib),
            deterministic=settings.deterministic,
        )
        return loaded, SharedMachine(loaded, shape)

    async def tokenize(self, request: TokenizeRequest) -> TokenizeResult:
        """Audio to aligned text ids and codes."""
        hearing = self._started.hearing
        async with self._calls.enter("tokenize") as abort:
            return await hearing.tokenize(request, abort)

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[GenerateResult]:
        """Continue a conversation, word by word."""
        loaded, hearing = self._started.loaded, self._started.hearing
        async with self._calls.enter("generate") as abort:
            started = time.monotonic()
            check_format(loaded, request)
            segments = await hearing.segments(request.segments, abort)
            results, timing = Results(loaded), {"queued": abort.queued_ms}
            async with self._loop.emitting(self._answer(request, segments, abort), abort, RESULTS_AHEAD) as job:
                while batch := await job.take():
                    for new in batch:
                        now = time.monotonic()
                        if new is None:  # the prompt has been read
                            timing["prefill"], started = 1000.0 * (now - started), now
                            continue
                        timing["decode"], started = 1000.0 * (now - started), now
                        yield results.next(new, timing)
                        timing = {"queued": abort.queued_ms}

    def _answer(self, request: GenerateRequest, segments: list[TASTESegment], abort: CallAbort) -> Work[None]:
        """Emits None once the prompt has been read, then the results."""
        loaded = self._started.loaded
        answer = Answer(loaded.model, loaded.processor, segments, answer_options(loaded, request), abort)
        self._prefill_tokens += answer.prompt_rows
        yield Turn()
        yield from answer.work(tell_when_read=True)

    async def detokenize(
        self, config: DetokenizeConfig, segments: AsyncIterator[SegmentInput]
    ) -> AsyncGenerator[DetokenizeChunk]:
        """Speak segments as they arrive, phrase by phrase."""
        loaded, hearing = self._started.loaded, self._started.hearing
        async with self._calls.enter("detokenize") as abort:
            voice = config.speaker_embedding
            if voice is None and config.reference is not None:
                voice = await hearing.voice(await hearing.at_model_rate(config.reference, abort), abort)
            utterance = await self._loop.run(partial(Utterance, loaded, config, voice, abort), abort)
            async with NextSegment(segments, self._calls.cut, abort) as coming:
                while (given := await coming.take()) is not None:
                    async with aclosing(self._spoken(utterance, given, coming, abort)) as chunks:
                        async for chunk in chunks:
                            yield chunk

    async def _spoken(
        self, utterance: Utterance, given: SegmentInput, coming: NextSegment, abort: CallAbort
    ) -> AsyncGenerator[DetokenizeChunk]:
        """The chunks of one segment."""
        started, units = time.monotonic(), utterance.unit_count
        segment = await self._started.hearing.segment(given, "segment", abort)

        def timed(chunk: DetokenizeChunk) -> DetokenizeChunk:
            nonlocal started
            begun, started = started, time.monotonic()
            return replace(chunk, timing_ms={"speech": 1000.0 * (started - begun), "queued": abort.queued_ms})

        async with self._loop.emitting(utterance.say(given, segment), abort) as job:
            while batch := await job.take():
                for chunk in batch:
                    yield timed(chunk)
            last: DetokenizeChunk | None = await job.result
        self._speech_units += utterance.unit_count - units
        follows = await coming.follows(0)
        if follows is None and last is not None:
            yield timed(last)
            last, follows = None, await coming.follows(self.settings.flush_after_ms / 1000)
        closing = utterance.close_segment(last, flush=not follows)
        yield timed(await self._loop.do(closing, abort))

    def stats(self) -> EngineStats:
        """Counters since the start."""
        calls, state = self._calls, self._state
        machine = state.machine if state else None
        return EngineStats(
            active_calls=calls.active,
            waiting_calls=calls.waiting,
            completed_calls=calls.completed,
            cancelled_calls=calls.cancelled,
            failed_calls=calls.failed,
            decode_steps=machine.text_rows if machine else 0,
            prefill_tokens=self._prefill_tokens,
            speech_units=self._speech_units,
            extra={
                "abort_checks": calls.abort_checks,
                "refused_calls": calls.refused,
                "rounds": self._loop.rounds,
                **(machine.counters() if machine else {}),
                **(state.hearing.work if state else {}),
            },
        )

    async def failed(self) -> None:
        """Return once the model thread has failed."""
        await asyncio.shield(asyncio.wrap_future(self._loop.failure))

    async def drain(self, grace_s: float) -> None:
        """Refuse new calls and those that wait, let running ones finish within `grace_s` seconds, abort them and stop.

        Calls that are aborted end in UnavailableError. A second drain may shorten the grace of the first.
        """
        await self._calls.drain(grace_s)
        for thread in (self._loop, self._asr_thread, self._audio_thread):
            await asyncio.to_thread(thread.close)


def _cache_bytes(loaded: LoadedModel, wanted_mib: int | None) -> int:
    if wanted_mib is not None:
        return wanted_mib << 20
    device = loaded.model.device
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] // 4
    return memory_bytes() // 4


def _warm_up(loaded: LoadedModel) -> Work[None]:
    """Everything once, in small: what is made at the first use is made before the first call."""
    word = encode_words(loaded.processor.text_tokenizer, [" hello"])
    codes = torch.full((1, len(word.ids), loaded.model.vq_dim), -1)
    codes[0, 0] = 0
    segment = TASTESegment("user", "audio", torch.tensor([word.ids]), codes)
    options = GenerateOptions(max_length=1, conversation_format=loaded.default_format)
    yield from _silently(Answer(loaded.model, loaded.processor, [segment], options).work())
    voice = np.ones(loaded.info.speaker_embedding_dim, np.float32)
    utterance = Utterance(loaded, DetokenizeConfig(seed=0), voice, lambda: None)
    spoken = SegmentInput("assistant", "audio", text_ids=np.asarray(word.ids), taste_ids=codes[0].numpy())
    chunk = yield from _silently(utterance.say(spoken, segment))
    yield from utterance.close_segment(chunk, flush=True)


def _silently(work: Work[T]) -> Work[T]:
    """`work` without what it emits."""
    answer = None
    while True:
        try:
            want = work.send(answer)
        except StopIteration as stopped:
            result: T = stopped.value
            return result
        answer = None if isinstance(want, Emit) else (yield want)
