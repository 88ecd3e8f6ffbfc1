"""Replies by Voxtral, a language model that hears."""

from __future__ import annotations

import asyncio
import base64
import threading
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from taste_grpc.audio import Waveform, encode_wav
from taste_grpc.audio.waveform import Float32Array
from taste_grpc.dialogue.chunked_reply import ChunkedReplyModel
from taste_grpc.dialogue.reply import ReplyMode
from taste_grpc.dialogue.silence import MakeDetector
from taste_grpc.errors import CallAbortedError, CheckpointError, NotInitialisedError, UnsupportedByModelError
from taste_grpc.settings import ChunkedResponseSettings
from taste_grpc.speech import RECOGNISER_SAMPLE_RATE_HZ

if TYPE_CHECKING:
    import torch
    from transformers import AsyncTextIteratorStreamer


class VoxtralModel(ChunkedReplyModel):
    """transformers' Voxtral, which understands speech without a recogniser.

    Answers one question at a time, in the order they came, each on a thread of its own.

    Args:
        model: directory or hub id of a checkpoint, which `initialize` loads; or a VoxtralForConditionalGeneration,
            with its `processor`, which can be asked at once.
        processor: a VoxtralProcessor; that of the checkpoint when None.
        device: `auto` takes CUDA when there is one; a model that is given stays where it is.
        dtype: `auto` is bfloat16 on CUDA and float32 on the CPU; a model that is given keeps its own.
        settings: of requests that do not say otherwise.
        make_detector: makes the voice-activity detector that looks for speech.
    """

    def __init__(
        self,
        model: Any,
        processor: Any = None,
        *,
        device: str | int = "auto",
        dtype: str | torch.dtype = "auto",
        settings: ChunkedResponseSettings | None = None,
        make_detector: MakeDetector | None = None,
    ) -> None:
        super().__init__(settings, make_detector)
        is_loaded = not isinstance(model, str | Path)
        if is_loaded and processor is None:
            raise ValueError("processor: a model that is loaded needs its processor")
        self._source = type(model).__name__ if is_loaded else str(model)
        self._device, self._dtype, self._processor = device, dtype, processor
        self._loaded = _Loaded(model, processor, self._source) if is_loaded else None
        self._turn = asyncio.Lock()
        self._running: set[_Generation] = set()

    @property
    def name(self) -> str:
        """Where the model comes from."""
        return f"Voxtral {self._source}"

    @property
    def is_initialised(self) -> bool:
        """Whether it is loaded."""
        return self._loaded is not None

    async def initialize(self) -> None:
        """Load the checkpoint, on a thread. Does nothing when it is loaded.

        Raises:
            CheckpointError: it cannot be loaded.
            UnsupportedByModelError: a package it needs is not installed.
            InvalidInputError: there is no such device or dtype.
        """
        await self._prepare_detector()
        async with self._turn:
            if self._loaded is None:
                self._loaded = await asyncio.to_thread(_load, self._source, self._processor, self._device, self._dtype)

    async def aclose(self) -> None:
        """Stop the answers that are being given, and let go of the model."""
        self._loaded = None
        for generation in list(self._running):
            generation.stop()
            await generation.ended()

    async def _answer(
        self, samples: Float32Array, mode: ReplyMode, settings: ChunkedResponseSettings
    ) -> AsyncGenerator[str]:
        await self._turn.acquire()
        try:
            generation = self._begin(samples, mode, settings)
        except BaseException:
            self._turn.release()
            raise
        try:
            async for piece in generation.streamer:
                yield piece
        finally:
            generation.stop()
            await generation.ended()
        generation.check()

    def _begin(self, samples: Float32Array, mode: ReplyMode, settings: ChunkedResponseSettings) -> _Generation:
        """An answer on its thread, whose end lets the next one begin."""
        loaded = self._loaded
        if loaded is None:
            raise NotInitialisedError(f"{self.name} was closed")
        generation = _Generation(loaded, lambda: loaded.prompt(samples, mode, settings), _sampling(settings))

        def end_turn() -> None:
            self._running.discard(generation)
            self._turn.release()

        # At the thread's end rather than that of `_answer`, which may be torn down without waiting for it.
        generation.begin(end_turn)
        self._running.add(generation)
        return generation


@dataclass(frozen=True)
class _Loaded:
    """A model with its processor."""

    model: Any
    processor: Any
    name: str

    def prompt(self, samples: Float32Array, mode: ReplyMode, settings: ChunkedResponseSettings) -> Any:
        """The model's inputs. Takes some 0.1 s: not to be called on the event loop."""
        if mode == "transcription":
            inputs = self.processor.apply_transcription_request(
                audio=[samples], model_id=self.name, sampling_rate=RECOGNISER_SAMPLE_RATE_HZ, format=["WAV"]
            )
        else:
            wav = encode_wav(Waveform(samples, RECOGNISER_SAMPLE_RATE_HZ))
            content = [{"type": "audio", "base64": base64.b64encode(wav).decode()}]
            if settings.system_prompt:
                # The tokenizers of most checkpoints have no place for a system message beside audio.
                content.append({"type": "text", "text": settings.system_prompt})
            inputs = self.processor.apply_chat_template([{"role": "user", "content": content}])
        return inputs.to(self.model.device, dtype=self.model.dtype)


class _Generation:
    """One answer, on a thread of its own, which is read on the event loop."""

    def __init__(self, loaded: _Loaded, prompt: Callable[[], Any], sampling: dict[str, Any]) -> None:
        from transformers import AsyncTextIteratorStreamer

        self._model, self._prompt, self._sampling = loaded.model, prompt, sampling
        # Has no limit but `max_new_tokens`, so that a reader who stops reading does not hold up those who wait in line.
        self.streamer: AsyncTextIteratorStreamer = AsyncTextIteratorStreamer(
            loaded.processor.tokenizer, skip_prompt=True, skip_special_tokens=True
        )
        self._stopped = threading.Event()
        self._error: Exception | None = None
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[None] = self._loop.create_future()

    def begin(self, when_ended: Callable[[], None]) -> None:
        """Start the thread; `when_ended` is called on the event loop."""
        self._when_ended = when_ended
        self._thread = threading.Thread(target=self._run, name="voxtral", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End it at the next layer or step."""
        self._stopped.set()

    async def ended(self) -> None:
        """Return once the thread has ended."""
        await asyncio.shield(self._ended)

    def check(self) -> None:
        """Raises what the model raised, CallAbortedError when it was stopped."""
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            self._generate()
        except Exception as error:
            self._error = error
        self.streamer.on_finalized_text("", stream_end=True)
        self._loop.call_soon_threadsafe(self._finish)

    def _finish(self) -> None:
        self._thread.join()  # it has nothing left to do
        self._ended.set_result(None)
        self._when_ended()

    def _generate(self) -> None:
        from transformers import StoppingCriteriaList

        def go_on(*_: object) -> bool:
            self._check_not_stopped()
            return False

        with _before_each_layer(self._model, self._check_not_stopped):
            self._check_not_stopped()
            self._model.generate(
                **self._prompt(),
                **self._sampling,
                streamer=self.streamer,
                stopping_criteria=StoppingCriteriaList([go_on]),
            )

    def _check_not_stopped(self) -> None:
        if self._stopped.is_set():
            raise CallAbortedError("the model was closed while it answered")


@contextmanager
def _before_each_layer(model: Any, check: Callable[[], None]) -> Iterator[None]:
    """Calls `check` before each layer of `model`: a prefill of 30 s of speech is one step, and a long one."""
    from torch import nn

    layers = [layer for module in model.modules() if isinstance(module, nn.ModuleList) for layer in module]
    with ExitStack() as hooks:
        for layer in layers:
            hooks.callback(layer.register_forward_pre_hook(lambda *_: check()).remove)
        yield


def _sampling(settings: ChunkedResponseSettings) -> dict[str, Any]:
    """Arguments of `generate`."""
    length = {"max_new_tokens": settings.max_new_tokens, "num_beams": 1}
    if settings.temperature == 0:
        return {**length, "do_sample": False}
    # The nucleus alone decides: without it transformers looks at the fifty likeliest tokens only.
    return {**length, "do_sample": True, "temperature": settings.temperature, "top_p": settings.top_p, "top_k": 0}


def _load(source: str, processor: Any, device: str | int, dtype: str | torch.dtype) -> _Loaded:
    if find_spec("mistral_common") is None:
        raise UnsupportedByModelError("Voxtral's tokenizer needs mistral-common: pip install 'taste-grpc[voxtral]'")
    from transformers import VoxtralForConditionalGeneration, VoxtralProcessor

    from taste_grpc.model.checkpoint.pretrained import resolve_device, resolve_dtype

    place = resolve_device(device)
    kind = resolve_dtype(dtype, place)
    try:
        model: Any = VoxtralForConditionalGeneration.from_pretrained(source, dtype=kind)
        processor = processor or VoxtralProcessor.from_pretrained(source)
    except Exception as error:
        raise CheckpointError(f"{source}: is no Voxtral checkpoint that can be loaded: {error}") from error
    return _Loaded(model.to(place).eval(), processor, source)
