"""From text, speech tokens and a speaker to speech units: encoders, fusion, and a causal unit decoder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from taste_grpc.errors import InvalidInputError
from taste_grpc.model.abort import AbortCheck, never_abort
from taste_grpc.model.layers.products import fill_rows, product
from taste_grpc.model.layers.rel_pos import RelPosEncoder
from taste_grpc.model.layers.rel_pos_cache import RelPosCache
from taste_grpc.model.layers.rel_pos_run import WholeRun
from taste_grpc.model.layers.shapes import FixedShape
from taste_grpc.model.layers.stepping import RowStep
from taste_grpc.model.layers.transfer import to_device
from taste_grpc.model.speech_decoder.config import SpeechDecoderConfig
from taste_grpc.model.speech_decoder.prompt_building import PADDING_VALUE, PromptBuilding, WordsEncoding
from taste_grpc.model.speech_decoder.unit_reading import UnitReading
from taste_grpc.model.speech_decoder.unit_sampler import UnitChoice, UnitSampler, choose_units

__all__ = ["PADDING_VALUE", "SpeechDecoder", "SpeechDecoderConfig", "WeightedSum", "length_rule"]

_MIN_UNITS_PER_ROW = 2
_MAX_UNITS_PER_ROW = 20


def length_rule(prompt_rows: int) -> tuple[int, int]:
    """Least and greatest number of units that answer a prompt of `prompt_rows` rows (fixed rows included)."""
    return _MIN_UNITS_PER_ROW * prompt_rows, _MAX_UNITS_PER_ROW * prompt_rows


class WeightedSum(nn.Module):
    """Two encodings added with softmax weights, audio first."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(2))

    def forward(self, audio: Tensor, text: Tensor) -> Tensor:
        """Weighted sum of two tensors of the same shape."""
        audio_weight, text_weight = self.weights.float().softmax(0).to(audio.dtype)
        out: Tensor = audio_weight * audio + text_weight * text
        return out


class SpeechDecoder(nn.Module):
    """The published speech decoder. Without state: streams live in the slots of a cache from `new_cache`.

    All methods run without gradients, on the module's device, and may be called from any one thread at a time.
    """

    def __init__(self, config: SpeechDecoderConfig) -> None:
        super().__init__()
        self.config = config
        width = config.prompt_width
        self.text_embedding = nn.Embedding(config.text_vocab_size, config.text_width)
        self.text_encoder = RelPosEncoder(config.text_encoder)
        self.text_encoder_affine_layer = nn.Linear(config.text_encoder.width, width)
        self.audio_embed_affine_layer = nn.Linear(config.audio_width, config.audio_encoder.input_size)
        self.audio_token_encoder = RelPosEncoder(config.audio_encoder)
        self.audio_token_encoder_affine_layer = nn.Linear(config.audio_encoder.width, width)
        self.fuse_encoded_audio_text_module = WeightedSum()
        self.llm_embedding = nn.Embedding(2, width)  # start of sequence, task
        self.llm = RelPosEncoder(config.llm)
        self.llm_decoder = nn.Linear(config.llm.width, config.units + 1)
        self.speech_embedding = nn.Embedding(config.units, width)
        self.spk_embed_affine_layer = nn.Linear(config.speaker_size, width)

    @property
    def end_of_speech(self) -> int:
        """Id that ends a run of units."""
        return self.config.end_of_speech

    @property
    def _dtype(self) -> torch.dtype:
        return self.llm_decoder.weight.dtype

    @torch.no_grad()
    def text_run(self, token_ids: Tensor) -> WholeRun:
        """ASR token ids `[B, L]`, ready for the text encoder; causal, so padding on the right does no harm."""
        return self.text_encoder.whole(self.text_embedding(token_ids.clamp(min=0)))

    @torch.no_grad()
    def audio_run(self, audio_unit_embeds: Tensor) -> WholeRun:
        """Audio unit embeddings `[B, L, audio_width]`, ready for their encoder; causal as well."""
        return self.audio_token_encoder.whole(self.audio_embed_affine_layer(audio_unit_embeds.to(self._dtype)))

    @torch.no_grad()
    def fuse(self, text: Tensor, audio: Tensor) -> Tensor:
        """Rows `[B, L, prompt_width]` from what the two encoders made of the same tokens."""
        fused: Tensor = self.fuse_encoded_audio_text_module(
            product(self.audio_token_encoder_affine_layer, audio), product(self.text_encoder_affine_layer, text)
        )
        return fused

    @torch.no_grad()
    def encode_speaker(self, speaker_embeds: Tensor) -> Tensor:
        """Speaker embeddings `[B, speaker_size]` -> `[B, 1, prompt_width]`; their length does not matter."""
        normed = F.normalize(speaker_embeds.float(), dim=1).to(self._dtype)
        out: Tensor = self.spk_embed_affine_layer(normed)
        return out[:, None]

    @torch.no_grad()
    def encode_words(
        self,
        audio_unit_embeds: Tensor,
        audio_unit_lengths: Tensor,
        asr_token_ids: Tensor,
        asr_token_lengths: Tensor,
        abort: AbortCheck = never_abort,
    ) -> tuple[Tensor, Tensor]:
        """Fused encoding `[B, L, prompt_width]` of text and speech tokens, and its lengths `[B]`.

        Raises InvalidInputError when the two do not have the same length or an id is out of range.
        """
        words = WordsEncoding(self, audio_unit_embeds, audio_unit_lengths, asr_token_ids, asr_token_lengths)
        while not words.advance(abort=abort):
            pass
        return words.fused, asr_token_lengths

    @torch.no_grad()
    def build_prompt(
        self,
        speaker_embeds: Tensor,
        audio_unit_embeds: Tensor,
        audio_unit_lengths: Tensor,
        asr_token_ids: Tensor,
        asr_token_lengths: Tensor,
        abort: AbortCheck = never_abort,
    ) -> tuple[Tensor, Tensor]:
        """Rows the unit decoder starts from: start, speaker, one per ASR token, task.

        Args:
            speaker_embeds: `[B, speaker_size]`.
            audio_unit_embeds: `[B, L, audio_width]`, one per ASR token (see `taste_rows`).
            audio_unit_lengths: `[B]`, the same as `asr_token_lengths`.
            asr_token_ids: `[B, L]` of the ASR tokenizer.
            asr_token_lengths: `[B]` tokens that count.
            abort: called between layers.

        Returns:
            `[B, max(lengths), prompt_width]`, padded on the right with -1, and int32 `[B]` lengths.
        """
        building = PromptBuilding(
            self, speaker_embeds, audio_unit_embeds, audio_unit_lengths, asr_token_ids, asr_token_lengths
        )
        while not building.advance(abort=abort):
            pass
        return building.prompt

    def new_cache(self, slots: int, capacity: int, *, fixed: FixedShape | None = None) -> RelPosCache:
        """Room for `slots` streams of up to `capacity` rows (prompt and units together).

        With `fixed`, the numbers of a stream are the same to the bit whatever runs beside it.
        """
        return self.llm.new_cache(slots, capacity, fixed=fixed)

    @torch.no_grad()
    def prefill(
        self,
        rows: Tensor,
        lengths: Sequence[int],
        cache: RelPosCache,
        slots: Sequence[int],
        abort: AbortCheck = never_abort,
    ) -> Tensor:
        """Append embedded rows `[B, T, prompt_width]` (the first `lengths[b]` count) to B different slots.

        Returns the log-probabilities `[B, units + 1]` of the unit after each slot's last row. May be called
        several times in a row: a long prompt in parts, or a prompt and then given units.
        """
        if cache.fixed is None:
            hidden = self.llm.prefill(rows, lengths, cache, slots, abort)
            last = torch.tensor([length - 1 for length in lengths], device=hidden.device)
            return self.log_probs(hidden[torch.arange(len(lengths), device=hidden.device), last])
        found = []
        for row, length, slot in zip(rows, lengths, slots, strict=True):
            reading = UnitReading(self, row[:length], cache, slot)
            while not reading.advance(abort):
                pass
            found.append(reading.log_probs)
        return torch.cat(found)

    @torch.no_grad()
    def step(
        self,
        units: Tensor,
        cache: RelPosCache,
        slots: Sequence[int],
        abort: AbortCheck = never_abort,
        *,
        forward: RowStep | None = None,
    ) -> Tensor:
        """Append one unit `[B]` to each of B different slots, wherever each stands.

        Returns the log-probabilities `[B, units + 1]` of the next one. One forward; each stream looks at its own rows
        only. `forward` takes the rows through the unit decoder in place of `llm.step` (see `GraphedStep`).
        """
        rows = self.speech_embedding(units)
        hidden = self.llm.step(rows, cache, slots, abort) if forward is None else forward(rows, slots)
        if cache.fixed is None:
            return self.log_probs(hidden)
        return self.log_probs(fill_rows(hidden, cache.fixed.step_rows))[: len(slots)]

    def next_units(
        self,
        units: Sequence[int],
        choices: Sequence[UnitChoice],
        cache: RelPosCache,
        slots: Sequence[int],
        abort: AbortCheck = never_abort,
        *,
        forward: RowStep | None = None,
    ) -> list[int]:
        """Append a unit to each of several streams and choose the next one of each, with one forward for all.

        Arguments as of `step`; `choices[k]` says how the stream in `slots[k]` chooses.
        """
        given = to_device([units], self.llm_decoder.weight.device)[0]
        return choose_units(self.step(given, cache, slots, abort, forward=forward), choices)

    @torch.no_grad()
    def log_probs(self, hidden: Tensor) -> Tensor:
        """Output rows `[.., width]` of the unit decoder -> float32 log-probabilities `[.., units + 1]`."""
        return product(self.llm_decoder, hidden).float().contiguous().log_softmax(dim=-1)

    @torch.no_grad()
    def embed_units(self, units: Sequence[int]) -> Tensor:
        """Rows `[n, prompt_width]` of speech units. Raises InvalidInputError for an id out of range."""
        for unit in units:
            if not 0 <= unit < self.config.units:
                raise InvalidInputError(
                    "prev_speech_ids", f"{unit} is not a speech unit (0 to {self.config.units - 1})"
                )
        weight = self.speech_embedding.weight
        out: Tensor = self.speech_embedding(torch.tensor(list(units), dtype=torch.long, device=weight.device))
        return out

    def decode_units(
        self,
        prompt: Tensor,
        sampler: UnitSampler,
        *,
        previous_units: Sequence[int] = (),
        first_index: int | None = None,
        cache: RelPosCache | None = None,
        slot: int = 0,
        abort: AbortCheck = never_abort,
    ) -> Iterator[int]:
        """The units that follow a prompt, one by one, until end of speech or the greatest length.

        Args:
            prompt: `[1, L, prompt_width]` from `build_prompt`, without padding.
            sampler: how to choose.
            previous_units: units that were chosen before; they are fed first, count for the length rule
                and are not returned again.
            first_index: absolute index of the first new unit in its stream; the number of previous units
                when not given.
            cache: where keys and values are kept, in `slot`, which is emptied first; an own one when None.
            slot: which slot.
            abort: called before each layer of the prefill and before each unit.

        Raises InvalidInputError for units out of range or a cache that is too small.
        """
        least, most = length_rule(prompt.shape[1])
        count = len(previous_units)
        index = count if first_index is None else first_index
        if count >= most:
            return
        if cache is None:
            cache = self.new_cache(1, prompt.shape[1] + most)
        cache.reset(slot)
        rows_in = torch.cat([prompt[0], self.embed_units(previous_units)])
        log_probs = self.prefill(rows_in[None], [len(rows_in)], cache, [slot], abort)
        while True:
            rejected = self.end_of_speech if count < least else None
            unit = choose_units(log_probs, [UnitChoice(sampler, index, rejected)])[0]
            if unit == self.end_of_speech:
                return
            yield unit
            count, index = count + 1, index + 1
            if count >= most:
                return
            abort()
            log_probs = self.step(torch.tensor([unit], device=prompt.device), cache, [slot])
