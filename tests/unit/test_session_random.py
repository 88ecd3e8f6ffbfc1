"""Whatever a client does in whatever order: the phases are legal, memory is right, and nothing is left running."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from taste_grpc.dialogue import TRANSITIONS, CascadeSettings, Phase
from taste_grpc.dialogue.events import (
    Cancel,
    ErrorCode,
    Failure,
    FinalTranscript,
    Interrupted,
    LlmToken,
    Mark,
    MarkReached,
    PartialTranscript,
    PhaseChanged,
    PlaybackAck,
    PlaybackCredit,
    ServerEvent,
    SpeechChunk,
    SpeechComplete,
    Started,
    Stop,
    TextTurn,
    TurnMetrics,
)
from taste_grpc.errors import LanguageModelError, SpeechError
from tests.support.scripted import Client, ScriptedModel, ScriptedTranscriber, ScriptedVoice, Scripts, passes, talking

# In which phases of its turn each event may come.
PLACES: dict[type[ServerEvent], set[Phase]] = {
    PartialTranscript: {Phase.CAPTURING, Phase.THINKING},
    FinalTranscript: {Phase.THINKING},
    LlmToken: {Phase.RESPONDING},
    SpeechChunk: {Phase.RESPONDING},
    SpeechComplete: {Phase.RESPONDING},
    Interrupted: {Phase.THINKING, Phase.RESPONDING},
    TurnMetrics: {Phase.COMPLETE, Phase.ERROR},
}


def check(client: Client, *, is_abrupt: bool) -> None:
    """What the events tell is one legal conversation; an abrupt end leaves some untold."""
    events = client.events
    assert not events or isinstance(events[0], Started)
    phase, turn = Phase.IDLE, 0
    of_turn: list[ServerEvent] = []
    for number, event in enumerate(events[1:], 1):
        if isinstance(event, PhaseChanged):
            assert event.phase in TRANSITIONS[phase], client.phases
            if event.phase is Phase.IDLE:
                check_turn(of_turn)
                of_turn, turn = [], turn + 1
            phase = event.phase
            assert event.turn == turn
        elif (places := PLACES.get(type(event))) is not None:
            assert phase in places, (phase, event)
            assert event.turn == turn  # type: ignore[union-attr]
        elif isinstance(event, Failure):
            assert event.code.recoverable or number == len(events) - 1
        of_turn.append(event)
    assert phase in (Phase.IDLE, Phase.ERROR) or client.session.is_over
    told = sum(token.done for token in client.of(LlmToken)) + len(client.of(Interrupted))
    updates = client.session.memory.updates
    assert updates >= told if is_abrupt else updates == told


def check_turn(told: list[ServerEvent]) -> None:
    """What is told of one turn that has ended."""
    kinds = [type(event) for event in told]
    assert kinds.count(TurnMetrics) == 1
    assert kinds.count(FinalTranscript) <= 1
    assert kinds.count(SpeechComplete) <= 1
    assert kinds.count(Interrupted) + sum(event.done for event in told if isinstance(event, LlmToken)) <= 1
    if FinalTranscript in kinds:
        assert PartialTranscript not in kinds[kinds.index(FinalTranscript) :]
    chunks = [event for event in told if isinstance(event, SpeechChunk)]
    assert [chunk.seq for chunk in chunks] == list(range(len(chunks)))
    failed = [event.code for event in told if isinstance(event, Failure)]
    if ErrorCode.CANCELLED in failed:
        assert Interrupted not in kinds
        assert not any(event.done for event in told if isinstance(event, LlmToken))


ACTIONS = [
    "speech",
    "noise",
    "pause",
    "long pause",
    "stop",
    "cancel",
    "text",
    "ack little",
    "ack all",
    "credit 0",
    "credit 100",
    "credit",
    "mark",
    "wait",
    "wait longer",
    "hold recogniser",
    "hold model",
    "hold voice",
    "let go",
    "recogniser fails",
    "model fails",
    "voice fails",
    "words",
    "no words",
    "read no more",
    "read on",
]
ENDS = ["half-close", "abrupt", "violation", "go away", "half-close and abrupt", "fault"]


def do(client: Client, scripts: Scripts, model_may: asyncio.Event) -> dict[str, Callable[[], Awaitable[Any] | None]]:
    session = client.session

    def let_go() -> None:
        model_may.set()
        scripts.voice.held.set()
        scripts.transcriber.held.set()
        scripts.voice.before.clear()
        scripts.model.steps = [model_may, "Well. ", "That is ", "a question."]

    def model_fails() -> None:
        scripts.model.steps = ["Half. ", LanguageModelError("no brain")]

    return {
        "speech": lambda: client.speak("#" * 10),
        "noise": lambda: client.speak("##..."),
        "pause": lambda: client.speak("." * 5),
        "long pause": lambda: client.speak("." * 25),
        "stop": lambda: client.send(Stop()),
        "cancel": lambda: client.send(Cancel()),
        "text": lambda: client.send(TextTurn("Well?")),
        "ack little": lambda: client.send(PlaybackAck(session.turns, 5)),
        "ack all": lambda: client.send(PlaybackAck(session.turns, 10**6)),
        "credit 0": lambda: client.send(PlaybackCredit(0)),
        "credit 100": lambda: client.send(PlaybackCredit(100)),
        "credit": lambda: client.send(PlaybackCredit(10**6)),
        "mark": lambda: client.send(Mark("m")),
        "wait": lambda: passes(5),
        "wait longer": lambda: asyncio.sleep(0.003),
        "hold recogniser": scripts.transcriber.held.clear,
        "hold model": model_may.clear,
        "hold voice": scripts.voice.held.clear,
        "let go": let_go,
        "recogniser fails": lambda: scripts.transcriber.failures.append(SpeechError("no ears")),
        "model fails": model_fails,
        "voice fails": lambda: scripts.voice.before.update({"Well.": SpeechError("no breath")}),
        "words": lambda: setattr(scripts.transcriber, "text", "some words"),
        "no words": lambda: setattr(scripts.transcriber, "text", ""),
        "read no more": client.read_no_more,
        "read on": client.read_on,
    }


async def end(client: Client, scripts: Scripts, how: str, let_go: Callable[[], Any]) -> None:
    session = client.session
    if how == "violation":
        session.violate("enough")
    elif how == "go away":
        session.go_away("token", 1, 1)
    elif how == "fault":
        scripts.model.steps = [ZeroDivisionError("oops")]
        await client.send(TextTurn("Well?"))
    if how.startswith(("half-close", "go away")):
        session.end_input()
        await passes(3)
    if how in ("half-close", "go away", "violation", "fault"):
        if how != "fault":
            let_go()
        client.read_on()
        await client.finished()
    await session.aclose()


@settings(max_examples=200, deadline=None)
@given(
    actions=st.lists(st.sampled_from(ACTIONS), max_size=25),
    ending=st.sampled_from(ENDS),
    barge_in=st.booleans(),
    audio_ms=st.sampled_from([10, 400]),
    most_ms=st.sampled_from([600, 30_000]),
)
def test_whatever_a_client_does(actions: list[str], ending: str, barge_in: bool, audio_ms: int, most_ms: int) -> None:
    async def play() -> None:
        model_may = asyncio.Event()
        model_may.set()
        scripts = Scripts(
            ScriptedTranscriber("some words"),
            ScriptedModel([model_may, "Well. ", "That is ", "a question."]),
            ScriptedVoice(audio_ms),
            CascadeSettings(max_pending_phrases=1),
        )
        limits = {"barge_in": barge_in, "max_utterance_ms": most_ms, "vad_silence_ms": 300, "barge_in_ms": 100}
        async with talking(scripts, **limits) as client:
            steps = do(client, scripts, model_may)
            for action in actions:
                step = steps[action]()
                if step is not None:
                    await step
            await end(client, scripts, ending, lambda: steps["let go"]())
        check(client, is_abrupt="abrupt" in ending)
        assert client.session.is_over
        assert scripts.transcriber.most_at_once <= 1
        assert len(client.of(MarkReached)) <= actions.count("mark")
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(play())
