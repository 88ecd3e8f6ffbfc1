"""What `taste-grpc talk --live` makes of events, by itself: views, endings, the clock's loudspeaker, the pace."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from rich.console import Console, RenderableType

from taste_grpc.cli.failure import CommandError
from taste_grpc.cli.live_audio import PIECE_MS, RecordingAudio
from taste_grpc.cli.live_ending import Ending, Step
from taste_grpc.cli.live_player import ClockPlayer
from taste_grpc.cli.live_view import (
    ConversationView,
    TurnView,
    current_view,
    event_json,
    latency_table,
    totals_line,
    turn_text,
)
from taste_grpc_client import (
    ConversationEvent,
    ErrorCode,
    Failure,
    FinalTranscript,
    GoingAway,
    Interrupted,
    LlmToken,
    MarkReached,
    Notice,
    PartialTranscript,
    Phase,
    PhaseChanged,
    SpeechChunk,
    SpeechComplete,
    Started,
    TurnMetrics,
)


def chunk(turn: int = 0, duration_ms: float = 100.0) -> SpeechChunk:
    return SpeechChunk(turn, 0, b"\0\0", 16_000, "linear16", 0, duration_ms, 0, "Well.")


def metrics(turn: int = 0, response_ms: float | None = 500.0) -> TurnMetrics:
    return TurnMetrics(turn, 620.4, 1804.0, None, 2301.0, response_ms)


def turn_events(turn: int = 0) -> list[ConversationEvent]:
    return [
        PhaseChanged(turn, Phase.CAPTURING),
        PartialTranscript(turn, "hel", 500),
        FinalTranscript(turn, "hello", 900),
        PhaseChanged(turn, Phase.THINKING),
        LlmToken(turn, " Well,", False),
        LlmToken(turn, " hi.", False),
        LlmToken(turn, "", True),
        PhaseChanged(turn, Phase.RESPONDING),
        chunk(turn),
        chunk(turn),
        SpeechComplete(turn, 2, 200.0),
        PhaseChanged(turn, Phase.COMPLETE),
    ]


def view_of(*events: ConversationEvent) -> ConversationView:
    view = ConversationView()
    for event in events:
        view.take(event)
    return view


def shown(what: RenderableType) -> str:
    console = Console(width=120)
    with console.capture() as captured:
        console.print(what)
    return captured.get()


# --- views --------------------------------------------------------------------------------------------


def test_a_turn_as_it_goes_on():
    view = view_of(*turn_events()[:2])
    assert not view.is_quiet
    assert "you:    hel\n" in shown(current_view(view, "Ctrl-C ends"))
    assert "capturing  Ctrl-C ends" in shown(current_view(view, "Ctrl-C ends"))
    for event in turn_events()[2:7]:
        view.take(event)
    assert shown(current_view(view)).split("\n")[:3] == ["you:    hello", "answer: Well, hi.", "thinking"]
    for event in [*turn_events()[7:], metrics()]:
        view.take(event)
    assert view.is_quiet
    (turn,) = view.settled()
    assert (
        shown(turn_text(turn))
        .rstrip()
        .endswith("ms: first partial 620, transcript 1804, first audio 2301, response 500")
    )
    assert view.settled() == view.unsettled == []
    assert turn.as_json() == {
        "turn": 0,
        "transcript": "hello",
        "answer": "Well, hi.",
        "phase": "complete",
        "audio_ms": 200.0,
        "heard_ms": None,
        "heard_text": None,
        "errors": [],
        "latency_ms": {
            "first_partial_ms": 620.4,
            "final_transcript_ms": 1804.0,
            "first_token_ms": None,
            "first_audio_ms": 2301.0,
            "response_ms": 500.0,
        },
    }


def test_a_final_transcript_is_not_overwritten():
    turn = TurnView(0)
    for event in (FinalTranscript(0, "hello", 900), PartialTranscript(0, "hell", 800)):
        turn.take(event)
    assert (turn.heard, turn.is_final) == ("hello", True)


def test_a_turn_is_settled_by_its_times_or_by_the_next_one():
    view = view_of(*turn_events(), PhaseChanged(1, Phase.IDLE))
    assert view.settled() == []
    view.take(metrics())
    assert [turn.number for turn in view.settled()] == [0]
    view = view_of(*turn_events(), PhaseChanged(1, Phase.CAPTURING))
    assert [turn.number for turn in view.settled()] == [0]
    assert [turn.number for turn in view.settled(everything=True)] == [1]


def test_a_turn_that_has_not_begun_is_none():
    view = view_of(Started("s", 16_000, "linear16", False), PhaseChanged(0, Phase.IDLE))
    assert (view.turns, view.is_quiet, view.activity) == ([], True, 1)


def test_interruptions_and_failures():
    interrupted = Interrupted(0, 1234, "Well,", estimated=True)
    text = shown(turn_text(view_of(*turn_events()[:9], interrupted).turns[0]))
    assert "interrupted; about 1.2 s were heard: Well," in text
    slip = Failure(0, ErrorCode.TTS_FAIL, "no voice")
    view = view_of(*turn_events()[:9], slip, *turn_events()[10:])
    assert view.turns[0].failure is None
    assert "TTS_FAIL: no voice" in shown(turn_text(view.turns[0]))
    view = view_of(*turn_events()[:4], Failure(0, ErrorCode.LLM_TIMEOUT, "late"), PhaseChanged(0, Phase.ERROR))
    assert view.turns[0].failure == Failure(0, ErrorCode.LLM_TIMEOUT, "late")
    assert view.is_quiet
    assert view.totals()["failed"] == 1


def test_what_belongs_to_no_turn_is_kept():
    events = [
        Notice(None, "slow"),
        Failure(None, ErrorCode.BACKPRESSURE, "fast"),
        GoingAway("t", 1500, 9),
        MarkReached("m"),
    ]
    view = view_of(*events)
    assert view.notices == ["slow", "BACKPRESSURE: fast", "the server is about to stop, within 1.5 s"]
    assert view.marks == {"m"}
    assert view.turns == []


def test_totals():
    first, second = turn_events(0), turn_events(1)
    interrupted = Interrupted(1, 7, "", estimated=False)
    view = view_of(*first, metrics(0, 500.0), *second, interrupted, metrics(1, 700.0), PhaseChanged(2, Phase.CAPTURING))
    totals = view.totals()
    assert totals["median_latency_ms"]["response_ms"] == 600.0
    assert totals["median_latency_ms"]["first_token_ms"] is None
    assert totals == {**totals, "turns": 3, "answered": 2, "interrupted": 1, "failed": 0, "audio_ms": 400.0}
    assert totals_line(view) == "3 turns, 2 answered, 1 interrupted"
    assert totals_line(ConversationView()) == "0 turns, 0 answered"
    rows = [line for line in shown(latency_table(view)).splitlines() if "│" in line]
    assert [cell.strip() for cell in rows[1].split("│")[1:-1]] == ["1", "620", "1804", "", "2301", "700", "0.20"]
    assert [cell.strip() for cell in rows[3].split("│")[1:-1]][0::5] == ["median", "600"]
    json.dumps(view.as_json())


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        (Started("s", 16_000, "linear16", False), {"event": "started", "session_id": "s", "resumed": False}),
        (PhaseChanged(3, Phase.ERROR), {"event": "phase_change", "turn": 3, "phase": "error"}),
        (Failure(None, ErrorCode.TTS_FAIL, "x"), {"event": "error", "turn": None, "code": "TTS_FAIL", "message": "x"}),
        (chunk(1), {"event": "tts_chunk", "audio_bytes": 2, "duration_ms": 100.0, "phrase_text": "Well."}),
    ],
)
def test_events_as_json(event: ConversationEvent, expected: dict):
    content = json.loads(json.dumps(event_json(event, 12.34)))
    assert content["at_ms"] == 12.3
    assert "audio" not in content
    assert {name: content[name] for name in expected} == expected


# --- endings ------------------------------------------------------------------------------------------


def test_a_recording_has_been_answered_once_a_quiet_mark_comes_back():
    ending = Ending()
    assert ending.step(0, True, 0, set()) is Step.WAIT, "it still plays"
    assert ending.step(499, True, 0, set()) is Step.WAIT, "what was said last may not have been noticed"
    assert ending.step(500, False, 1, set()) is Step.WAIT, "a turn is under way"
    assert ending.step(540, True, 4, set()) is Step.ASK
    mark = ending.mark
    assert ending.step(580, True, 4, set()) is Step.WAIT
    assert ending.step(620, True, 4, {mark}) is Step.END


@pytest.mark.parametrize(("is_quiet", "then"), [(False, Step.WAIT), (True, Step.ASK)])
def test_what_happens_before_the_mark_comes_back_counts(is_quiet: bool, then: Step):
    ending = Ending()
    assert ending.step(500, True, 4, set()) is Step.ASK
    first = ending.mark
    assert ending.step(540, is_quiet, 5, {first}) is then
    if then is Step.WAIT:
        assert ending.step(580, True, 9, {first}) is Step.ASK
    assert ending.mark != first
    assert ending.step(620, True, 9 if then is Step.WAIT else 5, {first, ending.mark}) is Step.END


# --- the clock's loudspeaker --------------------------------------------------------------------------


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds
        await asyncio.sleep(0)


def test_the_clock_plays_as_long_as_a_loudspeaker():
    clock = Clock()
    player = ClockPlayer(clock)
    assert player.progress() == []
    player.play(chunk(0, 100))
    player.play(chunk(0, 200))
    assert player.unplayed_ms == pytest.approx(300)
    clock.now += 0.12
    assert player.progress() == [(0, pytest.approx(120))]
    assert player.progress() == []
    clock.now += 1
    assert player.progress() == [(0, pytest.approx(300))]
    assert player.unplayed_ms == 0
    player.play(chunk(0, 100))  # late: there was a pause
    clock.now += 0.05
    assert player.progress() == [(0, pytest.approx(350))]


def test_answers_are_played_one_after_the_other():
    clock = Clock()
    player = ClockPlayer(clock)
    player.play(chunk(0, 200))
    player.play(chunk(1, 100))
    clock.now += 0.1
    assert player.progress() == [(0, pytest.approx(100))]
    clock.now += 0.15
    assert player.progress() == [(0, pytest.approx(200)), (1, pytest.approx(50))]
    assert player.unplayed_ms == pytest.approx(50)


def test_what_is_stopped_is_not_played_any_more():
    clock = Clock()
    player = ClockPlayer(clock)
    player.play(chunk(0, 1000))
    clock.now += 0.3
    player.stop()
    clock.now += 1
    assert player.progress() == [(0, pytest.approx(300))]
    assert player.unplayed_ms == 0
    player.play(chunk(1, 100))
    assert player.unplayed_ms == pytest.approx(100)


# --- recordings ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("subtype", "suffix"), [("PCM_16", "wav"), ("FLOAT", "wav"), ("PCM_24", "flac")])
async def test_a_recording_comes_at_its_pace_and_silence_after_it(subtype: str, suffix: str, tmp_path: Path):
    samples = np.stack([np.linspace(-0.5, 0.5, 4410), np.full(4410, 0.25)], axis=1)
    path = tmp_path / f"stereo.{suffix}"
    soundfile.write(path, samples, 44_100, subtype=subtype)
    clock = Clock()
    audio = RecordingAudio(path, clock=clock, sleep=clock.sleep)
    assert (audio.sample_rate_hz, audio.channels) == (44_100, 2)
    pieces = audio.pieces()
    spoken, times = b"", []
    while not audio.silent_ms:
        piece = await anext(pieces)
        times.append(clock.now - 100)
        spoken += piece
    await pieces.aclose()
    audio.close()
    assert np.diff(times) == pytest.approx(PIECE_MS / 1000)
    received = np.frombuffer(spoken, "<i2").reshape(-1, 2) / 32768
    assert received[: len(samples)] == pytest.approx(samples, abs=2e-4)
    assert not received[len(samples) :].any()
    assert len(received) > len(samples)


async def test_what_comes_late_is_made_up_for(tmp_path: Path):
    path = tmp_path / "one.wav"
    soundfile.write(path, np.zeros(16_000), 16_000)
    clock = Clock()
    pieces = RecordingAudio(path, clock=clock, sleep=clock.sleep).pieces()
    await anext(pieces)
    clock.now += 1.0
    before = clock.now
    for _ in range(20):
        await anext(pieces)
    assert clock.now == before
    await pieces.aclose()


@pytest.mark.parametrize(
    ("name", "problem"),
    [("absent.wav", "No such file"), ("text.wav", "Format not recognised"), ("three.wav", "has 3 channels; 1 to 2")],
)
def test_what_is_no_recording_is_said_so(name: str, problem: str, tmp_path: Path):
    (tmp_path / "text.wav").write_text("no audio")
    soundfile.write(tmp_path / "three.wav", np.zeros((100, 3)), 16_000)
    with pytest.raises(CommandError, match=problem) as refused:
        RecordingAudio(tmp_path / name)
    assert (refused.value.field, refused.value.status) == ("FILE", 2)
