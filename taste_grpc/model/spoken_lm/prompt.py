"""Prompts: what a generation starts from.

Source: checkpoint layout 4.10. A prompt is kept as ids and codes; its rows are worked out when they are asked for, so
that a long one can be read piece by piece.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor

from taste_grpc.model.audio_tower.rvq import ResidualVQ
from taste_grpc.model.layers.products import fill_rows
from taste_grpc.model.spoken_lm.network import SpokenLM, delayed_sources


class RowKind(IntEnum):
    """What stands at a position of a prompt."""

    TEXT = 0
    """The embedding of a text id, as it is."""
    SILENT = 1
    """A text id fused with the embedding of no speech."""
    HEARD = 2
    """A text id fused with the speech of its codes."""


@dataclass(frozen=True)
class PromptRows:
    """The input rows of a prompt of T positions, worked out when asked for.

    Attributes:
        lm: whose rows.
        codebooks: what the codes mean; None when there are none.
        text_ids: `[T]` int64.
        codes: `[T, Q]` int64, of meaning where a row is HEARD; None when none is.
        kinds: T kinds of rows.
    """

    lm: SpokenLM
    codebooks: ResidualVQ | None
    text_ids: Tensor
    codes: Tensor | None
    kinds: Sequence[RowKind]

    def __len__(self) -> int:
        return len(self.kinds)

    def piece(self, start: int, stop: int, rows: int | None = None) -> Tensor:
        """Rows `start .. stop-1`, `[stop - start, D]` float32; with `rows`, zeros after them, `[rows, D]`.

        With `rows`, the work has that many rows too, so that the numbers do not depend on `stop`.
        """
        lm, kinds = self.lm, self.kinds[start:stop]
        text = lm.embed_text(self.text_ids[start:stop])
        fused = [row for row, kind in enumerate(kinds) if kind != RowKind.TEXT]
        if not fused:
            return text if rows is None else fill_rows(text, rows)
        first, last = (fused[0], fused[-1] + 1) if rows is None else (0, stop - start)
        audio = self._audio(start + first, start + last, rows)
        with_speech = lm.fuse(audio, text[first:last] if rows is None else fill_rows(text, rows))
        plain = torch.tensor([kind == RowKind.TEXT for kind in kinds[first:last]], device=text.device)
        chosen = torch.where(plain[:, None], text[first:last], with_speech[: last - first])
        whole = torch.cat([text[:first], chosen, text[last:]])
        return whole if rows is None else fill_rows(whole, rows)

    def _audio(self, start: int, stop: int, rows: int | None) -> Tensor:
        """Speech embeddings `[stop - start, A]` float32, or `[rows, A]`."""
        silence = self.lm.pad_audio_unit_embed.float()
        kinds = self.kinds[start:stop]
        count = stop - start if rows is None else rows
        if self.codes is None or self.codebooks is None or RowKind.HEARD not in kinds:
            return silence.expand(count, -1)
        heard = torch.tensor([kind == RowKind.HEARD for kind in kinds], device=silence.device)
        codes = fill_rows(torch.where(heard[:, None], self.codes[start:stop], -1), count)
        speech = self.codebooks.output_from_indices(codes).float()
        return torch.where(fill_rows(heard, count)[:, None], speech, silence)


@dataclass(frozen=True)
class Prompt:
    """What a generation starts from.

    Attributes:
        source: the input rows.
        history: text ids that count for the repetition penalty.
        pending_audio: speech embeddings `[A]` for the first new words, when the prompt ends in speech.
    """

    source: PromptRows
    history: tuple[int, ...]
    pending_audio: tuple[Tensor, ...] = ()

    @property
    def has_prefix(self) -> bool:
        """Whether the prompt ends in speech that goes on."""
        return bool(self.pending_audio)

    @property
    def length(self) -> int:
        """Positions it takes."""
        return len(self.source)

    @property
    def rows(self) -> Tensor:
        """All input rows `[T, D]` float32, worked out anew each time."""
        return self.source.piece(0, self.length)


def _plain(lm: SpokenLM, text_ids: Sequence[int]) -> PromptRows:
    ids = torch.tensor(list(text_ids), dtype=torch.long, device=lm.device)
    return PromptRows(lm, None, ids, None, (RowKind.TEXT,) * len(text_ids))


def zero_prompt(lm: SpokenLM) -> Prompt:
    """Nothing but the opening id."""
    return Prompt(_plain(lm, [lm.config.sos_id]), (lm.config.sos_id,))


def text_prompt(lm: SpokenLM, text_ids: Sequence[int]) -> Prompt:
    """Plain text to go on from: no opening id, no speech (as published)."""
    return Prompt(_plain(lm, text_ids), tuple(text_ids))


def heard_prompt(
    lm: SpokenLM,
    codebooks: ResidualVQ,
    text_ids: Tensor,
    heard: Tensor,
    pending: Tensor,
    history: tuple[int, ...],
) -> Prompt:
    """Text ids `[T]` with the codes `[T, Q]` heard at each, -1 where there is no speech; the opening id is not fused.

    `pending` `[P, Q]` are the codes that accompany the first new words.
    """
    coded = (heard[1:, 0] >= 0).tolist()
    kinds = (RowKind.TEXT, *(RowKind.HEARD if has_codes else RowKind.SILENT for has_codes in coded))
    speech = codebooks.output_from_indices(pending).float()
    late = torch.where(pending[:, :1] >= 0, speech, lm.pad_audio_unit_embed.float())
    return Prompt(PromptRows(lm, codebooks, text_ids, heard, kinds), history, tuple(late))


def _spoken(
    lm: SpokenLM, codebooks: ResidualVQ, text_ids: Sequence[int], word_ids: Sequence[int], taste_rows: Tensor
) -> tuple[PromptRows, Tensor]:
    """The opening id and spoken text; and the speech embeddings `[delay, A]` that are heard after it."""
    rows = taste_rows.to(lm.device)
    sources = delayed_sources((rows[:, 0] != -1).tolist(), word_ids, lm.config.delay)
    codes = rows[torch.tensor(sources, device=lm.device).clamp(min=0)]
    count = len(text_ids)
    kinds = [RowKind.HEARD if source >= 0 else RowKind.SILENT for source in sources]
    ids = torch.tensor([lm.config.sos_id, *text_ids], device=lm.device)
    late = codebooks.output_from_indices(codes[count:]).float()
    heard = torch.tensor([source >= 0 for source in sources[count:]], device=lm.device)
    pending = torch.where(heard[:, None], late, lm.pad_audio_unit_embed.float())
    spoken = torch.cat([codes[:1], codes[:count]])  # the opening id has none; its row is not looked at
    return PromptRows(lm, codebooks, ids, spoken, (RowKind.TEXT, *kinds[:count])), pending


def audio_prompt(
    lm: SpokenLM, codebooks: ResidualVQ, text_ids: Sequence[int], word_ids: Sequence[int], taste_rows: Tensor
) -> Prompt:
    """Speech to go on from. `taste_rows` `[L, Q]` with each word's row at its first id."""
    rows, pending = _spoken(lm, codebooks, text_ids, word_ids, taste_rows)
    return Prompt(rows, tuple(text_ids), tuple(pending))


def instruct_prompt(
    lm: SpokenLM,
    codebooks: ResidualVQ,
    prefix_ids: Sequence[int],
    text_ids: Sequence[int],
    word_ids: Sequence[int],
    taste_rows: Tensor,
    suffix_ids: Sequence[int],
) -> Prompt:
    """Speech between two plain texts.

    As published, the first spoken id is left out of the penalty history and the last word's row is
    never heard.
    """
    spoken, _ = _spoken(lm, codebooks, text_ids, word_ids, taste_rows)
    ids = torch.tensor([*prefix_ids, *text_ids, *suffix_ids], device=lm.device)
    assert spoken.codes is not None
    codes = spoken.codes.new_full((len(ids), spoken.codes.shape[1]), -1)
    codes[len(prefix_ids) : len(prefix_ids) + len(text_ids)] = spoken.codes[1:]
    kinds = (*[RowKind.TEXT] * len(prefix_ids), *spoken.kinds[1:], *[RowKind.TEXT] * len(suffix_ids))
    history = (*prefix_ids, *tuple(text_ids)[1:], *suffix_ids)
    return Prompt(PromptRows(lm, codebooks, ids, codes, kinds), history)
