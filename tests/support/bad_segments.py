"""Segments that must be refused wherever a segment may stand: a good one, and what spoils it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from taste.v1 import common_pb2
from taste_grpc.engine.protocol import ModelInfo
from tests.support import messages

Change = Callable[[common_pb2.Segment, ModelInfo], object]


def tokens(info: ModelInfo, change: Change = lambda segment, info: None) -> common_pb2.Segment:
    """Three ids with their codes, changed."""
    segment = messages.token_segment(vq_dim=info.vq_dim)
    change(segment, info)
    return segment


def words(info: ModelInfo, change: Change = lambda segment, info: None) -> common_pb2.Segment:
    """Three words with their codes, changed."""
    segment = messages.word_segment(("a", "few", "words"), info.vq_dim)
    change(segment, info)
    return segment


def set_at(ids: Any, index: Any, value: Any) -> None:
    ids[index] = value


TOKENS: dict[str, tuple[str, Change]] = {
    "no text ids": ("tokens.text_ids", lambda s, i: s.tokens.ClearField("text_ids")),
    "text id -1": ("tokens.text_ids[1]", lambda s, i: set_at(s.tokens.text_ids, 1, -1)),
    "text id too high": ("tokens.text_ids[2]", lambda s, i: set_at(s.tokens.text_ids, 2, i.text_vocab_size)),
    "text id 2^31 - 1": ("tokens.text_ids[0]", lambda s, i: set_at(s.tokens.text_ids, 0, 2**31 - 1)),
    "too few word ids": ("tokens.word_ids", lambda s, i: s.tokens.word_ids.pop()),
    "negative word id": ("tokens.word_ids[0]", lambda s, i: set_at(s.tokens.word_ids, 0, -1)),
    "word ids fall": ("tokens.word_ids[2]", lambda s, i: set_at(s.tokens.word_ids, 2, 0)),
    "word ids skip": ("tokens.word_ids[2]", lambda s, i: set_at(s.tokens.word_ids, 2, 3)),
    "text for people too long": ("tokens.text", lambda s, i: setattr(s.tokens, "text", "a" * 8193)),
    "codes missing": ("tokens.taste_tokens.codes", lambda s, i: s.tokens.taste_tokens.ClearField("codes")),
    "vq_dim 3": ("tokens.taste_tokens.codes.vq_dim", lambda s, i: setattr(s.tokens.taste_tokens.codes, "vq_dim", 3)),
    "vq_dim -4": ("tokens.taste_tokens.codes.vq_dim", lambda s, i: setattr(s.tokens.taste_tokens.codes, "vq_dim", -4)),
    "too few codes": ("tokens.taste_tokens.codes.ids", lambda s, i: s.tokens.taste_tokens.codes.ids.pop()),
    "too many codes": ("tokens.taste_tokens.codes.ids", lambda s, i: s.tokens.taste_tokens.codes.ids.append(0)),
    "code above the codebook": (
        "tokens.taste_tokens.codes.ids[5]",
        lambda s, i: set_at(s.tokens.taste_tokens.codes.ids, 5, i.codebook_size),
    ),
    "code below -1": ("tokens.taste_tokens.codes.ids[0]", lambda s, i: set_at(s.tokens.taste_tokens.codes.ids, 0, -2)),
    "one -1 in a row": (
        "tokens.taste_tokens.codes.ids[1]",
        lambda s, i: set_at(s.tokens.taste_tokens.codes.ids, 1, -1),
    ),
    "modality TEXT": ("modality", lambda s, i: setattr(s, "modality", common_pb2.MODALITY_TEXT)),
    "unknown modality": ("modality", lambda s, i: setattr(s, "modality", 9)),
    "unknown role": ("role", lambda s, i: setattr(s, "role", 9)),
    "no content": ("content", lambda s, i: s.ClearField("tokens")),
}
"""What is wrong with tokens: the field below the segment that is named, and the change."""


def _codes(segment: common_pb2.Segment, index: int = 1) -> common_pb2.TasteCodes:
    return segment.words.words[index].taste_tokens.codes


def _row(info: ModelInfo, code: int) -> common_pb2.TasteCodes:
    return common_pb2.TasteCodes(vq_dim=info.vq_dim, ids=[code] * info.vq_dim)


def _word(index: int = 1, **fields: Any) -> Change:
    return lambda s, i: [setattr(s.words.words[index], name, value) for name, value in fields.items()]


def _bring_ids(*ids: int, index: int = 2) -> Change:
    return lambda s, i: s.words.words[index].text_ids.extend(ids)


WORDS: dict[str, tuple[str, Change]] = {
    "none": ("words", lambda s, i: s.words.ClearField("words")),
    "too many": ("words", lambda s, i: s.words.words.extend([s.words.words[0]] * 8190)),
    "too long together": ("words", lambda s, i: s.words.words.extend([common_pb2.SpokenWord(text="é" * 800)] * 6)),
    "1 MB": ("words", _word(text="a" * (1 << 20))),
    "empty text": ("words[1].text", _word(text="")),
    "text is a blank": ("words[1].text", _word(text=" ")),
    "blank before": ("words[1].text", _word(text=" fine")),
    "blank after": ("words[0].text", _word(0, text="fine\t")),
    "two in one": ("words[2].text", _word(2, text="fine day")),
    "no-break space": ("words[2].text", _word(2, text="fine\u00a0day")),
    "newline": ("words[2].text", _word(2, text="fine\n")),
    "control character": ("words[2].text", _word(2, text="fi\x00ne")),
    "no codes at all": ("words[1].taste_tokens", lambda s, i: s.words.words[1].ClearField("taste_tokens")),
    "no layout": ("words[1].taste_tokens.codes", lambda s, i: s.words.words[1].taste_tokens.ClearField("codes")),
    "vq_dim 3": ("words[1].taste_tokens.codes.vq_dim", lambda s, i: setattr(_codes(s), "vq_dim", 3)),
    "row too short": ("words[1].taste_tokens.codes.ids", lambda s, i: _codes(s).ids.pop()),
    "two rows": ("words[1].taste_tokens.codes.ids", lambda s, i: _codes(s).ids.extend([1] * i.vq_dim)),
    "row of -1": ("words[2].taste_tokens.codes.ids[0]", lambda s, i: _codes(s, 2).CopyFrom(_row(i, -1))),
    "-1 in a row": ("words[0].taste_tokens.codes.ids[2]", lambda s, i: set_at(_codes(s, 0).ids, 2, -1)),
    "code above the codebook": (
        "words[1].taste_tokens.codes.ids[3]",
        lambda s, i: set_at(_codes(s).ids, 3, i.codebook_size),
    ),
    "text id -1": ("words[2].text_ids[1]", _bring_ids(1, -1)),
    "text id too high": (
        "words[2].text_ids[0]",
        lambda s, i: s.words.words[2].text_ids.append(i.text_vocab_size),
    ),
    "too many text ids": ("words", _bring_ids(*[1] * 8193)),
}
"""What is wrong with words: the field below `segment.words` that is named, and the change."""
