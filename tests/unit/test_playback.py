"""What of an answer was heard."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from taste_grpc.dialogue.playback import Heard, Playback


@dataclass
class Clock:
    now: float = 50.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def playback(clock: Clock) -> Playback:
    """Two phrases of a second each."""
    playback = Playback(clock)
    playback.sent(0, "Hello my friend.", 400)
    playback.sent(0, "Hello my friend.", 600)
    playback.sent(1, "How are you today?", 1000)
    return playback


@pytest.mark.parametrize(
    ("played_ms", "text"),
    [
        (0, ""),
        (999, "Hello my"),
        (1000, "Hello my friend."),
        (1400, "Hello my friend. How are"),
        (2000, "Hello my friend. How are you today?"),
    ],
)
def test_acks_say_what_was_heard(playback: Playback, played_ms: int, text: str) -> None:
    playback.acked(played_ms)
    assert playback.heard() == Heard(played_ms, text, estimated=False)


def test_acks_do_not_go_back_nor_beyond_what_was_sent(playback: Playback) -> None:
    playback.acked(1200)
    playback.acked(300)
    assert playback.heard().ms == 1200
    playback.acked(10**9)
    assert playback.heard().ms == 2000
    assert playback.unplayed_ms == 0.0


def test_without_acks_time_since_sending_is_the_estimate(playback: Playback, clock: Clock) -> None:
    assert playback.heard() == Heard(0, "", estimated=True)
    clock.now += 1.0
    assert playback.heard() == Heard(1000, "Hello my friend.", estimated=True)
    assert playback.unplayed_ms == pytest.approx(1000)
    clock.now += 60
    assert playback.heard().ms == 2000


def test_a_gap_between_phrases_is_not_heard(clock: Clock) -> None:
    playback = Playback(clock)
    playback.sent(0, "One.", 500)
    clock.now += 5.0
    playback.sent(1, "Two.", 500)
    clock.now += 0.25
    assert playback.heard() == Heard(750, "One.", estimated=True)


def test_phrases_come_in_order(playback: Playback) -> None:
    for index in (0, 3):
        with pytest.raises(ValueError, match="phrase_index"):
            playback.sent(index, "late", 10)
