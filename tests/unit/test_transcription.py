"""Partial and final transcripts of one turn."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taste_grpc.dialogue.transcription import FIRST_PARTIAL_MS, LEAST_ADDED_MS, SETTLED_MS, Recording, Transcription
from taste_grpc.errors import SpeechError
from tests.support.scripted import FRAME_MS, FRAME_SAMPLES, ScriptedTranscriber, passes


@dataclass
class Listener:
    """A transcription, and what it was told to show."""

    transcriber: ScriptedTranscriber = field(default_factory=ScriptedTranscriber)
    interval_ms: float = 1_000
    partials: list[tuple[str, int]] = field(default_factory=list)
    now: float = 0.0

    def __post_init__(self) -> None:
        self.transcription = Transcription(
            self.transcriber,
            language="en",
            interval_ms=self.interval_ms,
            on_partial=lambda text, audio_ms: self.partials.append((text, audio_ms)),
            clock=lambda: self.now,
        )

    def hear(self, pattern: str) -> None:
        for mark in pattern:
            self.transcription.hear(np.zeros(FRAME_SAMPLES, np.float32), is_speech=mark == "#")

    async def listen(self, pattern: str) -> None:
        """As `hear`, with time for decodes between the frames."""
        for mark in pattern:
            self.hear(mark)
            await passes(5)


def word_per_frame(ms: float) -> str:
    return " ".join(["word"] * round(ms / FRAME_MS))


async def abandon(transcription: Transcription) -> None:
    task = transcription.abandon()
    if task is not None:
        task.cancel()
        await asyncio.wait([task])


async def test_no_partial_before_half_a_second_and_then_one_each_interval() -> None:
    listener = Listener(ScriptedTranscriber(word_per_frame))
    await listener.listen("#" * 125)  # 4 s
    times = [audio_ms for _, audio_ms in listener.partials]
    assert FIRST_PARTIAL_MS <= times[0] < FIRST_PARTIAL_MS + FRAME_MS
    assert len(times) == 4
    assert all(1_000 <= later - earlier < 1_000 + FRAME_MS for earlier, later in pairwise(times))
    assert [text for text, _ in listener.partials] == [word_per_frame(ms) for ms in times]
    assert [call.urgent for call in listener.transcriber.calls] == [False] * 4
    assert {call.language for call in listener.transcriber.calls} == {"en"}


async def test_a_partial_comes_only_when_the_text_has_changed() -> None:
    listener = Listener(ScriptedTranscriber("the same"), interval_ms=300)
    await listener.listen("#" * 100)
    assert len(listener.transcriber.calls) > 5
    assert [text for text, _ in listener.partials] == ["the same"]


async def test_there_is_no_partial_without_words_and_the_first_words_are_looked_for_more_often() -> None:
    listener = Listener(ScriptedTranscriber(lambda ms: "at last" if ms > 1_900 else ""), interval_ms=3_000)
    await listener.listen("#" * 80)
    assert [text for text, _ in listener.partials] == ["at last"]
    assert [round(call.ms / FIRST_PARTIAL_MS) for call in listener.transcriber.calls] == [1, 2, 3, 4]


async def test_no_decode_unless_enough_was_added() -> None:
    listener = Listener(ScriptedTranscriber(word_per_frame), interval_ms=1)
    await listener.listen("#" * 100)
    lengths = [call.ms for call in listener.transcriber.calls]
    assert len(lengths) > 5
    assert all(later - earlier >= LEAST_ADDED_MS for earlier, later in pairwise(lengths))


async def test_decodes_that_take_long_come_less_often() -> None:
    listener = Listener(ScriptedTranscriber(word_per_frame), interval_ms=500)

    async def take_a_second() -> None:
        listener.now += 1.0

    listener.transcriber.step = take_a_second
    await listener.listen("#" * 100)
    times = [audio_ms for _, audio_ms in listener.partials]
    assert len(times) == 2
    assert times[1] - times[0] >= 2_000


async def test_a_decode_sees_what_was_heard_when_it_was_due() -> None:
    listener = Listener(ScriptedTranscriber(word_per_frame))
    listener.hear("#" * 60)  # at once, as a pre-roll is
    await passes()
    (call,) = listener.transcriber.calls
    assert listener.partials == [(word_per_frame(call.ms), round(call.ms))]


async def test_a_pause_is_decoded_ahead_and_its_text_is_the_final_one() -> None:
    listener = Listener(ScriptedTranscriber("all of it"))
    await listener.listen("#" * 7 + "." * 22)
    (call,) = listener.transcriber.calls
    assert call.urgent
    assert SETTLED_MS <= call.ms - 7 * FRAME_MS < SETTLED_MS + FRAME_MS
    assert await listener.transcription.final() == "all of it"
    assert len(listener.transcriber.calls) == 1
    assert listener.partials == [("all of it", round(call.ms))]


async def test_words_of_a_pause_are_shown_when_a_partial_is_due_and_no_sooner() -> None:
    listener = Listener(ScriptedTranscriber("all of it"))
    await listener.listen("#" * 7 + "." * 8)
    assert listener.transcriber.calls
    assert listener.partials == []
    await listener.listen(".")
    assert [text for text, _ in listener.partials] == ["all of it"]
    await listener.listen("." * 40)
    assert len(listener.transcriber.calls) == len(listener.partials) == 1


async def test_nothing_is_decoded_ahead_while_others_wait() -> None:
    listener = Listener()
    listener.transcriber.waiting = 1
    await listener.listen("#" * 7 + "." * 8)
    assert listener.transcriber.calls == []


async def test_speech_after_a_pause_is_not_missing_in_the_final_one() -> None:
    listener = Listener(ScriptedTranscriber(word_per_frame))
    await listener.listen("#" * 5 + "." * 8 + "#" * 5)
    assert await listener.transcription.final() == word_per_frame(18 * FRAME_MS)
    assert [round(call.ms / FRAME_MS) for call in listener.transcriber.calls] == [12, 18]


async def test_a_partial_that_is_under_way_becomes_the_final_one_when_it_covers_all_speech() -> None:
    listener = Listener(ScriptedTranscriber("covered"))
    listener.transcriber.held.clear()
    listener.hear("#" * 12 + "." * 8)
    await passes()
    assert listener.transcriber.running == 1
    final = asyncio.create_task(listener.transcription.final())
    await passes()
    listener.transcriber.held.set()
    assert await final == "covered"
    assert len(listener.transcriber.calls) == 1
    assert listener.partials == []  # none after the final one was asked for


async def test_one_that_covers_less_is_waited_for_and_then_all_is_decoded() -> None:
    listener = Listener(ScriptedTranscriber(word_per_frame))
    listener.transcriber.held.clear()
    listener.hear("#" * 16)
    await passes()
    listener.hear("#" * 10)
    final = asyncio.create_task(listener.transcription.final())
    await passes()
    assert listener.transcriber.running == 1
    listener.transcriber.held.set()
    assert await final == word_per_frame(26 * FRAME_MS)
    assert [call.urgent for call in listener.transcriber.calls] == [False, True]
    assert listener.transcriber.most_at_once == 1


@pytest.mark.parametrize("is_running", [True, False])
async def test_a_failed_partial_does_not_keep_the_final_one_from_coming(is_running: bool) -> None:
    listener = Listener(ScriptedTranscriber("after all", failures=[SpeechError("hiccup")]))
    listener.transcriber.held.clear()
    listener.hear("#" * 12 + "." * 4)
    await passes()
    if not is_running:
        listener.transcriber.held.set()
        await passes()
        assert listener.transcriber.running == 0
    final = asyncio.create_task(listener.transcription.final())
    await passes()
    listener.transcriber.held.set()
    assert await final == "after all"
    assert len(listener.transcriber.calls) == 2
    assert listener.partials == []


async def test_a_pause_whose_decode_failed_is_not_tried_again_with_every_frame() -> None:
    listener = Listener(ScriptedTranscriber("x", failures=[SpeechError("broken")] * 50))
    await listener.listen("#" * 5 + "." * 10)
    assert len(listener.transcriber.calls) == 1


async def test_the_final_one_says_that_the_recogniser_failed() -> None:
    listener = Listener(ScriptedTranscriber(failures=[SpeechError("broken")]))
    listener.hear("#" * 5)
    with pytest.raises(SpeechError, match="broken"):
        await listener.transcription.final()


async def test_one_that_is_abandoned_decodes_and_shows_nothing_more() -> None:
    listener = Listener(ScriptedTranscriber(word_per_frame))
    listener.transcriber.held.clear()
    listener.hear("#" * 20)
    await passes()
    await abandon(listener.transcription)
    assert listener.transcriber.running == 0
    listener.transcriber.held.set()
    await listener.listen("#" * 100)
    assert len(listener.transcriber.calls) == 1
    assert listener.partials == []


async def test_giving_up_the_final_one_ends_its_decode() -> None:
    listener = Listener()
    listener.transcriber.held.clear()
    listener.hear("#" * 16)
    await passes()
    final = asyncio.create_task(listener.transcription.final())
    await passes()
    final.cancel()
    await asyncio.wait([final])
    await passes()
    assert listener.transcriber.running == 0


def test_a_recording_is_what_was_appended() -> None:
    recording = Recording()
    assert recording.samples().shape == (0,)
    pieces = [np.full(160, number, np.float32) for number in range(5)]
    for piece in pieces[:3]:
        recording.append(piece)
    assert np.array_equal(recording.samples(), np.concatenate(pieces[:3]))
    for piece in pieces[3:]:
        recording.append(piece)
    assert np.array_equal(recording.samples(), np.concatenate(pieces))
    assert recording.ms == 50


Steps = st.lists(
    st.sampled_from(["speech", "silence", "hold", "let go", "fail", "wait", "long speech", "long silence"]), max_size=40
)


@settings(max_examples=150, deadline=None)
@given(steps=Steps, interval_ms=st.sampled_from([1, 250, 1_000]))
def test_whatever_happens_there_are_never_two_decodes_at_once(steps: list[str], interval_ms: int) -> None:
    async def play() -> None:
        listener = Listener(ScriptedTranscriber(word_per_frame), interval_ms)
        do: dict[str, Callable[[], object]] = {
            "speech": lambda: listener.hear("#" * 3),
            "long speech": lambda: listener.hear("#" * 20),
            "silence": lambda: listener.hear("." * 3),
            "long silence": lambda: listener.hear("." * 20),
            "hold": listener.transcriber.held.clear,
            "let go": listener.transcriber.held.set,
            "fail": lambda: listener.transcriber.failures.append(SpeechError("hiccup")),
        }
        for step in steps:
            if step == "wait":
                await passes(5)
            else:
                do[step]()
        listener.transcriber.failures.clear()
        listener.hear("#")
        final = asyncio.create_task(listener.transcription.final())
        await passes(5)
        listener.transcriber.held.set()
        await final
        assert listener.transcriber.most_at_once == 1
        covered_ms = listener.transcriber.calls[-1].ms
        assert final.result() == word_per_frame(covered_ms)
        assert covered_ms == listener.transcription.recording.ms
        assert [audio_ms for _, audio_ms in listener.partials] == sorted({ms for _, ms in listener.partials})

    asyncio.run(play())
