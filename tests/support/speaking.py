"""Streams of speech over a machine that several of them share, in one thread."""

from __future__ import annotations

import copy
import json
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch

from taste_grpc.audio import resample
from taste_grpc.engine.loading import LoadedModel
from taste_grpc.engine.machine import MachineSettings, SharedMachine
from taste_grpc.engine.resume import ResumeState
from taste_grpc.model.layers.shapes import PieceSize
from taste_grpc.model.speech_decoder.inputs import SpokenWords
from taste_grpc.model.voice_generator.generator import VoiceGenerator
from taste_grpc.streaming.speech_stream import SpeechPiece, SpeechState, SpeechStream, Voice
from taste_grpc.streaming.work import TextSlot, UnitSlot, UnitStep, Want, Work
from tests.checkpoints import TINY
from tests.conftest import Loaded

T = TypeVar("T")

SPEAKER = torch.randn(1, 192, generator=torch.Generator().manual_seed(1))
CHUNKS = ([" good", " morning", ","], [" you"], [" little", " robot", " of", " mine"], [" sleep", " well", "."])
NATIVE_HZ = 22_050
SAMPLES_PER_FRAME = 256


@dataclass
class Speech:
    """Streams of one model, and the machine that steps them."""

    loaded: Loaded
    generator: VoiceGenerator
    machine: SharedMachine

    def stream(self, state: SpeechState | None = None, **options: Any) -> SpeechStream:
        voice = Voice(SPEAKER, options.pop("seed", 7), options.pop("sample_rate_hz", 16_000))
        state = state or SpeechState.empty(self.generator.config.flow.mel_bins)
        return SpeechStream(self.loaded.model, self.generator, voice, state, **options)

    def words(self, texts: Sequence[str], first: int = 0) -> SpokenWords:
        rows = [[(7 * first + 3 * index + q) % 32 for q in range(4)] for index in range(len(texts))]
        return SpokenWords.of(texts, rows, self.loaded.processor.audio_tokenizer)

    def chunks(self) -> list[SpokenWords]:
        return [self.words(texts, index) for index, texts in enumerate(CHUNKS)]

    def run(self, work: Work[SpeechPiece]) -> SpeechPiece:
        return self.together([work])[0]

    def together(self, works: Sequence[Work[Any]]) -> list[Any]:
        """What `works` end with, in rounds: all that wait for a unit step take it together."""
        results: list[Any] = [None] * len(works)
        waiting: dict[int, Want | None] = dict.fromkeys(range(len(works)))
        while waiting:
            steps = {index: want for index, want in waiting.items() if isinstance(want, UnitStep)}
            units = dict(zip(steps, self.machine.unit_steps(list(steps.values())) if steps else [], strict=True))
            for index, want in list(waiting.items()):
                answer = self.machine.slot(want) if isinstance(want, TextSlot | UnitSlot) else units.get(index)
                try:
                    waiting[index] = works[index].send(answer)
                except StopIteration as stopped:
                    results[index] = stopped.value
                    del waiting[index]
        return results

    def samples(self, units: int, rate_hz: int = 16_000) -> int:
        """Samples of so many units made in one go."""
        frames = self.generator.config.flow.frames(units)
        return len(resample(np.zeros(frames * SAMPLES_PER_FRAME, np.float32), NATIVE_HZ, rate_hz))


def machine(tiny: Loaded, *, deterministic: bool) -> SharedMachine:
    """Three slots for speech, read in pieces of 32 rows."""
    loaded = LoadedModel(tiny.model, tiny.processor, None, None)  # type: ignore[arg-type]
    settings = MachineSettings(
        text_slots=1,
        unit_slots=3,
        text_positions=64,
        cache_bytes=1 << 26,
        deterministic=deterministic,
        piece=PieceSize(32),
    )
    return SharedMachine(loaded, settings)


def answer(machine: SharedMachine, want: Want) -> Any:
    if isinstance(want, UnitStep):
        return machine.unit_steps([want])[0]
    return machine.slot(want) if isinstance(want, UnitSlot) else None


def packed(stream: SpeechStream) -> bytes:
    return ResumeState.of(stream.state, stream.voice, "this model").pack()


def unpacked(data: bytes) -> SpeechState:
    return ResumeState.unpack(data, "this model").speech()


def result(pieces: Generator[Any, None, T]) -> T:
    """What a computation in pieces ends with."""
    while True:
        try:
            next(pieces)
        except StopIteration as stopped:
            value: T = stopped.value
            return value


def with_one_step(generator: VoiceGenerator) -> VoiceGenerator:
    """A voice generator that shares the weights of another and takes one Euler step instead of ten."""
    quick = copy.copy(generator)
    quick._modules = dict(generator._modules)
    flow = copy.copy(generator.flow)
    flow.config = replace(flow.config, steps=1)
    quick._modules["flow"] = flow
    return quick


def golden_tolerance(stage: str) -> tuple[float, float]:
    """How far the waveforms of a stage may be from the recorded ones: greatest difference, least ratio to it in dB."""
    tensors = json.loads((TINY / "goldens" / "index.json").read_text(encoding="utf-8"))["tensors"]
    outputs = [tensor for tensor in tensors if tensor.get("stage") == stage]
    return min(tensor["atol"] for tensor in outputs), max(tensor.get("min_snr_db", 0.0) for tensor in outputs)
