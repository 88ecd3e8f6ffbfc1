"""The answer on its way out: chunks, rates, credit, and when it has been played."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taste_grpc.audio import resample
from taste_grpc.audio.waveform import Float32Array
from taste_grpc.dialogue.delivery import CHUNK_MS, LEAST_CREDIT_MS, Delivery
from taste_grpc.dialogue.events import ErrorCode, ServerEvent, SpeechChunk, VoiceChoice
from taste_grpc.dialogue.outbox import Outbox
from tests.support.scripted import passes, until


@dataclass
class Answer:
    """A delivery whose events are read at once, or not at all when `reads` is cleared."""

    rate_hz: int = 16_000
    credit_ms: int | None = None
    now: float = 100.0
    tokens: list[str] = field(default_factory=list)
    troubles: list[tuple[ErrorCode | None, str]] = field(default_factory=list)
    events: list[ServerEvent] = field(default_factory=list)
    audio_calls: int = 0

    def __post_init__(self) -> None:
        self.outbox = Outbox(slow_after_s=60.0)
        self.delivery = Delivery(
            3,
            VoiceChoice(sample_rate_hz=self.rate_hz),
            self.outbox,
            on_token=self.tokens.append,
            on_audio=self._on_audio,
            on_trouble=lambda code, message: self.troubles.append((code, message)),
            credit_ms=self.credit_ms,
            clock=lambda: self.now,
        )
        self._reader = asyncio.create_task(self._read())

    def _on_audio(self) -> None:
        self.audio_calls += 1

    async def _read(self) -> None:
        async for event in self.outbox.events():
            self.events.append(event)

    async def aclose(self) -> None:
        self.outbox.close()
        await self._reader

    @property
    def chunks(self) -> list[SpeechChunk]:
        return [event for event in self.events if isinstance(event, SpeechChunk)]

    @property
    def samples(self) -> Float32Array:
        return np.concatenate([np.zeros(0, np.float32), *(chunk.samples for chunk in self.chunks)])

    @property
    def sent_ms(self) -> float:
        return sum(chunk.duration_ms for chunk in self.chunks)


@pytest.fixture
async def answer() -> AsyncIterator[Answer]:
    answer = Answer()
    yield answer
    await answer.aclose()


def tone(samples: int, rate_hz: int = 16_000) -> Float32Array:
    return (0.5 * np.sin(2 * np.pi * 220 * np.arange(samples) / rate_hz)).astype(np.float32)


def check_order(chunks: list[SpeechChunk]) -> None:
    """Chunks follow one another without a gap, and each phrase is told with its first one."""
    assert [chunk.seq for chunk in chunks] == list(range(len(chunks)))
    ends = [0, *(chunk.first_sample + len(chunk.samples) for chunk in chunks)]
    assert [chunk.first_sample for chunk in chunks] == ends[:-1]
    told = [chunk.phrase_index for chunk in chunks if chunk.phrase_text is not None]
    seen = [chunk.phrase_index for chunk in chunks]
    assert seen == sorted(seen)
    assert told == sorted(set(seen)) == list(range(len(told)))


async def test_audio_goes_out_in_chunks_that_follow_one_another(answer: Answer) -> None:
    spoken = tone(16_000)
    await answer.delivery.audio(0, "One second.", spoken, 16_000)
    await answer.delivery.audio(1, "And more.", spoken[:800], 16_000)
    await answer.delivery.flush()
    await passes()
    check_order(answer.chunks)
    assert [round(chunk.duration_ms) for chunk in answer.chunks] == [CHUNK_MS] * 4 + [40, 50]
    assert [chunk.phrase_text for chunk in answer.chunks] == ["One second.", *[None] * 4, "And more."]
    assert {chunk.turn for chunk in answer.chunks} == {3}
    assert np.array_equal(answer.samples, np.concatenate([spoken, spoken[:800]]))
    assert answer.delivery.chunks == answer.audio_calls == 6
    assert answer.delivery.playback.sent_ms == pytest.approx(1050)


async def test_what_is_too_loud_is_clipped(answer: Answer) -> None:
    await answer.delivery.audio(0, "Loud.", np.array([3.0, -3.0, 0.5], np.float32), 16_000)
    await passes()
    assert answer.samples.tolist() == [1.0, -1.0, 0.5]


@pytest.mark.parametrize(("from_hz", "to_hz"), [(22_050, 16_000), (16_000, 48_000), (24_000, 8_000), (16_000, 44_100)])
async def test_resampled_phrases_are_one_stream(from_hz: int, to_hz: int) -> None:
    answer = Answer(to_hz)
    whole = tone(from_hz, from_hz)
    for index, phrase in enumerate(np.array_split(whole, 3)):
        for piece in np.array_split(phrase, 4):
            await answer.delivery.audio(index, f"Phrase {index}.", piece, from_hz)
    await answer.delivery.flush()
    await answer.aclose()
    expected = resample(whole, from_hz, to_hz)
    assert answer.samples.shape == expected.shape
    assert np.abs(answer.samples - expected).max() < 1e-3
    assert float(answer.samples.sum()) == pytest.approx(float(expected.sum()), abs=0.05)
    check_order(answer.chunks)
    begins = [chunk.first_sample for chunk in answer.chunks if chunk.phrase_text is not None]
    assert begins == pytest.approx([0, to_hz / 3, 2 * to_hz / 3], abs=2)


async def test_a_phrase_that_the_resampler_still_holds_is_told_before_the_next() -> None:
    answer = Answer(8_000)
    await answer.delivery.audio(0, "Oh.", tone(100, 24_000), 24_000)  # less than the filter looks ahead
    await answer.delivery.audio(1, "I see.", tone(24_000, 24_000), 24_000)
    await answer.delivery.flush()
    await answer.aclose()
    check_order(answer.chunks)
    assert [chunk.phrase_text for chunk in answer.chunks if chunk.phrase_text] == ["Oh.", "I see."]
    answer.delivery.playback.acked(10_000)
    assert answer.delivery.playback.heard().text == "Oh. I see."


@pytest.mark.parametrize(
    ("lengths", "told"),
    [
        ([12_000, 0, 1, 1, 12_000], ["P0", "P1 P2", "P3 P4"]),
        ([0, 0, 12_000, 12_000], ["P0 P1 P2", "P3"]),
        ([12_000, 12_000, 0], ["P0", "P1"]),
    ],
)
async def test_a_phrase_too_short_for_a_sample_is_told_and_heard_with_the_next(
    lengths: list[int], told: list[str]
) -> None:
    answer = Answer(8_000)
    for index, length in enumerate(lengths):
        await answer.delivery.audio(index, f"P{index}", tone(length, 24_000), 24_000)
    await answer.delivery.flush()
    await answer.aclose()
    check_order(answer.chunks)
    assert [chunk.phrase_text for chunk in answer.chunks if chunk.phrase_text is not None] == told
    assert answer.chunks[-1].phrase_index == len(told) - 1
    answer.delivery.playback.acked(10_000)
    assert answer.delivery.playback.heard().text == " ".join(told)
    assert len(answer.samples) == round(sum(lengths) / 3)


async def test_an_answer_without_audio_flushes_nothing(answer: Answer) -> None:
    await answer.delivery.flush()
    await answer.delivery.played(5.0)
    await passes()
    assert answer.events == []


async def test_text_and_audio_wait_while_the_client_is_behind() -> None:
    outbox = Outbox(slow_after_s=60.0)
    answer = Answer()
    unread = Delivery(
        0,
        VoiceChoice(),
        outbox,
        on_token=answer.tokens.append,
        on_audio=lambda: None,
        on_trouble=lambda code, message: None,
        credit_ms=None,
        clock=lambda: 0.0,
    )
    talking = asyncio.create_task(unread.audio(0, "A long phrase.", tone(16_000 * 10), 16_000))
    await until(lambda: outbox.unread >= 8)
    writing = asyncio.create_task(unread.token("more"))
    await passes()
    assert outbox.unread == 8
    assert answer.tokens == ["more"]
    assert not talking.done()
    assert not writing.done()
    outbox.close()
    await asyncio.gather(talking, writing)
    await answer.aclose()


async def test_with_a_credit_no_more_than_it_is_unplayed_and_acks_let_more_on() -> None:
    answer = Answer(credit_ms=500)
    answer.delivery.acked(0)
    talking = asyncio.create_task(answer.delivery.audio(0, "Two seconds.", tone(32_000), 16_000))
    await until(lambda: len(answer.chunks) == 2)
    await passes()
    assert answer.sent_ms == 480
    answer.now += 60.0  # of a client that says what was played, time says nothing
    await passes()
    assert answer.sent_ms == 480
    answer.delivery.acked(240)
    await until(lambda: len(answer.chunks) == 3)
    assert answer.delivery.playback.unplayed_ms <= 500
    while not talking.done():
        answer.delivery.acked(round(answer.sent_ms))
        await passes()
        assert answer.delivery.playback.unplayed_ms <= 500
    assert answer.sent_ms == 2_000
    await answer.aclose()


@pytest.mark.parametrize("credit_ms", [20, 100, 240, 241])
async def test_what_clients_cannot_acknowledge_does_not_hold_an_answer(credit_ms: int) -> None:
    """Phrases end in the middle of a millisecond, and clients count whole ones."""
    answer = Answer(credit_ms=credit_ms)
    answer.delivery.acked(0)

    async def talk() -> None:
        for index in range(3):
            await answer.delivery.audio(index, f"P{index}", tone(8_027), 16_000)
        await answer.delivery.flush()

    talking = asyncio.create_task(talk())
    async with asyncio.timeout(10):
        while not talking.done():
            answer.delivery.acked(int(answer.sent_ms))
            await passes()
    assert len(answer.samples) == 3 * 8_027
    await answer.aclose()


async def test_without_acks_time_makes_room() -> None:
    answer = Answer(credit_ms=100)
    talking = asyncio.create_task(answer.delivery.audio(0, "Half a second.", tone(8_000), 16_000))
    await until(lambda: answer.chunks)
    while not talking.done():
        assert answer.delivery.playback.unplayed_ms <= 100 + 1e-6
        answer.now += 0.05
        await asyncio.sleep(0.001)
    assert answer.now - 100.0 >= 0.4
    await passes()
    assert answer.sent_ms == 500
    check_order(answer.chunks)
    await answer.aclose()


@pytest.mark.parametrize("credit_ms", [0, LEAST_CREDIT_MS - 1])
async def test_no_credit_stops_the_audio_until_there_is_more(credit_ms: int) -> None:
    answer = Answer(credit_ms=credit_ms)
    talking = asyncio.create_task(answer.delivery.audio(0, "A phrase.", tone(3_200), 16_000))
    for _ in range(3):
        await asyncio.sleep(0.002)
        answer.now += 10.0
    assert answer.chunks == []
    answer.delivery.grant(1_000)
    await talking
    await passes()
    assert answer.sent_ms == 200
    await answer.aclose()


async def test_a_credit_may_come_when_the_answer_is_under_way(answer: Answer) -> None:
    await answer.delivery.audio(0, "First.", tone(1_600), 16_000)
    answer.delivery.acked(0)
    answer.delivery.grant(100)
    talking = asyncio.create_task(answer.delivery.audio(1, "Second.", tone(1_600), 16_000))
    await asyncio.sleep(0.005)
    assert answer.sent_ms == 100
    answer.delivery.acked(100)
    await talking


@pytest.mark.parametrize("credit_ms", [0, 100])
async def test_a_credit_of_a_client_that_has_ended_its_stream_does_not_hold_the_answer_for_ever(
    credit_ms: int,
) -> None:
    answer = Answer(credit_ms=credit_ms)
    answer.delivery.acked(0)
    talking = asyncio.create_task(answer.delivery.audio(0, "A phrase.", tone(3_200), 16_000))
    await asyncio.sleep(0.002)
    answer.delivery.wait_no_longer()
    while not talking.done():
        answer.now += 0.05
        await asyncio.sleep(0.001)
    await passes()
    assert answer.sent_ms == 200
    await answer.aclose()


async def test_it_has_been_played_when_the_client_says_so(answer: Answer) -> None:
    await answer.delivery.audio(0, "A second.", tone(16_000), 16_000)
    answer.delivery.acked(10)
    playing = asyncio.create_task(answer.delivery.played(5.0))
    answer.now += 3.0  # longer than it takes, and the client is believed
    answer.delivery.acked(999)
    await passes()
    assert not playing.done()
    answer.delivery.acked(1_000)
    await playing


async def test_a_client_whose_acks_stay_out_is_not_believed_for_ever(answer: Answer) -> None:
    await answer.delivery.audio(0, "A second.", tone(16_000), 16_000)
    answer.delivery.acked(10)
    answer.now += 1.0 + 5.0
    await answer.delivery.played(5.0)


async def test_without_acks_it_has_been_played_after_its_length(answer: Answer) -> None:
    await answer.delivery.audio(0, "A moment.", tone(160), 16_000)
    playing = asyncio.create_task(answer.delivery.played(5.0))
    await asyncio.sleep(0.02)
    assert not playing.done()  # by the clock no time has passed
    answer.now += 0.011
    await playing


async def test_nobody_waits_for_the_end_of_playing_once_it_is_not_wanted(answer: Answer) -> None:
    await answer.delivery.audio(0, "A minute.", tone(16_000 * 60), 16_000)
    playing = asyncio.create_task(answer.delivery.played(5.0))
    await passes()
    assert not playing.done()
    answer.delivery.wait_no_longer()
    await playing


async def test_what_comes_after_the_answer_is_over_is_dropped(answer: Answer) -> None:
    await answer.delivery.audio(0, "Heard.", tone(160), 16_000)
    answer.delivery.grant(0)
    late = asyncio.create_task(answer.delivery.audio(0, "Heard.", tone(160), 16_000))
    await asyncio.sleep(0.002)
    answer.delivery.close()
    answer.delivery.grant(1_000)
    await late
    await answer.delivery.token("late")
    answer.delivery.phrase_failed("late", "broken")
    answer.delivery.notice("late")
    await passes()
    assert (answer.tokens, answer.troubles, len(answer.chunks)) == ([], [], 1)


async def test_what_goes_wrong_is_told(answer: Answer) -> None:
    answer.delivery.phrase_failed("A secret.", "broken")
    answer.delivery.notice("look")
    assert [code for code, _ in answer.troubles] == [ErrorCode.TTS_FAIL, None]
    assert "secret" not in answer.troubles[0][1]
    assert "broken" in answer.troubles[0][1]


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.lists(st.integers(200, 3_000), min_size=1, max_size=3), min_size=1, max_size=5),
    rates=st.sampled_from([(16_000, 16_000), (22_050, 16_000), (24_000, 44_100), (48_000, 8_000)]),
)
def test_phrases_of_any_length_arrive_whole_and_in_order(lengths: list[list[int]], rates: tuple[int, int]) -> None:
    async def play() -> None:
        from_hz, to_hz = rates
        answer = Answer(to_hz)
        total = 0
        for index, pieces in enumerate(lengths):
            for piece in pieces:
                await answer.delivery.audio(index, f"P{index}", tone(piece, from_hz), from_hz)
                total += piece
        await answer.delivery.flush()
        await answer.aclose()
        assert len(answer.samples) == len(resample(np.zeros(total, np.float32), from_hz, to_hz))
        check_order(answer.chunks)
        answer.delivery.playback.acked(10**9)
        heard = answer.delivery.playback.heard()
        told = " ".join(chunk.phrase_text for chunk in answer.chunks if chunk.phrase_text is not None)
        assert heard.text == (told if heard.ms else "")
        assert told.split() == [f"P{index}" for index in range(len(told.split()))]
        assert all(later.phrase_index - earlier.phrase_index in (0, 1) for earlier, later in pairwise(answer.chunks))

    asyncio.run(play())
