"""Speech that grows word by word, at a cost that does not depend on what was spoken before.

The speech decoder reads [start, speaker, all words, task, units], so new words change what stands before the units and
nothing of it can be kept between chunks. Each chunk is therefore decoded after a bounded window of whole chunks
before it, words and units both: at the borders of chunks, and only there, the two are aligned.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from taste_grpc.audio import StreamResampler, Waveform
from taste_grpc.audio.resample import ResamplerState
from taste_grpc.errors import InvalidInputError
from taste_grpc.model.abort import AbortCheck, never_abort
from taste_grpc.model.layers.rel_pos_cache import RelPosCache
from taste_grpc.model.speech_decoder.decoder import length_rule
from taste_grpc.model.speech_decoder.inputs import SpokenWords, decoder_inputs
from taste_grpc.model.speech_decoder.prompt_building import FIXED_ROWS, PromptBuilding
from taste_grpc.model.speech_decoder.unit_reading import UnitReading
from taste_grpc.model.speech_decoder.unit_sampler import UnitChoice, UnitSampler, choose_units
from taste_grpc.model.taste import TasteForCausalLM
from taste_grpc.model.voice_generator.generator import VoiceGenerator
from taste_grpc.model.voice_generator.mel_stream import MelState, MelWindowing, extend_mel, finish_mel
from taste_grpc.model.voice_generator.wave_stream import WaveState, extend_wave
from taste_grpc.streaming.work import Slot, Turn, UnitSlot, UnitStep, Work, in_turns

MAX_CHUNK_TOKENS = 256
"""Tokens of the speech decoder's tokenizer that one chunk may have."""

_MAX_WINDOW_CHUNKS = 8
_MAX_WINDOW_TOKENS = 512
_MAX_CHUNK_UNITS = 3000  # a minute; a chunk is a phrase, so this only bounds what nonsense costs
_TURN_ROWS = 256  # of a layer of the word encoders; short prompts go through several layers in one turn


@dataclass(frozen=True)
class SpokenChunk:
    """Words and the units they became."""

    words: SpokenWords
    units: tuple[int, ...]


@dataclass
class SpeechState:
    """Where an utterance stands: all that going on needs, bounded whatever was spoken.

    Attributes:
        unit_count: speech units so far.
        window: the last whole chunks.
        mel: of the flow.
        wave: of the vocoder.
        resampler: of the output rate.
    """

    unit_count: int
    window: tuple[SpokenChunk, ...]
    mel: MelState
    wave: WaveState
    resampler: ResamplerState

    @classmethod
    def empty(cls, mel_bins: int) -> SpeechState:
        """The start of an utterance."""
        return cls(0, (), MelState.empty(mel_bins), WaveState.empty(mel_bins), ResamplerState.empty())


@dataclass
class SpeechCounters:
    """What the networks had to do.

    Attributes:
        word_rows: tokens that entered the encoders of words.
        decoder_rows: rows that entered the unit decoder.
        flow_frames: mel frames that entered the velocity network, each counted once per Euler step.
        vocoder_frames: mel frames that entered the vocoder.
        network_calls: forward passes of all of them, and of the encoder of units.
    """

    word_rows: int = 0
    decoder_rows: int = 0
    flow_frames: int = 0
    vocoder_frames: int = 0
    network_calls: int = 0


@dataclass(frozen=True)
class SpeechPiece:
    """New audio: float32 mono in [-1, 1] from sample `first_sample` of the utterance on, and the new units."""

    audio: Waveform
    first_sample: int
    units: tuple[int, ...]


@dataclass(frozen=True)
class Voice:
    """How an utterance sounds.

    Attributes:
        speaker: embedding `[1, speaker_size]`.
        seed: of everything random.
        sample_rate_hz: of the audio.
    """

    speaker: Tensor
    seed: int
    sample_rate_hz: int


@dataclass
class SpeechStream:
    """One utterance. Its methods are work in pieces (`taste_grpc.streaming.work`); one at a time.

    The same words in the same chunks give the same audio, whether the utterance is spoken in one go or goes on from a
    `snapshot`, in another process too.

    Attributes:
        model: the model.
        generator: its voice generator.
        voice: how it sounds.
        state: where it stands.
        window_units: the window before a chunk begins with the chunk at which it has so many units.
        windowing: how windows of the flow overlap.
        abort: called between layers and steps; raises to stop.
        chunk_units: units of every chunk, for measurements and comparisons; None leaves the end of speech to the model.
        counters: what has been computed so far.
    """

    model: TasteForCausalLM
    generator: VoiceGenerator
    voice: Voice
    state: SpeechState
    window_units: int = 100
    windowing: MelWindowing = field(default_factory=MelWindowing)
    abort: AbortCheck = never_abort
    chunk_units: int | None = None
    counters: SpeechCounters = field(default_factory=SpeechCounters)

    def snapshot(self) -> SpeechState:
        """A copy of the state that later work leaves alone."""
        return copy.deepcopy(self.state)

    def speak(self, words: SpokenWords, ahead: SpokenWords | None = None) -> Work[SpeechPiece]:
        """Speak one chunk of at least one word. Some of its audio waits for the next chunk, or for `finish`.

        `ahead` are words that follow, which the decoder is shown but which are not spoken yet.

        Raises InvalidInputError when there is nothing to speak, or more than `MAX_CHUNK_TOKENS`.
        """
        tokens = len(words.tokens.ids)
        if not tokens:
            raise InvalidInputError("text_ids", "there is no word to speak")
        if tokens > MAX_CHUNK_TOKENS:
            raise InvalidInputError(
                "text_ids", f"make a chunk of {tokens} tokens of speech; at most {MAX_CHUNK_TOKENS} are spoken at once"
            )
        units = yield from self._decode(words, ahead)
        self.state.unit_count += len(units)
        self._remember(SpokenChunk(words, units))
        mel = torch.zeros(1, self.generator.config.flow.mel_bins, 0)
        if units:
            yield Turn()  # what follows is no part of a step
            mel = yield from self._extend_mel(list(units))
        wave = yield from self._extend_wave(mel, last=False)
        return self._piece(wave, units, last=False)

    def finish(self) -> Work[SpeechPiece]:
        """The audio still held back. The utterance may go on after it, with a join that is not exact."""
        wave = yield from self._extend_wave(finish_mel(self.state.mel), last=True)
        return self._piece(wave, (), last=True)

    def _remember(self, chunk: SpokenChunk) -> None:
        """Make `chunk` the last of the window, and the window no larger than it has to be."""
        window, units, tokens = [chunk], len(chunk.units), len(chunk.words.tokens.ids)
        for earlier in reversed(self.state.window):
            tokens += len(earlier.words.tokens.ids)
            if units >= self.window_units or len(window) == _MAX_WINDOW_CHUNKS or tokens > _MAX_WINDOW_TOKENS:
                break
            window.insert(0, earlier)
            units += len(earlier.units)
        while window and not _leaves_room(window):
            window.pop(0)
        self.state.window = tuple(window)

    def _decode(self, words: SpokenWords, ahead: SpokenWords | None) -> Work[tuple[int, ...]]:
        before = self.state.window
        shown = sum((chunk.words for chunk in before[1:]), before[0].words) + words if before else words
        if ahead is not None and ahead.tokens.ids:
            shown = shown + ahead
        prompt = yield from self._prompt(shown)
        previous = [unit for chunk in before for unit in chunk.units]
        units = yield from self._run_units(prompt, previous)
        if ahead is None or not ahead.tokens.ids:
            return tuple(units)
        share = len(words.tokens.ids) / (len(words.tokens.ids) + len(ahead.tokens.ids))
        return tuple(units[: max(1, round(share * len(units)))])

    def _prompt(self, words: SpokenWords) -> Work[Tensor]:
        """Rows `[L, prompt_width]` that the unit decoder starts from."""
        model = self.model
        inputs = decoder_inputs(words, model.audio_tower.rvq.output_from_indices, model.device)
        building = PromptBuilding(
            model.speech_decoder,
            self.voice.speaker.to(model.device),
            inputs.audio_unit_embeds,
            inputs.audio_unit_lengths,
            inputs.asr_token_ids,
            inputs.asr_token_lengths,
        )
        tokens = len(words.tokens.ids)
        while not building.advance(max(1, _TURN_ROWS // tokens), self.abort):
            yield Turn()
        self._count(word_rows=tokens, calls=2)
        yield Turn()
        return building.prompt[0][0]

    def _run_units(self, prompt: Tensor, previous: Sequence[int]) -> Work[list[int]]:
        """Units after `previous`, until end of speech or the greatest length."""
        decoder, sampler = self.model.speech_decoder, UnitSampler(seed=self.voice.seed)
        least, most = self._bounds(len(prompt), len(previous))
        units: list[int] = []
        if len(previous) >= most:
            return units

        def choice() -> UnitChoice:
            rejected = decoder.end_of_speech if len(previous) + len(units) < least else None
            return UnitChoice(sampler, self.state.unit_count + len(units), rejected)

        rows = torch.cat([prompt, decoder.embed_units(previous)])
        slot = yield UnitSlot(max(len(rows) + 1, len(prompt) + least), len(prompt) + most)
        try:
            most = min(most, slot.positions - len(prompt))
            log_probs = yield from self._read(rows, slot)
            unit = choose_units(log_probs, [choice()])[0]
            while unit != decoder.end_of_speech:
                units.append(unit)
                if len(previous) + len(units) >= most:
                    break
                self._count(decoder_rows=1)
                unit = yield UnitStep(slot, unit, choice())
        finally:
            slot.release()
        return units

    def _bounds(self, prompt_rows: int, previous: int) -> tuple[int, int]:
        """Least and greatest number of units, the previous ones among them."""
        if self.chunk_units is not None:
            return previous + self.chunk_units, previous + self.chunk_units
        least, most = length_rule(prompt_rows)
        return least, min(most, previous + _MAX_CHUNK_UNITS)

    def _read(self, rows: Tensor, slot: Slot[RelPosCache]) -> Work[Tensor]:
        """Log-probabilities `[1, units + 1]` of the unit after `rows`."""
        slot.cache.reset(slot.index)
        reading, done = UnitReading(self.model.speech_decoder, rows, slot.cache, slot.index, slot.piece), False
        while not done:
            before = slot.cache.lengths[slot.index]
            done = reading.advance(self.abort)
            read = slot.cache.lengths[slot.index] - before
            if read:  # else some layers of a piece
                self._count(decoder_rows=read)
            yield Turn()
        return reading.log_probs

    def _extend_mel(self, units: list[int]) -> Work[Tensor]:
        voice = self.voice
        steps = extend_mel(
            self.generator.flow, self.state.mel, units, voice.speaker, voice.seed, self.windowing, self.abort
        )
        return (yield from in_turns(steps, lambda frames: self._count(flow_frames=frames)))

    def _extend_wave(self, mel: Tensor, *, last: bool) -> Work[Tensor]:
        pieces = extend_wave(self.generator.hift, self.state.wave, mel, self.voice.seed, last=last, abort=self.abort)
        return (yield from in_turns(pieces, lambda frames: self._count(vocoder_frames=frames)))

    def _piece(self, wave: Tensor, units: tuple[int, ...], *, last: bool) -> SpeechPiece:
        rate = self.voice.sample_rate_hz
        resampler = StreamResampler(self.generator.sampling_rate_hz, rate, self.state.resampler)
        first = resampler.state.emitted
        samples = resampler.push(wave.cpu().numpy())
        if last:
            samples = np.concatenate([samples, resampler.finish()])
        self.state.resampler = resampler.state
        # the resampler's filter may overshoot
        return SpeechPiece(Waveform(np.clip(samples, -1.0, 1.0), rate), first, units)

    def _count(
        self,
        *,
        word_rows: int = 0,
        decoder_rows: int = 0,
        flow_frames: int = 0,
        vocoder_frames: int = 0,
        calls: int = 1,
    ) -> None:
        counters = self.counters
        counters.network_calls += calls
        counters.word_rows += word_rows
        counters.decoder_rows += decoder_rows
        counters.flow_frames += flow_frames
        counters.vocoder_frames += vocoder_frames


def _leaves_room(window: Sequence[SpokenChunk]) -> bool:
    """Whether words after `window` could be spoken by the length rule, which counts the units of the window."""
    tokens = sum(len(chunk.words.tokens.ids) for chunk in window)
    return sum(len(chunk.units) for chunk in window) <= length_rule(tokens + FIXED_ROWS)[1]
