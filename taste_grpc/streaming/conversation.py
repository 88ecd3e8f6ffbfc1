"""From segments to the prompt of the spoken LM.

A conversation is `sos`, then for each segment its role marker, the start marker, its ids and the end
marker, then the assistant's marker and a start marker: there the answer begins. A last segment of the
assistant is left open instead and gone on with. A checkpoint that was not tuned on this format has
the published completion modes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

import torch
from torch import Tensor

from taste_grpc.errors import InvalidInputError, InvalidTypeError, UnsupportedByModelError, type_name
from taste_grpc.model.processor import TasteProcessor
from taste_grpc.model.spoken_lm.generation import (
    Prompt,
    audio_prompt,
    heard_prompt,
    instruct_prompt,
    text_prompt,
    zero_prompt,
)
from taste_grpc.model.spoken_lm.network import delayed_sources
from taste_grpc.model.taste import TasteForCausalLM
from taste_grpc.model.text.tokens import ConversationTokens, TokenSets
from taste_grpc.streaming.segments import TASTESegment, check_range

ConversationFormat = Literal["conversation", "completion"]


@dataclass(frozen=True)
class ConversationPrompt:
    """A prompt that can be read back.

    Attributes:
        text_ids: `[1, T]` every id, markers included.
        heard_taste_ids: `[1, T, Q]` the codes fused with each id, -1 where the pad embedding stands.
            Row 0 (sos) is not fused at all.
        pending_taste_ids: `[D, Q]` codes of the last words of an open segment, still to be heard.
        history: ids that count for the repetition penalty: those of the segments, not the markers.
        is_open: a last segment of the assistant is gone on with.
        prompt: the input rows.
    """

    text_ids: Tensor
    heard_taste_ids: Tensor
    pending_taste_ids: Tensor
    history: tuple[int, ...]
    is_open: bool
    prompt: Prompt


@dataclass
class _Rows:
    """Ids with the codes heard at each; -1 for none."""

    ids: list[int]
    codes: list[list[int]]
    pad: list[int]

    def add(self, text_id: int, codes: list[int] | None = None) -> None:
        self.ids.append(text_id)
        self.codes.append(self.pad if codes is None else codes)


def conversation_formats(processor: TasteProcessor) -> tuple[ConversationFormat, ...]:
    """Formats the checkpoint's tokenizer can write, the preferred one first."""
    if processor.text_tokenizer.conversation_tokens() is None:
        return ("completion",)
    return ("conversation", "completion")


def conversation_tokens(processor: TasteProcessor) -> ConversationTokens:
    """The conversation markers. Raises UnsupportedByModelError when the tokenizer lacks them."""
    tokens = processor.text_tokenizer.conversation_tokens()
    if tokens is None:
        raise UnsupportedByModelError(
            "the checkpoint's tokenizer has no conversation markers (<|reserved_special_token_50|> to 54), so it "
            "cannot do the conversation format; use the format 'completion'"
        )
    return tokens


def check_segments(segments: Sequence[TASTESegment], model: TasteForCausalLM) -> None:
    """Hold ids and codes against the model's sizes.

    Raises InvalidInputError naming the segment, InvalidTypeError for what is no sequence of segments.
    """
    if not isinstance(segments, Sequence):
        raise InvalidTypeError("input_segments", f"is a {type_name(segments)}; a list of TASTESegment is expected")
    vocab, codes = model.spoken_lm.vocab_size, model.config.audio_tower.quantizer.codebook_size
    for index, segment in enumerate(segments):
        where = f"input_segments[{index}]"
        if not isinstance(segment, TASTESegment):
            raise InvalidTypeError(where, f"is a {type_name(segment)}, not a TASTESegment")
        check_range(f"{where}.text_ids", segment.text_ids[0].tolist(), vocab)
        if segment.taste_ids is not None:
            check_codes(f"{where}.taste_ids", segment.taste_ids, model.vq_dim, codes)


def check_codes(name: str, taste_ids: Tensor, vq_dim: int, codebook_size: int) -> None:
    """Hold codes `(1, S, vq_dim)` against the model's. Raises InvalidInputError naming `name`."""
    if taste_ids.shape[2] != vq_dim:
        raise InvalidInputError(name, f"has vq_dim {taste_ids.shape[2]}; the model has {vq_dim}")
    outside = taste_ids[(taste_ids < -1) | (taste_ids >= codebook_size)]
    if outside.numel():
        raise InvalidInputError(
            name, f"contains {int(outside[0])}; -1 or codes from 0 to {codebook_size - 1} are allowed"
        )
    empty = taste_ids == -1
    if bool((empty.any(-1) != empty.all(-1)).any()):
        raise InvalidInputError(name, "has rows that are only partly -1")


def merge_fragments(segments: Sequence[TASTESegment]) -> list[TASTESegment]:
    """Join neighbours of the same role and modality; drop empty ones."""
    merged: list[TASTESegment] = []
    for segment in segments:
        if segment.length == 0:
            continue
        last = merged[-1] if merged else None
        if last is None or (last.role, last.modality) != (segment.role, segment.modality):
            merged.append(segment)
            continue
        taste_ids = None
        if last.taste_ids is not None and segment.taste_ids is not None:
            taste_ids = torch.cat([last.taste_ids, segment.taste_ids], 1)
        merged[-1] = TASTESegment(
            segment.role, segment.modality, torch.cat([last.text_ids, segment.text_ids], 1), taste_ids
        )
    return merged


def spoken_word_ids(text_ids: Sequence[int], coded: Sequence[bool], sets: TokenSets) -> list[int]:
    """Word index of each id: a word begins at the first id, at a word-start id and at a row with codes."""
    word_ids: list[int] = []
    for text_id, has_codes in zip(text_ids, coded, strict=True):
        starts = not word_ids or has_codes or sets.is_word_start(text_id)
        word_ids.append((word_ids[-1] if word_ids else -1) + starts)
    return word_ids


def build_conditional_prompt(
    model: TasteForCausalLM, processor: TasteProcessor, input_segments: Sequence[TASTESegment]
) -> ConversationPrompt:
    """The conversation `input_segments`, ready to be answered.

    Inside an audio segment the codes of a word are heard one word later and repeated until the next
    ones; what is left of the last word is heard at the end marker. Text segments and markers carry the
    pad embedding.

    Raises:
        UnsupportedByModelError: the tokenizer has no conversation markers.
        InvalidInputError: ids or codes are out of range.
    """
    tokens = conversation_tokens(processor)
    check_segments(input_segments, model)
    lm = model.spoken_lm
    sets = processor.text_tokenizer.sets(lm.vocab_size)
    rows = _Rows([lm.config.sos_id], [[-1] * model.vq_dim], [-1] * model.vq_dim)
    history: list[int] = []
    pending: list[list[int]] = []
    segments = merge_fragments(input_segments)
    is_open = bool(segments) and segments[-1].role == "assistant"
    for index, segment in enumerate(segments):
        rows.add(tokens.role(segment.role))
        rows.add(tokens.segment_start)
        late = _add_segment(rows, segment, sets, lm.config.delay)
        history += segment.text_ids[0].tolist()
        if is_open and index == len(segments) - 1:
            pending = late
        else:
            rows.add(tokens.segment_end, late[0] if late else None)
    if not is_open:
        rows.add(tokens.assistant)
        rows.add(tokens.segment_start)
    ids, heard = torch.tensor([rows.ids], device=model.device), torch.tensor([rows.codes], device=model.device)
    late_rows = torch.tensor(pending, dtype=torch.long, device=model.device).reshape(-1, model.vq_dim)
    prompt = _input_rows(model, ids[0], heard[0], late_rows, tuple(history))
    return ConversationPrompt(ids, heard, late_rows, tuple(history), is_open, prompt)


def _add_segment(rows: _Rows, segment: TASTESegment, sets: TokenSets, delay: int) -> list[list[int]]:
    """Add a segment's ids; returns the codes that are due after them."""
    text_ids = segment.text_ids[0].tolist()
    if segment.taste_ids is None:
        for text_id in text_ids:
            rows.add(text_id)
        return []
    codes = segment.taste_ids[0].tolist()
    coded = [row[0] != -1 for row in codes]
    sources = delayed_sources(coded, spoken_word_ids(text_ids, coded, sets), delay)
    heard = [codes[source] if source >= 0 else rows.pad for source in sources]
    for text_id, row in zip(text_ids, heard, strict=False):
        rows.add(text_id, row)
    return heard[len(text_ids) :]


def _input_rows(
    model: TasteForCausalLM, text_ids: Tensor, heard: Tensor, pending: Tensor, history: tuple[int, ...]
) -> Prompt:
    """Text ids `[T]` fused with the codes `[T, Q]` heard at each, but for the opening id."""
    with torch.inference_mode():
        return heard_prompt(model.spoken_lm, model.audio_tower.rvq, text_ids, heard, pending, history)


def completion_mode(segments: Iterable[tuple[str, str]]) -> str:
    """The published completion mode that segments, given as `(role, modality)`, are in; neighbours count as one.

    Raises InvalidInputError naming `input_segments` when there is none.
    """
    modes = {
        (): "zero",
        ("text",): "text",
        ("audio",): "audio",
        ("text", "audio", "text"): "instruct",
    }
    pattern = tuple(modality for (_, modality), _ in groupby(segments))
    if pattern not in modes:
        raise InvalidInputError(
            "input_segments",
            f"are {', '.join(pattern)}; the format 'completion' takes none, one text, one audio, or text, audio, text",
        )
    return modes[pattern]


def build_completion_prompt(
    model: TasteForCausalLM, processor: TasteProcessor, input_segments: Sequence[TASTESegment]
) -> Prompt:
    """The published completion modes, told apart by the segments.

    No segment: from nothing (`zero`). One of text: go on from it (`text`). One of audio: go on from what
    was said (`audio`). Text, audio, text: answer speech between two texts (`instruct`). Roles do not
    matter.

    Raises:
        InvalidInputError: another sequence of segments, or ids or codes out of range.
    """
    check_segments(input_segments, model)
    lm, rvq = model.spoken_lm, model.audio_tower.rvq
    sets = processor.text_tokenizer.sets(lm.vocab_size)
    segments = merge_fragments(input_segments)
    mode = completion_mode((segment.role, segment.modality) for segment in segments)
    ids = [segment.text_ids[0].tolist() for segment in segments]
    with torch.inference_mode():
        if mode == "zero":
            return zero_prompt(lm)
        if mode == "text":
            return text_prompt(lm, ids[0])
        at = 0 if mode == "audio" else 1
        codes = segments[at].taste_ids
        if codes is None:
            raise InvalidInputError("taste_ids", "are missing")
        coded = (codes[0, :, 0] != -1).tolist()
        word_ids = spoken_word_ids(ids[at], coded, sets)
        if mode == "audio":
            return audio_prompt(lm, rvq, ids[0], word_ids, codes[0])
        return instruct_prompt(lm, rvq, ids[0], ids[1], word_ids, codes[0], ids[2])
