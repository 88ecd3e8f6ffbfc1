"""Speech to be measured: a model of random weights, and an utterance in chunks of equal length."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from taste_grpc import TasteForCausalLM, TasteProcessor
from taste_grpc.audio import resample
from taste_grpc.model.embedded.checkpoint_sizes import SpeechSizes
from taste_grpc.model.speech_decoder.inputs import SpokenWords, decoder_inputs
from taste_grpc.model.speech_decoder.unit_sampler import UnitChoice, UnitSampler, choose_units
from taste_grpc.model.voice_generator.generator import VoiceGenerator
from taste_grpc.streaming.drive import run_alone
from taste_grpc.streaming.speech_stream import SpeechState, SpeechStream, Voice

CHUNK_UNITS = 150  # three seconds
SEED = 7
OUT_HZ = 16_000
WORDS = (" good", " morning", " little", " robot", " what", " shall", " we", " do", " today")  # one token each

# The published estimator has four blocks a stage, these have one: twice the width is the same work.
# The first has fewer layers as well: 2 of 7 of the unit decoder, 4 of 14 stages of the flow.
SMALL = SpeechSizes(
    tower_width=64,
    text_width=64,
    decoder_width=128,
    decoder_layers=2,
    units=1024,
    flow_width=64,
    estimator_channels=64,
    estimator_mid_stages=2,
    vocoder_channels=32,
    f0_channels=64,
)
QUARTER = SpeechSizes(
    tower_width=64,
    text_width=128,
    decoder_width=256,
    decoder_layers=7,
    units=1024,
    flow_width=128,
    estimator_channels=128,
    estimator_mid_stages=12,
    vocoder_channels=128,
    f0_channels=128,
)
PUBLISHED = SpeechSizes(
    tower_width=64,
    text_width=512,
    decoder_width=1024,
    decoder_heads=8,
    decoder_layers=7,
    units=4096,
    flow_width=512,
    estimator_channels=512,
    estimator_mid_stages=12,
    vocoder_channels=512,
    f0_channels=512,
)


@dataclass(frozen=True)
class Subject:
    """What speaks."""

    model: TasteForCausalLM
    processor: TasteProcessor
    generator: VoiceGenerator
    speaker: Tensor

    @classmethod
    def load(cls, directory: str, device: str) -> Subject:
        """From a checkpoint, in float32."""
        model = TasteForCausalLM.from_pretrained(directory, device=device, dtype="float32", show_progress=False)
        processor = TasteProcessor.from_pretrained(directory)
        speaker = torch.randn(1, 192, generator=torch.Generator().manual_seed(0)).to(model.device)
        return cls(model, processor, processor.get_generator(model.device), speaker)

    def words(self, index: int) -> SpokenWords:
        """Chunk `index`: the same words in another order, so that all chunks have as many tokens, and codes."""
        turned = [WORDS[(index + place) % len(WORDS)] for place in range(len(WORDS))]
        codes = np.random.default_rng(index).integers(0, 32, (len(turned), self.model.vq_dim)).tolist()
        return SpokenWords.of(turned, codes, self.processor.audio_tokenizer)

    def stream(self, state: SpeechState | None = None) -> SpeechStream:
        """A new utterance, or one that goes on from `state`."""
        state = state or SpeechState.empty(self.generator.config.flow.mel_bins)
        voice = Voice(self.speaker, SEED, OUT_HZ)
        return SpeechStream(self.model, self.generator, voice, state, chunk_units=CHUNK_UNITS)


@dataclass
class Streamed:
    """One utterance in chunks: for each chunk the state before it, its units and counters; samples of the audio."""

    states: list[SpeechState]
    units: list[list[int]]
    counters: list[dict[str, int]]
    samples: int

    def units_before(self, index: int) -> list[int]:
        """Those of all chunks before chunk `index`."""
        return [unit for chunk in self.units[:index] for unit in chunk]


def streamed(subject: Subject, chunks: int, *, keep_states: bool = False) -> Streamed:
    """Speak `chunks` chunks, one after the other, and the end."""
    stream, result, before = subject.stream(), Streamed([], [], [], 0), {}
    for index in range(chunks):
        if keep_states:
            result.states.append(stream.snapshot())
        piece = run_alone(subject.model, stream.speak(subject.words(index)))
        counted = asdict(stream.counters)
        result.counters.append({name: count - before.get(name, 0) for name, count in counted.items()})
        before = counted
        result.units.append(list(piece.units))
        result.samples += len(piece.audio.samples)
    result.samples += len(run_alone(subject.model, stream.finish()).audio.samples)
    return result


def spoken_again(subject: Subject, index: int, utterance: Streamed) -> float:
    """Seconds for chunk `index`, from the state that the stream had before it. Raises SystemExit when it differs."""
    stream, words = subject.stream(copy.deepcopy(utterance.states[index])), subject.words(index)
    started = time.perf_counter()
    piece = run_alone(subject.model, stream.speak(words))
    seconds = time.perf_counter() - started
    if list(piece.units) != utterance.units[index] or not len(piece.audio.samples):
        raise SystemExit(f"chunk {index + 1} is another one when it is spoken again")
    return seconds


def operations(subject: Subject, index: int, utterance: Streamed) -> int:
    """Floating point operations of chunk `index`, as torch counts them."""
    with FlopCounterMode(display=False) as counter:
        spoken_again(subject, index, utterance)
    return counter.get_total_flops()


def resynthesised(subject: Subject, index: int, before: Sequence[int]) -> float:
    """Seconds for chunk `index` when all words and the units `before` it are read, and all audio is made, again."""
    started = time.perf_counter()
    words = sum((subject.words(earlier) for earlier in range(1, index + 1)), subject.words(0))
    units = [*before, *next_units(subject, words, before)]
    synthesised(subject, units)
    return time.perf_counter() - started


def synthesised(subject: Subject, units: Sequence[int]) -> np.ndarray:
    """The audio `[samples]` of units, made in one go."""
    generator = subject.generator
    waveform, rate_hz = generator.inference(torch.tensor([list(units)]), flow_embedding=subject.speaker, seed=SEED)
    return resample(waveform[0].float().cpu().numpy(), rate_hz, OUT_HZ)


def next_units(subject: Subject, words: SpokenWords, units: Sequence[int]) -> list[int]:
    """As many units as a chunk has, after all words and units so far; keys and values are kept within the chunk."""
    model, decoder, sampler = subject.model, subject.model.speech_decoder, UnitSampler(seed=SEED)
    inputs = decoder_inputs(words, model.audio_tower.rvq.output_from_indices, model.device)
    prompt, _ = decoder.build_prompt(
        subject.speaker,
        inputs.audio_unit_embeds,
        inputs.audio_unit_lengths,
        inputs.asr_token_ids,
        inputs.asr_token_lengths,
    )
    rows = torch.cat([prompt[0], decoder.embed_units(units)])
    cache = decoder.new_cache(1, len(rows) + CHUNK_UNITS)
    log_probs = decoder.prefill(rows[None], [len(rows)], cache, [0])
    fresh: list[int] = []
    while True:
        choice = UnitChoice(sampler, len(units) + len(fresh), rejected=decoder.end_of_speech)
        fresh += choose_units(log_probs, [choice])
        if len(fresh) == CHUNK_UNITS:
            return fresh
        log_probs = decoder.step(torch.tensor(fresh[-1:], device=model.device), cache, [0])
