"""Beginnings and ends of speech, from the decisions of a detector."""

from __future__ import annotations

import pytest

from taste_grpc.dialogue.turn_taking import SpeechBegan, SpeechEnded, TurnTaking, TurnTakingSettings

FRAME_MS = 32.0


def run(taking: TurnTaking, pattern: str) -> list[SpeechBegan | SpeechEnded]:
    """`#` is a frame with speech."""
    found = [taking.push(mark == "#", FRAME_MS) for mark in pattern]
    return [event for event in found if event is not None]


def test_speech_begins_and_ends_once_and_says_where() -> None:
    events = run(TurnTaking(), "." * 10 + "#" * 20 + "." * 40)
    assert events == [SpeechBegan(10 * FRAME_MS), SpeechEnded(30 * FRAME_MS)]


def test_a_noise_is_no_speech() -> None:
    taking = TurnTaking()
    assert run(taking, "##...##...##..." * 5) == []
    assert taking.voiced_ms == 0.0


def test_a_gap_inside_a_word_does_not_begin_the_count_anew() -> None:
    assert run(TurnTaking(), "##.#") == [SpeechBegan(0.0)]


@pytest.mark.parametrize("silence_ms", [300, 700, 2000])
def test_a_pause_is_no_end_until_it_has_lasted(silence_ms: int) -> None:
    taking = TurnTaking(TurnTakingSettings(silence_ms=silence_ms))
    short = "." * (int(silence_ms / FRAME_MS) - 1)
    assert run(taking, "####" + short + "####" + short + "##") == [SpeechBegan(0.0)]
    frames = 0
    while taking.speaking:
        taking.push(False, FRAME_MS)
        frames += 1
    assert silence_ms <= frames * FRAME_MS < silence_ms + FRAME_MS


def test_speech_is_measured_without_its_pauses() -> None:
    taking = TurnTaking()
    run(taking, "###..###..")
    assert taking.voiced_ms == 6 * FRAME_MS


def test_noises_with_silence_between_them_are_no_burst() -> None:
    taking = TurnTaking()
    run(taking, "####" + "." * 18 + "####")
    assert taking.voiced_ms == 8 * FRAME_MS
    assert taking.burst_ms == 4 * FRAME_MS
    run(taking, "...##")
    assert taking.burst_ms == 6 * FRAME_MS


def test_what_somebody_else_has_ended_begins_again_with_the_next_speech() -> None:
    taking = TurnTaking()
    run(taking, "#####")
    taking.end()
    assert not taking.speaking
    assert run(taking, "." * 60) == []
    assert run(taking, "###") == [SpeechBegan(65 * FRAME_MS)]


def test_speech_may_be_taken_for_a_turn_however_short_it_is() -> None:
    taking = TurnTaking()
    run(taking, "..#")
    assert taking.run_began_ms == 2 * FRAME_MS
    taking.begin()
    assert taking.speaking
    assert run(taking, "#" + "." * 40) == [SpeechEnded(4 * FRAME_MS)]


def test_what_is_still_said_in_a_turn_that_was_ended_begins_none_until_a_pause() -> None:
    taking = TurnTaking()
    run(taking, "#" * 10)
    taking.end(until_silence=True)
    assert run(taking, "#" * 200 + "....." + "#" * 200) == []  # 160 ms are no pause
    assert taking.run_began_ms is None
    assert taking.voiced_ms == 0.0
    assert run(taking, "." * 10) == []
    assert run(taking, "###") == [SpeechBegan(425 * FRAME_MS)]
