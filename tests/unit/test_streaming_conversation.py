"""The conversation format, read back from the prompt."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from taste_grpc.errors import InvalidInputError, InvalidTypeError, UnsupportedByModelError
from taste_grpc.streaming import (
    ConversationPrompt,
    TASTESegment,
    build_completion_prompt,
    build_conditional_prompt,
    conversation_formats,
    streaming_generate,
)
from tests.conftest import Loaded

SOS, START, END = 496, 512, 513
ROLES = {"system": 514, "user": 515, "assistant": 516}
PAD = [-1, -1, -1, -1]
HELLO, WOR, LD, STOP = 377, 487, 315, 13  # " Hello", " wor", "ld", "."


def row(k: int) -> list[int]:
    """Codes of the k-th word of a test."""
    return [(k + 8 * q) % 32 for q in range(4)]


def spoken(role: Any, words: list[list[int]], first: int = 0, without: tuple[int, ...] = ()) -> TASTESegment:
    """A segment of words, each with its own codes at its first id; words in `without` have none."""
    ids = [text_id for word in words for text_id in word]
    codes = [
        row(first + k) if i == 0 and k not in without else PAD for k, word in enumerate(words) for i in range(len(word))
    ]
    return TASTESegment(role, "audio", torch.tensor([ids]), torch.tensor([codes]))


def written(role: Any, ids: list[int]) -> TASTESegment:
    return TASTESegment(role, "text", torch.tensor([ids], dtype=torch.long).reshape(1, -1))


def read(chat: Loaded, segments: list[TASTESegment]) -> ConversationPrompt:
    return build_conditional_prompt(chat.model, chat.processor, segments)


def ids_of(prompt: ConversationPrompt) -> list[int]:
    ids: list[int] = prompt.text_ids[0].tolist()
    return ids


def heard(prompt: ConversationPrompt) -> list[list[int]]:
    codes: list[list[int]] = prompt.heard_taste_ids[0].tolist()
    return codes


WORDS = [[HELLO], [WOR, LD, STOP], [HELLO, LD]]


# --- each rule on its own


def test_nothing_said_yet(chat: Loaded) -> None:
    prompt = read(chat, [])
    assert ids_of(prompt) == [SOS, ROLES["assistant"], START]
    assert heard(prompt) == [PAD] * 3
    assert not prompt.is_open
    assert not prompt.prompt.has_prefix


def test_markers_stand_around_each_segment(chat: Loaded) -> None:
    prompt = read(chat, [written("system", [STOP]), written("user", [HELLO, LD])])
    assert ids_of(prompt) == [
        *[SOS, ROLES["system"], START, STOP, END],
        *[ROLES["user"], START, HELLO, LD, END],
        *[ROLES["assistant"], START],
    ]


def test_text_and_markers_carry_the_pad_embedding(chat: Loaded) -> None:
    prompt = read(chat, [written("system", [STOP]), spoken("user", WORDS), written("assistant", [HELLO])])
    codes = heard(prompt)
    for position, text_id in enumerate(ids_of(prompt)):
        if text_id in (SOS, START, *ROLES.values()) or position < 7 or position > len(codes) - 4:
            assert codes[position] == PAD


def test_codes_are_heard_one_word_late_and_filled_forward(chat: Loaded) -> None:
    prompt = read(chat, [spoken("user", WORDS)])
    assert ids_of(prompt)[3:-3] == [HELLO, WOR, LD, STOP, HELLO, LD]
    assert heard(prompt)[3:-3] == [PAD, row(0), row(0), row(0), row(1), row(1)]


def test_the_last_words_codes_go_to_the_end_marker(chat: Loaded) -> None:
    prompt = read(chat, [spoken("user", WORDS), written("system", [STOP])])
    end = ids_of(prompt).index(END)
    assert heard(prompt)[end] == row(2)
    assert heard(prompt)[end + 1] == PAD
    # a segment of a single word is heard there alone
    assert heard(read(chat, [spoken("user", [[HELLO, LD]], first=5)]))[3:6] == [PAD, PAD, row(5)]


def test_words_without_codes_hear_on_what_was_heard_last(chat: Loaded) -> None:
    prompt = read(chat, [spoken("user", [*WORDS, [HELLO]], without=(1,))])
    assert heard(prompt)[3:-2] == [PAD, row(0), row(0), row(0), row(0), row(0), row(2), row(3)]
    prompt = read(chat, [spoken("user", WORDS, without=(0,))])
    assert heard(prompt)[3:-2] == [PAD, PAD, PAD, PAD, row(1), row(1), row(2)]


def test_fragments_of_one_role_and_modality_are_one_segment(chat: Loaded) -> None:
    whole = read(chat, [spoken("user", WORDS), written("user", [HELLO, STOP])])
    split = read(
        chat,
        [
            spoken("user", WORDS[:1]),
            TASTESegment("user", "audio", torch.zeros(1, 0, dtype=torch.long), torch.zeros(1, 0, 4, dtype=torch.long)),
            spoken("user", WORDS[1:2], first=1),
            spoken("user", WORDS[2:], first=2),
            written("user", [HELLO]),
            written("user", []),
            written("user", [STOP]),
        ],
    )
    assert ids_of(whole) == ids_of(split)
    assert heard(whole) == heard(split)
    assert torch.equal(whole.prompt.rows, split.prompt.rows)
    # another role or another modality is another segment
    assert ids_of(read(chat, [written("user", [HELLO]), written("system", [HELLO])])).count(END) == 2
    assert ids_of(whole).count(END) == 2


def test_a_last_segment_of_the_assistant_stays_open(chat: Loaded) -> None:
    prompt = read(chat, [written("user", [STOP]), spoken("assistant", WORDS)])
    ids = ids_of(prompt)
    assert prompt.is_open
    assert ids[-8:] == [ROLES["assistant"], START, HELLO, WOR, LD, STOP, HELLO, LD]
    assert ids.count(END) == 1
    # its last codes are still to be heard, by the first new word
    assert prompt.pending_taste_ids.tolist() == [row(2)]
    assert prompt.prompt.has_prefix
    rvq = chat.model.audio_tower.rvq
    torch.testing.assert_close(prompt.prompt.pending_audio[0], rvq.output_from_indices(torch.tensor(row(2))).float())


def test_an_open_segment_of_text_has_nothing_pending(chat: Loaded) -> None:
    prompt = read(chat, [written("user", [STOP]), written("assistant", [HELLO])])
    assert prompt.is_open
    assert prompt.pending_taste_ids.shape == (0, 4)
    assert not prompt.prompt.has_prefix


def test_an_empty_segment_of_the_assistant_is_no_answer_yet(chat: Loaded) -> None:
    assert ids_of(read(chat, [written("user", [STOP]), written("assistant", [])])) == ids_of(
        read(chat, [written("user", [STOP])])
    )


def test_the_history_is_what_was_said(chat: Loaded) -> None:
    prompt = read(chat, [written("system", [STOP]), spoken("user", WORDS)])
    assert list(prompt.history) == [STOP, HELLO, WOR, LD, STOP, HELLO, LD] == list(prompt.prompt.history)


# --- all rules at once

tokens = st.integers(0, 495)
word = st.tuples(st.sampled_from([HELLO, WOR]), st.lists(st.sampled_from([LD, STOP]), max_size=2)).map(
    lambda parts: [parts[0], *parts[1]]
)


@st.composite
def conversations(draw: st.DrawFn) -> list[TASTESegment]:
    segments: list[TASTESegment] = []
    for _ in range(draw(st.integers(0, 5))):
        role = draw(st.sampled_from(list(ROLES)))
        if draw(st.booleans()):
            segments.append(written(role, draw(st.lists(tokens, max_size=4))))
        else:
            words = draw(st.lists(word, min_size=1, max_size=4))
            without = draw(st.sets(st.integers(0, len(words))))
            segments.append(spoken(role, words, draw(st.integers(0, 20)), tuple(without)))
    return segments


def reference(segments: list[TASTESegment]) -> tuple[list[int], list[list[int]], list[list[int]]]:
    """The format, spelled out id by id for a delay of one word."""
    merged: list[tuple[str, str, list[int], list[list[int]]]] = []
    for segment in segments:
        ids = segment.text_ids[0].tolist()
        codes = [PAD] * len(ids) if segment.taste_ids is None else segment.taste_ids[0].tolist()
        if not ids:
            continue
        if merged and merged[-1][:2] == (segment.role, segment.modality):
            merged[-1][2].extend(ids)
            merged[-1][3].extend(codes)
        else:
            merged.append((segment.role, segment.modality, [*ids], [*codes]))
    ids, codes, pending = [SOS], [PAD], []
    for k, (role, modality, own_ids, own_codes) in enumerate(merged):
        ids += [ROLES[role], START]
        codes += [PAD, PAD]
        now = newest = PAD
        for text_id, own in zip(own_ids, own_codes, strict=True):
            if text_id in (HELLO, WOR):  # a word begins: the one before it is heard from here on
                now = newest
                newest = own if own != PAD else newest
            ids.append(text_id)
            codes.append(now if modality == "audio" else PAD)
        late = newest if modality == "audio" else PAD
        if k == len(merged) - 1 and role == "assistant":
            pending = [late] if modality == "audio" else []
        else:
            ids.append(END)
            codes.append(late)
    if not merged or merged[-1][0] != "assistant":
        ids += [ROLES["assistant"], START]
        codes += [PAD, PAD]
    return ids, codes, pending


@settings(deadline=None, max_examples=150)
@given(conversations())
def test_every_conversation_is_what_the_format_says(chat: Loaded, segments: list[TASTESegment]) -> None:
    prompt = read(chat, segments)
    ids, codes, pending = reference(segments)
    assert ids_of(prompt) == ids
    assert heard(prompt) == codes
    assert prompt.pending_taste_ids.tolist() == pending
    assert prompt.prompt.rows.shape == (len(ids), chat.model.spoken_lm.hidden_dim)
    assert prompt.prompt.rows.isfinite().all()


@settings(deadline=None, max_examples=30)
@given(conversations())
def test_the_rows_are_the_ids_and_codes_fused(chat: Loaded, segments: list[TASTESegment]) -> None:
    prompt, lm, rvq = read(chat, segments), chat.model.spoken_lm, chat.model.audio_tower.rvq

    def audio(codes: Tensor) -> Tensor:
        return lm.pad_audio_unit_embed if codes[0] == -1 else rvq.output_from_indices(codes)

    text = lm.embed_text(prompt.text_ids[0])
    expected = [lm.fuse(audio(codes), own) for codes, own in zip(prompt.heard_taste_ids[0], text, strict=True)]
    torch.testing.assert_close(prompt.prompt.rows[1:], torch.stack(expected)[1:])
    assert torch.equal(prompt.prompt.rows[0], text[0])  # the opening id is not fused


# --- what cannot be a prompt


def test_without_the_markers_there_is_no_conversation(tiny: Loaded, chat: Loaded) -> None:
    assert conversation_formats(tiny.processor) == ("completion",)
    assert conversation_formats(chat.processor) == ("conversation", "completion")
    for call in (build_conditional_prompt, streaming_generate):
        with pytest.raises(UnsupportedByModelError, match="reserved_special_token_50"):
            call(tiny.model, tiny.processor, [])


@pytest.mark.parametrize("build", [build_conditional_prompt, build_completion_prompt])
@pytest.mark.parametrize(
    ("segment", "words"),
    [
        (written("user", [HELLO, 517]), ["text_ids", "517", "0 to 516"]),
        (written("user", [-3]), ["text_ids", "-3"]),
        (
            TASTESegment("user", "audio", torch.tensor([[1]]), torch.tensor([[[1, 2, 3, 32]]])),
            ["taste_ids", "32", "31"],
        ),
        (TASTESegment("user", "audio", torch.tensor([[1]]), torch.tensor([[[1, 2, -2, 3]]])), ["taste_ids", "-2"]),
        (TASTESegment("user", "audio", torch.tensor([[1]]), torch.tensor([[[1, 2, -1, 3]]])), ["taste_ids", "partly"]),
        (
            TASTESegment("user", "audio", torch.tensor([[1]]), torch.tensor([[[1, 2, 3]]])),
            ["taste_ids", "vq_dim 3", "4"],
        ),
    ],
)
def test_ids_and_codes_out_of_range(chat: Loaded, build: Any, segment: TASTESegment, words: list[str]) -> None:
    with pytest.raises(InvalidInputError) as raised:
        build(chat.model, chat.processor, [segment, segment])
    assert all(word in str(raised.value) for word in ["input_segments[0]", *words])


@pytest.mark.parametrize("build", [build_conditional_prompt, build_completion_prompt])
@pytest.mark.parametrize(("given", "words"), [(None, "NoneType"), (["hi"], "str"), (5, "int"), ([None], "[0]")])
def test_what_is_no_list_of_segments(chat: Loaded, build: Any, given: Any, words: str) -> None:
    with pytest.raises(InvalidTypeError) as raised:
        build(chat.model, chat.processor, given)
    assert "input_segments" in str(raised.value)
    assert words in str(raised.value)


# --- the published modes


def test_the_completion_modes(tiny: Loaded) -> None:
    lm = tiny.model.spoken_lm

    def build(*segments: TASTESegment) -> Any:
        return build_completion_prompt(tiny.model, tiny.processor, list(segments))

    assert torch.equal(build().rows, lm.embed_text(torch.tensor([SOS])))
    text = build(written("user", [HELLO]), written("user", [STOP]))
    assert torch.equal(text.rows, lm.embed_text(torch.tensor([HELLO, STOP])))
    audio = build(spoken("user", WORDS))
    assert audio.rows.shape[0] == 1 + 6
    assert audio.has_prefix
    instruct = build(written("system", [STOP]), spoken("user", WORDS), written("user", [LD]))
    assert torch.equal(instruct.rows[1:-1], audio.rows[1:])
    assert not instruct.has_prefix
    with pytest.raises(InvalidInputError, match="audio, text"):
        build(spoken("user", WORDS), written("user", [LD]))
