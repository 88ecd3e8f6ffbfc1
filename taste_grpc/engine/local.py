"""An engine in this process: one model, one model thread, calls taking turns step by step."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from taste_grpc.engine.admission import Admission
from taste_grpc.engine.hearing import Hearing
from taste_grpc.engine.loading import LoadedModel, load_model
from taste_grpc.engine.model_thread import CallAbort, ModelThread
from taste_grpc.engine.protocol import (
    DetokenizeChunk,
    DetokenizeConfig,
    EmitPolicy,
    EngineStats,
    GenerateRequest,
    GenerateResult,
    ModelInfo,
    SegmentInput,
    TokenizeRequest,
    TokenizeResult,
)
from taste_grpc.engine.speaking import Utterance
from taste_grpc.errors import CallAbortedError, InvalidInputError, UnavailableError
from taste_grpc.model.text.words import encode_words
from taste_grpc.settings import DEFAULT_MODEL, AdmissionSettings
from taste_grpc.streaming import (
    EmitStatus,
    GenerateOptions,
    GenerationStream,
    StreamingResult,
    TASTESegment,
    taste_detokenize,
)
from taste_grpc.streaming.conversation import completion_mode
from taste_grpc.streaming.generate import ShouldEmitSegment


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
    """

    model: str | Path = DEFAULT_MODEL
    device: str = "auto"
    dtype: str = "auto"
    threads: int | None = None
    max_text_tokens: int = 8192
    cache_dir: Path | None = None
    admission: AdmissionSettings = field(default_factory=AdmissionSettings)


@dataclass
class _Counters:
    active: int = 0
    completed: int = 0
    cancelled: int = 0
    failed: int = 0
    decode_steps: int = 0
    prefill_tokens: int = 0
    speech_units: int = 0
    abort_checks: int = 0


class LocalEngine:
    """The Engine protocol over a model in this process."""

    def __init__(self, settings: EngineSettings | None = None) -> None:
        self.settings = settings or EngineSettings()
        self._thread = ModelThread()
        self._asr_thread = ModelThread("taste-asr")
        self._loaded: LoadedModel | None = None
        self._ready: Hearing | None = None
        self._counters = _Counters()
        admission = self.settings.admission
        self._doors = {
            method: Admission(method.capitalize(), getattr(admission, method), admission.max_wait_ms)
            for method in ("tokenize", "generate", "detokenize")
        }
        self._draining = self._cut = False
        self._running: dict[CallAbort, asyncio.Timeout | None] = {}  # with what can end a call's wait for its caller
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def info(self) -> ModelInfo:
        """What is loaded; raises UnavailableError before `start` has returned."""
        return self._model.info

    @property
    def _model(self) -> LoadedModel:
        if self._loaded is None:
            raise UnavailableError("the model is still loading")
        return self._loaded

    @property
    def _hearing(self) -> Hearing:
        if self._ready is None:
            raise UnavailableError("the model is still loading")
        return self._ready

    async def start(self) -> None:
        """Load the model and run it once through all its parts. Raises CheckpointError."""
        settings = self.settings
        self._loaded = await self._thread.run(
            lambda: load_model(settings.model, settings.device, settings.dtype, settings.threads, settings.cache_dir)
        )
        await self._thread.run(self._warm_up)
        self._ready = Hearing(self._loaded, self._thread, self._asr_thread, settings.max_text_tokens)

    def _warm_up(self) -> None:
        loaded = self._model
        word = encode_words(loaded.processor.text_tokenizer, [" hello"])
        codes = torch.full((1, len(word.ids), loaded.model.vq_dim), -1)
        codes[0, 0] = 0
        ids = torch.tensor([word.ids])
        stream = GenerationStream(
            loaded.model,
            loaded.processor,
            [TASTESegment("user", "audio", ids, codes)],
            GenerateOptions(max_length=1, conversation_format=loaded.default_format),
        )
        stream.start()
        stream.step()
        stream.close()
        speaker = torch.ones(1, loaded.info.speaker_embedding_dim)
        taste_detokenize(loaded.model, loaded.processor, speaker, None, None, None, 0, ids, codes)

    @asynccontextmanager
    async def _call(self, method: str) -> AsyncIterator[CallAbort]:
        """One call: admitted, counted in and out; its abort flag is set on the way out, however it ends."""
        if self._draining:
            raise UnavailableError("the server is draining; no new calls are taken")
        _ = self._hearing
        abort = CallAbort()
        async with self._doors[method].enter():
            with self._counted(abort):
                yield abort

    @contextmanager
    def _counted(self, abort: CallAbort) -> Iterator[None]:
        counters = self._counters
        self._running[abort] = None
        self._idle.clear()
        counters.active += 1
        try:
            yield
            counters.completed += 1
        except (asyncio.CancelledError, GeneratorExit):
            counters.cancelled += 1
            raise
        except CallAbortedError:
            counters.cancelled += 1
            if self._cut:
                raise UnavailableError("the server stopped before the call had ended") from None
            raise
        except Exception:
            counters.failed += 1
            raise
        finally:
            abort.set()
            counters.active -= 1
            counters.abort_checks += abort.checks
            del self._running[abort]
            if not self._running:
                self._idle.set()

    async def tokenize(self, request: TokenizeRequest) -> TokenizeResult:
        """Audio to aligned text ids and codes."""
        async with self._call("tokenize") as abort:
            hearing, started = self._hearing, time.monotonic()
            timing: dict[str, float] = {}
            samples = await hearing.at_model_rate(request.audio, abort)
            text = request.text
            if text is None and request.text_ids is None:
                text = await hearing.transcribe(samples, abort)
                timing["asr"] = _since(started)
            if request.text_ids is None:
                ids, words = await self._thread.run(partial(hearing.words, text or ""), abort)
            else:
                ids, words = hearing.check_ids(request.text_ids)
            begun = time.monotonic()
            said_in = "text" if request.text is not None else "audio"
            field = said_in if request.text_ids is None else "text_ids"
            codes = await hearing.codes(samples, ids, words, abort, field)
            timing["audio_tower"] = _since(begun)
            begun = time.monotonic()
            voice = await hearing.voice(samples, abort)
            timing["speaker"] = _since(begun)
            timing["queued"] = abort.queued_ms
            return TokenizeResult(
                text=text if text is not None else self._model.processor.text_tokenizer.decode(ids).strip(),
                text_ids=np.asarray(ids, np.int64),
                word_ids=np.asarray(words, np.int64),
                taste_ids=codes,
                speaker_embedding=voice,
                audio_ms=request.audio.duration_ms,
                words=hearing.written_words(ids, words),
                timing_ms=timing,
            )

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[GenerateResult]:
        """Continue a conversation, word by word."""
        async with self._call("generate") as abort:
            started = time.monotonic()
            self._check_format(request)
            segments = await self._hearing.segments(request.segments, abort)
            stream = await self._thread.run(lambda: self._open(request, segments, abort), abort)
            timing = {"prefill": _since(started)}
            begun = time.monotonic()
            self._counters.prefill_tokens += stream.prompt_rows
            index = words = 0
            try:
                while not stream.done:
                    result = await self._thread.run(lambda: stream.step(abort), abort)
                    self._counters.decode_steps += 1
                    if result is None:
                        continue
                    timing["decode"], begun = _since(begun), time.monotonic()
                    answer = self._result(result, index, words, {**timing, "queued": abort.queued_ms})
                    timing.clear()
                    words += len(set(answer.word_ids.tolist()))
                    index += 1
                    yield answer
            finally:
                stream.close()

    def _check_format(self, request: GenerateRequest) -> None:
        """Refuse a sequence of segments the format has no place for, before any of them is listened to."""
        if (request.conversation_format or self._model.default_format) != "completion":
            return
        try:
            completion_mode((segment.role, segment.modality) for segment in request.segments)
        except InvalidInputError as error:
            raise InvalidInputError("segments", error.description) from None

    def _open(self, request: GenerateRequest, segments: list[TASTESegment], abort: CallAbort) -> GenerationStream:
        loaded = self._model
        chosen = request.conversation_format or loaded.default_format
        if chosen not in loaded.info.conversation_formats:
            raise InvalidInputError(
                "conversation_format", f"{chosen!r} is not one of {', '.join(loaded.info.conversation_formats)}"
            )
        options = GenerateOptions(
            text_top_p=request.text_top_p,
            taste_top_p=request.taste_top_p,
            text_temperature=request.text_temperature,
            repetition_penalty=request.repetition_penalty,
            max_length=request.max_length,
            eos_id=request.eos_id,
            should_emit_segment=_emit_rule(request.emit),
            extra_words=request.extra_words,
            seed=request.seed,
            conversation_format="conversation" if chosen == "conversation" else "completion",
        )
        stream = GenerationStream(loaded.model, loaded.processor, segments, options)
        stream.start(abort)
        return stream

    def _result(self, result: StreamingResult, index: int, words: int, timing: dict[str, float]) -> GenerateResult:
        ids: list[int] = []
        codes = torch.zeros(0, self._model.info.vq_dim, dtype=torch.long)
        if result.segment is not None and result.segment.taste_ids is not None:
            ids, codes = result.segment.text_ids[0].tolist(), result.segment.taste_ids[0]
        # a word begins at each row with codes, and at the first row of a result whatever it holds
        starts = codes[:, 0].numpy() != -1
        starts[:1] = True
        word_ids = words - 1 + np.cumsum(starts)
        return GenerateResult(
            is_complete=result.is_complete,
            completion_reason=result.completion_reason,
            text=self._model.processor.text_tokenizer.decode(ids),
            text_ids=np.asarray(ids, np.int64),
            word_ids=word_ids,
            taste_ids=codes.numpy(),
            index=index,
            words=self._hearing.written_words(ids, word_ids.tolist()),
            timing_ms=timing,
        )

    async def detokenize(
        self, config: DetokenizeConfig, segments: AsyncIterator[SegmentInput]
    ) -> AsyncGenerator[DetokenizeChunk]:
        """Speak segments as they arrive; one chunk per segment."""
        async with self._call("detokenize") as abort:
            voice = config.speaker_embedding
            if voice is None and config.reference is not None:
                voice = await self._hearing.voice(await self._hearing.at_model_rate(config.reference, abort), abort)
            utterance = await self._thread.run(partial(Utterance, self._model, config, voice), abort)
            while (given := await self._next(segments, abort)) is not None:
                begun = time.monotonic()
                segment = await self._hearing.segment(given, "segment", abort)
                chunk = await self._thread.run(partial(utterance.say, given, segment, abort), abort)
                self._counters.speech_units += len(chunk.speech_ids)
                yield replace(chunk, timing_ms={"speech": _since(begun), "queued": abort.queued_ms})

    async def _next(self, segments: AsyncIterator[SegmentInput], abort: CallAbort) -> SegmentInput | None:
        """The caller's next segment, None at the end. Raises CallAbortedError when the call is cut while it waits."""
        waiting = asyncio.timeout(None)
        try:
            async with waiting:
                self._running[abort] = waiting
                return await anext(segments, None)
        except TimeoutError:
            abort()
            raise
        finally:
            self._running[abort] = None

    # --- the engine itself --------------------------------------------------------------------------

    def stats(self) -> EngineStats:
        """Counters since the start."""
        counters = self._counters
        return EngineStats(
            active_calls=counters.active,
            waiting_calls=sum(door.waiting for door in self._doors.values()),
            completed_calls=counters.completed,
            cancelled_calls=counters.cancelled,
            failed_calls=counters.failed,
            decode_steps=counters.decode_steps,
            prefill_tokens=counters.prefill_tokens,
            speech_units=counters.speech_units,
            extra={
                "abort_checks": counters.abort_checks + sum(abort.checks for abort in self._running),
                "refused_calls": sum(door.refused for door in self._doors.values()),
                **(self._ready.work if self._ready else {}),
            },
        )

    async def drain(self, grace_s: float) -> None:
        """Refuse new calls and those that wait, let running ones finish within `grace_s` seconds, abort them and stop.

        Calls that are aborted end in UnavailableError. A second drain may shorten the grace of the first.
        """
        self._draining = True
        for door in self._doors.values():
            door.close()
        try:
            async with asyncio.timeout(grace_s):
                await self._idle.wait()
        except TimeoutError:
            self._cut_off()
        for thread in (self._thread, self._asr_thread):
            await asyncio.to_thread(thread.close)

    def _cut_off(self) -> None:
        self._cut = True
        for abort, waiting in self._running.items():
            abort.set()
            if waiting is not None and not waiting.expired():
                waiting.reschedule(asyncio.get_running_loop().time())


def _emit_rule(policy: EmitPolicy) -> ShouldEmitSegment:
    def at_word(_text_id: int, _action: str, status: EmitStatus) -> bool:
        if policy.at_sentence_end:
            return status.word.rstrip().endswith((".", "!", "?"))
        return status.pending_words >= policy.every_words

    return at_word


def _since(started: float) -> float:
    return 1000.0 * (time.monotonic() - started)
