"""From speech to codes and from codes to speech, a chunk at a time."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from taste_grpc.audio import resample
from taste_grpc.errors import BatchSizeError, CallAbortedError, InvalidInputError, InvalidTypeError
from taste_grpc.streaming import (
    DetokenizedChunk,
    TASTESegment,
    build_conditional_prompt,
    taste_detokenize,
    taste_tokenize,
)
from tests.conftest import Loaded

HELLO, WOR, LD, STOP = 377, 487, 315, 13  # " Hello", " wor", "ld", "."
IDS = torch.tensor([[HELLO, WOR, LD, STOP, HELLO]])
WORDS = torch.tensor([[0, 1, 1, 1, 2]])
SPEAKER = torch.randn(1, 192, generator=torch.Generator().manual_seed(0))


def clip(seconds: float = 1.0, rate_hz: int = 16_000) -> Tensor:
    """A chord that swells: it means the same at every rate."""
    time = torch.arange(int(seconds * rate_hz)) / rate_hz
    wave = sum(torch.sin(2 * torch.pi * f * time) for f in (220.0, 470.0, 1100.0))
    return (0.2 * wave * torch.sin(torch.pi * time / seconds))[None].float()


def tokenize(loaded: Loaded, audio: Any = None, text_ids: Any = IDS, rate: Any = 16_000, **options: Any) -> Tensor:
    return taste_tokenize(loaded.model, loaded.processor, clip() if audio is None else audio, text_ids, rate, **options)


# --- tokenize


def test_codes_are_aligned_to_the_ids(tiny: Loaded) -> None:
    codes = tokenize(tiny)
    assert codes.shape == (1, 5, tiny.model.vq_dim)
    assert codes.dtype == torch.int64
    assert (codes[0, :, 0] >= 0).tolist() == [True, True, False, False, True]
    assert (codes[0, 2:4] == -1).all()
    assert int(codes.max()) < 32
    codes[0, 0] = 7  # an ordinary tensor: it may be written to
    TASTESegment("user", "audio", IDS, codes)


def test_codes_depend_on_what_is_heard(tiny: Loaded) -> None:
    noise = torch.randn(1, 16_000, generator=torch.Generator().manual_seed(1)) * 0.1
    assert not torch.equal(tokenize(tiny), tokenize(tiny, noise))
    assert torch.equal(tokenize(tiny), tokenize(tiny, clip().numpy()))
    assert torch.equal(tokenize(tiny), tokenize(tiny, clip().double()))


@pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 44_100, 48_000, 192_000, 12_345, 7])
def test_any_sampling_rate(tiny: Loaded, rate: int) -> None:
    audio = clip(rate_hz=rate)
    expected = torch.from_numpy(resample(audio[0].numpy(), rate, 16_000))[None]
    assert torch.equal(tokenize(tiny, audio, rate=rate), tokenize(tiny, expected))


def test_word_ids_may_be_given(tiny: Loaded) -> None:
    assert torch.equal(tokenize(tiny, word_ids=WORDS), tokenize(tiny))
    assert torch.equal(tokenize(tiny, word_ids=WORDS * 3 + 4), tokenize(tiny))
    one = tokenize(tiny, word_ids=WORDS * 0)
    assert (one[0, :, 0] >= 0).tolist() == [True, False, False, False, False]


def test_words_that_spell_nothing_have_no_codes(tiny: Loaded) -> None:
    tokenizer = tiny.processor.text_tokenizer
    (blank,) = tokenizer.encode(" ")
    codes = tokenize(tiny, text_ids=torch.tensor([[HELLO, blank, HELLO]]))
    assert (codes[0, :, 0] >= 0).tolist() == [True, False, True]
    with pytest.raises(InvalidInputError, match="spell no word"):
        tokenize(tiny, text_ids=torch.tensor([[blank]]))


def test_thirty_seconds_are_the_limit(tiny: Loaded) -> None:
    assert tokenize(tiny, clip(30.0)).shape == (1, 5, 4)
    with pytest.raises(InvalidInputError, match=r"audio: is 30\.00 s long; at most 30 s"):
        tokenize(tiny, torch.zeros(1, 30 * 16_000 + 1))
    with pytest.raises(InvalidInputError, match="at most 30 s"):
        tokenize(tiny, torch.zeros(1, 30 * 8_000 + 1), rate=8_000)


def spoiled(value: float) -> Tensor:
    audio = clip()
    audio[0, 77] = value
    return audio


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"audio": spoiled(float("nan"))}, InvalidInputError, ["audio", "sample 77 is nan"]),
        ({"audio": spoiled(float("inf"))}, InvalidInputError, ["audio", "sample 77 is inf"]),
        ({"audio": clip().double() * 1e300}, InvalidInputError, ["audio", "inf"]),
        ({"audio": clip()[0]}, InvalidInputError, ["audio", "(16000,)", "(1, T)"]),
        ({"audio": clip()[None]}, InvalidInputError, ["audio", "(1, 1, 16000)"]),
        ({"audio": torch.zeros(1, 0)}, InvalidInputError, ["audio", "(1, 0)"]),
        ({"audio": clip(rate_hz=16_000)[:, :1], "rate": 192_000}, InvalidInputError, ["audio", "(1, 1)"]),
        ({"audio": clip().expand(2, -1)}, BatchSizeError, ["audio", "(2, 16000)"]),
        ({"audio": torch.zeros(0, 16_000)}, BatchSizeError, ["audio", "(0, 16000)"]),
        ({"audio": torch.zeros(1, 16_000, dtype=torch.int16)}, InvalidTypeError, ["audio", "int16"]),
        ({"audio": "speech.wav"}, InvalidTypeError, ["audio", "str"]),
        ({"audio": [[0.0, 0.1]]}, InvalidTypeError, ["audio", "list"]),
        ({"rate": 0}, InvalidInputError, ["sampling_rate", "0"]),
        ({"rate": -16_000}, InvalidInputError, ["sampling_rate", "-16000"]),
        ({"rate": float("nan")}, InvalidInputError, ["sampling_rate", "nan"]),
        ({"rate": "16k"}, InvalidTypeError, ["sampling_rate", "16k"]),
        ({"text_ids": torch.tensor([[HELLO, 512]])}, InvalidInputError, ["text_ids", "512", "511"]),
        ({"text_ids": torch.tensor([[-1]])}, InvalidInputError, ["text_ids", "-1"]),
        ({"text_ids": IDS[0]}, InvalidInputError, ["text_ids", "(5,)"]),
        ({"text_ids": IDS[:, :0]}, InvalidInputError, ["text_ids", "empty"]),
        ({"text_ids": IDS.expand(2, -1)}, BatchSizeError, ["text_ids", "(2, 5)"]),
        ({"text_ids": IDS.float()}, InvalidTypeError, ["text_ids", "float32"]),
        ({"text_ids": [1]}, InvalidTypeError, ["text_ids", "list"]),
        ({"text_ids": torch.full((1, 600), HELLO)}, InvalidInputError, ["text_ids", "600", "at most 443"]),
        ({"word_ids": WORDS[:, :3]}, InvalidInputError, ["word_ids", "3", "5"]),
        ({"word_ids": WORDS.flip(1)}, InvalidInputError, ["word_ids", "decrease"]),
    ],
)
def test_what_cannot_be_tokenized(tiny: Loaded, change: dict[str, Any], error: type, words: list[str]) -> None:
    with pytest.raises(error) as raised:
        tokenize(tiny, **change)
    assert isinstance(raised.value, (ValueError, TypeError))
    assert all(word in str(raised.value) for word in words), str(raised.value)


def test_tokenizing_can_be_aborted(tiny: Loaded) -> None:
    def abort() -> None:
        raise CallAbortedError("enough")

    with pytest.raises(CallAbortedError):
        tokenize(tiny, abort=abort)


def test_what_was_heard_can_be_answered_and_spoken(chat: Loaded) -> None:
    codes = tokenize(chat)
    prompt = build_conditional_prompt(chat.model, chat.processor, [TASTESegment("user", "audio", IDS, codes)])
    heard = prompt.heard_taste_ids[0, 3:-3]
    assert torch.equal(heard[1], codes[0, 0])
    chunk = taste_detokenize(chat.model, chat.processor, SPEAKER, None, None, None, 0.0, IDS, codes)
    assert chunk["audio_waveform"].shape[1] > 1000


# --- detokenize


@dataclass(frozen=True)
class Words:
    """Words with made-up codes."""

    ids: tuple[int, ...]
    first: int = 0

    @property
    def text_ids(self) -> Tensor:
        return torch.tensor([self.ids])

    @property
    def taste_ids(self) -> Tensor:
        word = self.first - 1
        rows = []
        for text_id in self.ids:
            word += text_id in (HELLO, WOR)
            rows.append([(5 * word + q) % 32 for q in range(4)] if text_id in (HELLO, WOR) else [-1] * 4)
        return torch.tensor([rows])

    def __add__(self, other: Words) -> Words:
        return Words(self.ids + other.ids, self.first)


PARTS = [Words((HELLO, WOR, LD)), Words((HELLO, STOP), first=2), Words((WOR, LD, HELLO), first=3)]


def speak(loaded: Loaded, words: Words, before: Words | None = None, **options: Any) -> DetokenizedChunk:
    arguments: dict[str, Any] = {
        "speaker_embeds": SPEAKER,
        "prev_text_ids": before.text_ids if before else None,
        "prev_taste_ids": before.taste_ids if before else None,
        "prev_speech_ids": None,
        "prev_audio_ms": 0.0,
        "text_ids": words.text_ids,
        "taste_ids": words.taste_ids,
    } | options
    return taste_detokenize(loaded.model, loaded.processor, **arguments)


def stream(loaded: Loaded, rate: int, **options: Any) -> list[DetokenizedChunk]:
    """PARTS, one chunk each."""
    chunks: list[DetokenizedChunk] = []
    before: Words | None = None
    for words in PARTS:
        chunks.append(
            speak(
                loaded,
                words,
                before,
                prev_speech_ids=chunks[-1]["speech_ids"] if chunks else None,
                prev_audio_ms=sum(chunk["chunk_duration_ms"] for chunk in chunks),
                out_sampling_rate=rate,
                **options,
            )
        )
        before = words if before is None else before + words
    return chunks


def frames(loaded: Loaded, units: int) -> int:
    return loaded.processor.get_generator("cpu").config.flow.frames(units)


@pytest.mark.parametrize("rate", [16_000, 22_050, 8_000, 24_000, 44_100, 48_000, 96_000, 12_345])
def test_chunks_have_exactly_the_samples_of_the_whole(tiny: Loaded, rate: int) -> None:
    chunks = stream(tiny, rate)
    units = chunks[-1]["speech_ids"]
    whole, native = tiny.processor.get_generator("cpu").inference(units, flow_embedding=SPEAKER)
    expected = resample(whole[0].numpy(), native, rate)
    assert sum(chunk["audio_waveform"].shape[1] for chunk in chunks) == len(expected)
    assert len(expected) == round(frames(tiny, units.shape[1]) * 256 * rate / native)


def test_each_chunk_holds_the_new_part_only(tiny: Loaded) -> None:
    # a random model may find it has said enough: take a seed by which it speaks in every chunk
    runs = (stream(tiny, 22_050, seed=seed) for seed in range(20))
    chunks = next(run for run in runs if all(chunk["audio_waveform"].numel() for chunk in run))
    said = 0
    for chunk in chunks:
        units = chunk["speech_ids"].shape[1]
        assert chunk["audio_waveform"].shape == (1, 256 * (frames(tiny, units) - frames(tiny, said)))
        assert chunk["audio_waveform"].dtype == torch.float32
        assert chunk["audio_waveform"].abs().max() <= 1.0
        assert chunk["sampling_rate"] == 22_050
        assert chunk["chunk_duration_ms"] == pytest.approx(chunk["audio_waveform"].shape[1] / 22.05)
        said = units
    # what was said stays said
    for earlier, later in pairwise(chunks):
        known = earlier["speech_ids"].shape[1]
        assert torch.equal(later["speech_ids"][:, :known], earlier["speech_ids"])
    chunks[0]["speech_ids"][0, 0] = 3  # ordinary tensors


def test_the_first_chunk_is_the_one_shot(tiny: Loaded) -> None:
    chunk = speak(tiny, PARTS[0], out_sampling_rate=22_050)
    whole, _ = tiny.processor.get_generator("cpu").inference(chunk["speech_ids"], flow_embedding=SPEAKER)
    torch.testing.assert_close(chunk["audio_waveform"], whole)


def test_the_length_rule_counts_what_was_said(tiny: Loaded) -> None:
    for k, chunk in enumerate(stream(tiny, 16_000)):
        words = sum(PARTS[1 : k + 1], PARTS[0])
        rows = len(tiny.processor.audio_tokenizer.encode(_spelled(tiny, words), add_special_tokens=False))
        assert chunk["speech_ids"].shape[1] <= 20 * (rows + 3)
    assert stream(tiny, 16_000)[0]["speech_ids"].shape[1] >= 2 * (3 + 2)


def _spelled(loaded: Loaded, words: Words) -> str:
    return loaded.processor.text_tokenizer.decode(words.ids)


def test_seeds_repeat(tiny: Loaded) -> None:
    def run(seed: int | None) -> DetokenizedChunk:
        return speak(tiny, PARTS[0], seed=seed)

    assert torch.equal(run(4)["audio_waveform"], run(4)["audio_waveform"])
    assert torch.equal(run(None)["audio_waveform"], run(0)["audio_waveform"])
    assert not torch.equal(run(4)["speech_ids"], run(5)["speech_ids"])


def test_word_ids_are_derived_or_given(tiny: Loaded) -> None:
    derived = speak(tiny, PARTS[0])
    given_ids = speak(tiny, PARTS[0], text_word_ids=torch.tensor([[4, 7, 7]]))
    assert torch.equal(derived["audio_waveform"], given_ids["audio_waveform"])


def test_a_chunk_that_adds_nothing_is_empty(tiny: Loaded) -> None:
    first = speak(tiny, PARTS[0])
    words = sum(PARTS[1:], PARTS[0])
    limit = 20 * (len(tiny.processor.audio_tokenizer.encode(_spelled(tiny, words), add_special_tokens=False)) + 3)
    units = first["speech_ids"].repeat(1, 1 + limit // first["speech_ids"].shape[1])[:, :limit]
    chunk = speak(tiny, PARTS[1] + PARTS[2], PARTS[0], prev_speech_ids=units, prev_audio_ms=20.0 * limit)
    assert chunk["audio_waveform"].shape == (1, 0)
    assert chunk["chunk_duration_ms"] == 0
    assert torch.equal(chunk["speech_ids"], units)


@settings(deadline=None)
@given(st.integers(1, 3000), st.integers(8_000, 96_000))
def test_borders_in_samples_are_rounded_as_lengths_are(units: int, rate: int) -> None:
    # a chunk begins where the audio before it would have ended
    samples = int(np.float32(units / 50 * 22_050 / 256)) * 256
    assert len(resample(np.zeros(samples, np.float32), 22_050, rate)) == round(samples * rate / 22_050)


FIRST = {"prev_speech_ids": torch.arange(20)[None], "prev_audio_ms": 400.0}


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"prev_audio_ms": 900.0}, InvalidInputError, ["prev_audio_ms", "900", "400"]),
        ({"prev_audio_ms": 0.0}, InvalidInputError, ["prev_audio_ms", "0", "400"]),
        ({"prev_audio_ms": float("nan")}, InvalidInputError, ["prev_audio_ms", "nan"]),
        ({"prev_audio_ms": "400"}, InvalidTypeError, ["prev_audio_ms", "'400'"]),
        ({"prev_speech_ids": None}, InvalidInputError, ["prev_speech_ids", "missing"]),
        ({"prev_taste_ids": None}, InvalidInputError, ["prev_taste_ids", "missing"]),
        ({"prev_text_ids": None}, InvalidInputError, ["prev_taste_ids", "prev_text_ids are not"]),
        (
            {"prev_text_ids": None, "prev_taste_ids": None},
            InvalidInputError,
            ["prev_speech_ids", "prev_text_ids are not"],
        ),
        ({"prev_speech_ids": torch.tensor([[64]])}, InvalidInputError, ["prev_speech_ids", "64", "63"]),
        ({"prev_speech_ids": torch.tensor([[-1]])}, InvalidInputError, ["prev_speech_ids", "-1"]),
        ({"prev_speech_ids": torch.arange(20)}, InvalidInputError, ["prev_speech_ids", "(20,)"]),
        ({"prev_speech_ids": torch.zeros(2, 5).long()}, BatchSizeError, ["prev_speech_ids", "(2, 5)"]),
        ({"prev_text_word_ids": torch.tensor([[0, 1]])}, InvalidInputError, ["prev_text_word_ids", "2", "3"]),
        ({"text_word_ids": torch.tensor([[1, 0]])}, InvalidInputError, ["text_word_ids", "decrease"]),
        ({"text_ids": torch.tensor([[HELLO, 512]])}, InvalidInputError, ["text_ids", "512"]),
        ({"text_ids": torch.zeros(1, 0).long()}, InvalidInputError, ["text_ids", "empty"]),
        ({"text_ids": None}, InvalidTypeError, ["text_ids", "NoneType"]),
        ({"taste_ids": None}, InvalidTypeError, ["taste_ids", "NoneType"]),
        ({"taste_ids": PARTS[0].taste_ids}, InvalidInputError, ["taste_ids", "S = 3", "S = 2"]),
        ({"taste_ids": PARTS[1].taste_ids[..., :3]}, InvalidInputError, ["taste_ids", "vq_dim 3", "4"]),
        ({"taste_ids": PARTS[1].taste_ids + 40}, InvalidInputError, ["taste_ids", "31"]),
        ({"taste_ids": PARTS[1].taste_ids * 0 - 1}, InvalidInputError, ["taste_ids", "no codes", "'Hello.'", "row 0"]),
        ({"speaker_embeds": SPEAKER[0]}, InvalidInputError, ["speaker_embeds", "(192,)", "(1, 192)"]),
        ({"speaker_embeds": SPEAKER[:, :64]}, InvalidInputError, ["speaker_embeds", "(1, 64)", "(1, 192)"]),
        ({"speaker_embeds": SPEAKER.expand(2, -1)}, BatchSizeError, ["speaker_embeds", "(2, 192)"]),
        ({"speaker_embeds": SPEAKER * torch.nan}, InvalidInputError, ["speaker_embeds", "NaN"]),
        ({"speaker_embeds": SPEAKER * 0}, InvalidInputError, ["speaker_embeds", "zero"]),
        ({"speaker_embeds": SPEAKER.long()}, InvalidTypeError, ["speaker_embeds", "int64"]),
        ({"speaker_embeds": SPEAKER.tolist()}, InvalidTypeError, ["speaker_embeds", "list"]),
        ({"out_sampling_rate": 7_999}, InvalidInputError, ["out_sampling_rate", "7999", "8000"]),
        ({"out_sampling_rate": 96_001}, InvalidInputError, ["out_sampling_rate", "96001"]),
        ({"out_sampling_rate": 16_000.5}, InvalidTypeError, ["out_sampling_rate", "16000.5"]),
        ({"seed": "x"}, InvalidTypeError, ["seed", "'x'"]),
    ],
)
def test_what_cannot_be_spoken(tiny: Loaded, change: dict[str, Any], error: type, words: list[str]) -> None:
    with pytest.raises(error) as raised:
        speak(tiny, PARTS[1], PARTS[0], **FIRST | change)
    assert isinstance(raised.value, (ValueError, TypeError))
    assert all(word in str(raised.value) for word in words), str(raised.value)


def test_rounded_durations_are_no_contradiction(tiny: Loaded) -> None:
    chunks = stream(tiny, 16_000)
    for slack in (-40.0, 40.0):
        chunk = speak(
            tiny,
            PARTS[1],
            PARTS[0],
            prev_speech_ids=chunks[0]["speech_ids"],
            prev_audio_ms=chunks[0]["chunk_duration_ms"] + slack,
        )
        assert torch.equal(chunk["audio_waveform"], chunks[1]["audio_waveform"])


def test_speaking_can_be_aborted(tiny: Loaded) -> None:
    calls = 0

    def abort() -> None:
        nonlocal calls
        calls += 1
        if calls == 30:
            raise CallAbortedError("enough")

    with pytest.raises(CallAbortedError):
        speak(tiny, PARTS[0], abort=abort)
    assert calls == 30
    assert speak(tiny, PARTS[0])["audio_waveform"].shape[1] > 0
