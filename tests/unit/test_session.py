"""A live conversation: what goes in, what comes out, in which order, and how it ends."""

from __future__ import annotations

import asyncio
import io
import json
import time
from itertools import pairwise

import numpy as np
import pytest

from taste_grpc.dialogue import (
    TRANSITIONS,
    AnswerError,
    AnswerSink,
    CascadeSettings,
    DialogueMetrics,
    Message,
    Phase,
    Question,
)
from taste_grpc.dialogue.conversation import MOST_KEPT_MS, NOT_KEPT, NOTHING_HEARD, NOTHING_TO_CANCEL, TYPED_INSTEAD
from taste_grpc.dialogue.events import (
    AudioIn,
    Cancel,
    ErrorCode,
    Failure,
    FinalTranscript,
    GoingAway,
    Interrupted,
    LlmToken,
    Mark,
    MarkReached,
    PartialTranscript,
    PhaseChanged,
    PlaybackAck,
    PlaybackCredit,
    SpeechChunk,
    SpeechComplete,
    Started,
    Stop,
    TextTurn,
    TurnMetrics,
    VoiceChoice,
)
from taste_grpc.dialogue.memory import Exchange, Memory
from taste_grpc.dialogue.outbox import CLEAR, MOST_EVENTS, SLOW
from taste_grpc.dialogue.session import QUEUED_EVENTS
from taste_grpc.errors import LanguageModelError, SpeechError
from tests.support.scripted import (
    FRAME_MS,
    FRAME_SAMPLES,
    Client,
    ScriptedModel,
    ScriptedTranscriber,
    ScriptedVoice,
    Scripts,
    passes,
    talking,
    until,
)

SPOKEN = ["capturing", "thinking", "responding", "complete", "idle"]
TYPED = SPOKEN[1:]
ANSWER = "Well. That is a question."
PHASES = (Phase.IDLE, Phase.CAPTURING, Phase.THINKING, Phase.RESPONDING)


def check(client: Client) -> None:
    """What holds for every conversation, whatever was done to it."""
    current, turn = Phase.IDLE, 0
    for event in client.of(PhaseChanged):
        assert event.phase in TRANSITIONS[current], client.phases
        turn += event.phase is Phase.IDLE
        assert event.turn == turn, client.phases
        current = event.phase
    ends = sum(token.done for token in client.of(LlmToken))
    assert client.session.memory.updates == ends + len(client.of(Interrupted))
    for failure in client.of(Failure):
        assert failure.code.recoverable or failure is client.events[-1]


def turn_phases(client: Client, turn: int) -> list[str]:
    """The phases that a turn went through, and the IDLE after it."""
    return [phase for number, phase in client.phases if number - (phase == "idle") == turn]


async def reach(client: Client, scripts: Scripts, phase: Phase) -> None:
    """Bring the first turn into `phase`, and keep it there."""
    if phase is Phase.IDLE:
        return
    if phase is Phase.CAPTURING:
        await client.speak("#" * 20)
    elif phase is Phase.THINKING:
        scripts.model.steps = [asyncio.Event()]
        await client.speak("#" * 20)
        await client.send(Stop())
        await client.until(lambda: client.of(FinalTranscript))
        await until(lambda: scripts.model.open)
    elif phase is Phase.RESPONDING:
        scripts.voice.ms = 60_000
        await client.speak("#" * 20)
        await client.send(Stop())
        await client.until(lambda: client.of(SpeechChunk))
    await client.phase(phase)


# --- turns ---------------------------------------------------------------------------------------------------


async def test_a_spoken_turn() -> None:
    scripts = Scripts()
    async with talking(scripts) as client:
        await client.speak("." * 10 + "#" * 40)
        await client.until(lambda: client.of(PartialTranscript))
        await client.speak("." * 30)
        await client.idle()
    check(client)
    kinds = [type(event).__name__ for event in client.events]
    assert turn_phases(client, 0) == SPOKEN
    assert isinstance(client.events[0], Started)
    assert kinds.index("PartialTranscript") < kinds.index("FinalTranscript") < kinds.index("LlmToken")
    assert client.of(FinalTranscript)[0].text == "hello there"
    assert "".join(token.text for token in client.of(LlmToken)) == ANSWER
    assert [token.done for token in client.of(LlmToken)] == [False, False, False, True]
    assert [chunk.phrase_text for chunk in client.of(SpeechChunk) if chunk.phrase_text] == [
        "Well.",
        "That is a question.",
    ]
    complete = client.of(SpeechComplete)[0]
    assert complete.audio_ms == pytest.approx(sum(chunk.duration_ms for chunk in client.of(SpeechChunk)))
    assert complete.chunks == len(client.of(SpeechChunk))
    assert kinds[-5:] == ["SpeechComplete", "LlmToken", "PhaseChanged", "TurnMetrics", "PhaseChanged"]
    assert client.session.memory.exchanges == (Exchange("hello there", ANSWER),)
    assert scripts.model.asked == [[Message("system", "Be kind."), Message("user", "hello there")]]
    times = client.of(TurnMetrics)[0]
    assert None not in (times.first_partial_ms, times.final_transcript_ms, times.first_token_ms, times.response_ms)
    assert times.first_token_ms <= times.first_audio_ms  # type: ignore[operator]


async def test_silence_ends_a_turn_that_was_captured_from_before_its_first_frame() -> None:
    scripts = Scripts()
    async with talking(scripts, vad_silence_ms=320) as client:
        await client.speak("." * 30 + "#" * 30)
        await client.speak("." * 8)
        await client.phase(Phase.CAPTURING)
        await passes()
        assert client.session.phase is Phase.CAPTURING
        await client.speak("." * 2)
        await client.idle()
    final = client.of(FinalTranscript)[0]
    assert final.audio_ms == 46 * FRAME_MS  # 6 frames before the speech, its 30, 10 of silence
    check(client)


async def test_a_noise_begins_no_turn() -> None:
    async with talking() as client:
        await client.speak("##....##....##........")
        await client.send(Mark("heard"))
        await client.until(lambda: client.of(MarkReached))
        assert client.phases == []


async def test_a_typed_turn() -> None:
    scripts = Scripts()
    async with talking(scripts) as client:
        await client.send(TextTurn("How are you?"))
        await client.idle()
        await client.send(TextTurn("And now?"))
        await client.idle(2)
    check(client)
    assert turn_phases(client, 0) == turn_phases(client, 1) == TYPED
    assert client.of(FinalTranscript) == []
    assert [message.text for message in scripts.model.asked[1]] == ["Be kind.", "How are you?", ANSWER, "And now?"]
    times = client.of(TurnMetrics)[0]
    assert (times.first_partial_ms, times.final_transcript_ms, times.response_ms) == (None, None, None)
    assert times.first_audio_ms is not None


async def test_the_voice_and_the_language_are_those_of_the_client() -> None:
    scripts = Scripts(voice=ScriptedVoice(ms=100))
    async with talking(scripts, voice=VoiceChoice(sample_rate_hz=48_000), language="pt-BR", max_new_tokens=7) as client:
        await client.speak("#" * 10)
        await client.send(Stop())
        await client.idle()
    assert {chunk.sample_rate_hz for chunk in client.of(SpeechChunk)} == {48_000}
    assert sum(len(chunk.samples) for chunk in client.of(SpeechChunk)) == 2 * 4_800
    assert {call.language for call in scripts.transcriber.calls} == {"pt-BR"}
    assert [sampling.max_new_tokens for sampling in scripts.model.samplings] == [7]
    started = client.of(Started)[0]
    assert (started.voice.sample_rate_hz, started.resumed) == (48_000, False)
    assert started.session_id == client.session.session_id


async def test_marks_come_back_in_order_after_what_was_sent_before_them() -> None:
    async with talking() as client:
        await client.send(Mark("a"))
        await client.speak("#" * 10)
        await client.send(Mark("b"), Stop(), Mark("c"), Mark("c"))
        await client.until(lambda: len(client.of(MarkReached)) == 4)
        told = [event for event in client.events if isinstance(event, MarkReached | PhaseChanged)]
    assert [event.id for event in client.of(MarkReached)] == ["a", "b", "c", "c"]
    assert told[:5] == [
        MarkReached("a"),
        PhaseChanged(0, Phase.CAPTURING),
        MarkReached("b"),
        PhaseChanged(0, Phase.THINKING),
        MarkReached("c"),
    ]


@pytest.mark.parametrize("how", ["silence", "stop"])
async def test_a_turn_without_words_is_over_at_once(how: str) -> None:
    scripts = Scripts(ScriptedTranscriber("  "))
    async with talking(scripts) as client:
        await client.speak("#" * 10)
        await (client.speak("." * 30) if how == "silence" else client.send(Stop()))
        await client.idle()
    assert turn_phases(client, 0) == ["capturing", "thinking", "complete", "idle"]
    assert client.notices == [NOTHING_HEARD]
    assert client.of(FinalTranscript) == []
    assert scripts.model.asked == []
    check(client)


async def test_a_blank_typed_turn_is_over_at_once() -> None:
    scripts = Scripts()
    async with talking(scripts) as client:
        await client.send(TextTurn(" \n"))
        await client.idle()
    assert turn_phases(client, 0) == ["thinking", "complete", "idle"]
    assert scripts.model.asked == []
    check(client)


# --- stop ----------------------------------------------------------------------------------------------------


async def test_stop_without_a_word_is_an_empty_turn() -> None:
    async with talking() as client:
        await client.send(Stop())
        await client.idle()
    assert turn_phases(client, 0) == ["capturing", "complete", "idle"]
    assert client.notices == [NOTHING_HEARD]
    check(client)


async def test_stop_takes_the_shortest_word_for_a_turn() -> None:
    async with talking() as client:
        await client.speak("#")
        await client.send(Stop())
        await client.idle()
    assert turn_phases(client, 0) == SPOKEN
    assert client.session.memory.updates == 1


@pytest.mark.parametrize("phase", [Phase.THINKING, Phase.RESPONDING])
async def test_stop_is_too_late_for_an_answer(phase: Phase) -> None:
    scripts = Scripts()
    async with talking(scripts) as client:
        await reach(client, scripts, phase)
        await client.send(Stop(), Mark("stopped"))
        await client.until(lambda: client.of(MarkReached))
        assert client.session.phase is phase
        assert client.session.turns == 0
    check(client)


# --- limits of a turn ----------------------------------------------------------------------------------------


async def test_a_turn_that_is_too_long_is_answered_and_speech_that_goes_on_begins_no_other() -> None:
    scripts = Scripts()
    async with talking(scripts, max_utterance_ms=1_000) as client:
        for _ in range(20):
            await client.speak("#" * 20)
        await client.idle()
        for _ in range(5):
            await client.speak("#" * 20)
        await client.send(Mark("still speaking"))
        await client.until(lambda: client.of(MarkReached))
        assert client.session.phase is Phase.IDLE
        assert client.codes == ["MAX_DURATION_EXCEEDED"]
        assert turn_phases(client, 0) == SPOKEN
        assert 1_000 <= client.of(FinalTranscript)[0].audio_ms < 1_000 + FRAME_MS
        await client.speak("." * 20 + "#" * 10)
        await client.phase(Phase.CAPTURING, 1)
    check(client)


async def test_a_turn_of_too_many_bytes_is_answered() -> None:
    async with talking(max_utterance_bytes=30_000) as client:
        for _ in range(4):
            await client.speak("#" * 10)
        await client.idle()
    assert client.codes == ["MAX_DURATION_EXCEEDED"]
    assert "30000 bytes" in client.of(Failure)[0].message
    assert client.session.memory.updates == 1
    check(client)


# --- cancel --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("phase", PHASES)
async def test_cancel_in_every_phase(phase: Phase) -> None:
    scripts = Scripts()
    async with talking(scripts) as client:
        await reach(client, scripts, phase)
        await client.send(Cancel())
        if phase is Phase.IDLE:
            await client.until(lambda: client.notices)
            assert client.notices == [NOTHING_TO_CANCEL]
            assert client.phases == []
            return
        await client.idle()
        await until(lambda: (scripts.model.open, scripts.voice.open, scripts.transcriber.running) == (0, 0, 0))
        assert turn_phases(client, 0)[-2:] == ["complete", "idle"]
        assert client.codes == ["CANCELLED"]
        kinds = [type(event).__name__ for event in client.events]
        told = kinds[kinds.index("Failure") :]
        assert told == ["Failure", "PhaseChanged", "TurnMetrics", "PhaseChanged"]
        assert not any(token.done for token in client.of(LlmToken))
        assert client.session.memory.updates == 0
        scripts.model.steps, scripts.voice.ms = ["Yes."], 10
        await client.send(TextTurn("Once more"))
        await client.idle(2)
        assert client.session.memory.exchanges == (Exchange("Once more", "Yes."),)
    check(client)


async def test_cancel_while_the_recogniser_works() -> None:
    scripts = Scripts()
    scripts.transcriber.held.clear()
    async with talking(scripts) as client:
        await client.speak("#" * 30)
        await client.send(Stop())
        await client.phase(Phase.THINKING)
        await client.send(Cancel())
        await client.idle()
    assert turn_phases(client, 0) == ["capturing", "thinking", "complete", "idle"]
    assert client.of(FinalTranscript) == []
    check(client)


async def test_cancel_of_an_answer_that_is_only_still_being_played() -> None:
    scripts = Scripts(voice=ScriptedVoice(ms=1_000))
    async with talking(scripts) as client:
        await client.send(TextTurn("Talk"))
        await client.until(lambda: client.of(SpeechComplete))
        await client.send(Cancel())
        await client.idle()
    assert client.session.memory.updates == 0
    assert not any(token.done for token in client.of(LlmToken))
    check(client)


async def test_speech_that_goes_on_after_a_cancel_was_cancelled_too() -> None:
    async with talking() as client:
        await client.speak("#" * 10)
        await client.send(Cancel())
        await client.speak("#" * 30)
        await client.send(Mark("spoken"))
        await client.until(lambda: client.of(MarkReached))
        assert client.session.phase is Phase.IDLE
        await client.speak("." * 15 + "#" * 5)
        await client.phase(Phase.CAPTURING, 1)
    check(client)


@pytest.mark.parametrize("complaint", [LanguageModelError("connection lost"), ZeroDivisionError("oops")])
async def test_a_model_that_complains_of_a_cancel_does_not_disturb_the_next_turn(complaint: Exception) -> None:
    scripts = Scripts(model=ScriptedModel([asyncio.Event()], on_close=complaint))
    async with talking(scripts) as client:
        await client.send(TextTurn("One"))
        await until(lambda: scripts.model.open)
        scripts.model.steps = ["Two."]
        await client.send(Cancel(), TextTurn("Two"))
        await client.idle(2)
    assert turn_phases(client, 1) == TYPED
    assert client.codes == ["CANCELLED"]
    check(client)


# --- barge-in ------------------------------------------------------------------------------------------------


async def test_speech_interrupts_an_answer_and_what_was_heard_is_remembered() -> None:
    scripts = Scripts()
    async with talking(scripts) as client:
        await reach(client, scripts, Phase.RESPONDING)
        await client.until(lambda: any(chunk.phrase_text for chunk in client.of(SpeechChunk)))
        await client.send(PlaybackAck(0, 100_000))  # more than was sent
        await client.speak("#" * 8)
        await client.phase(Phase.CAPTURING, 1)
        assert turn_phases(client, 0) == SPOKEN
        (interrupted,) = client.of(Interrupted)
        assert not interrupted.estimated
        assert interrupted.heard_ms <= sum(chunk.duration_ms for chunk in client.of(SpeechChunk))
        assert client.session.memory.exchanges == (Exchange("hello there", interrupted.heard_text),)
        assert not any(token.done for token in client.of(LlmToken))
        await client.speak("." * 30)
        await client.phase(Phase.THINKING, 1)
    check(client)


async def test_the_heard_part_is_cut_where_the_client_says() -> None:
    scripts = Scripts(voice=ScriptedVoice(ms=1_000))
    async with talking(scripts) as client:
        await client.send(TextTurn("Talk"))
        await client.until(lambda: client.of(SpeechComplete))
        await client.send(PlaybackAck(0, 1_600))
        await client.speak("#" * 8)
        await client.phase(Phase.CAPTURING, 1)
        assert client.of(Interrupted) == [Interrupted(0, 1_600, "Well. That is a", estimated=False)]
        assert client.session.memory.exchanges == (Exchange("Talk", "Well. That is a"),)
    check(client)


async def test_without_acks_the_time_since_sending_is_the_estimate() -> None:
    now = [50.0]
    scripts = Scripts(voice=ScriptedVoice(ms=1_000))
    async with talking(scripts, clock=lambda: now[0]) as client:
        await client.send(TextTurn("Talk"))
        await client.until(lambda: client.of(SpeechComplete))
        now[0] += 1.3
        await client.speak("#" * 8)
        await client.phase(Phase.CAPTURING, 1)
        assert client.of(Interrupted) == [Interrupted(0, 1_300, "Well. That", estimated=True)]
    check(client)


async def test_audio_that_never_left_was_not_heard() -> None:
    now = [50.0]
    scripts = Scripts(voice=ScriptedVoice(ms=10_000))
    async with talking(scripts, clock=lambda: now[0]) as client:
        client.read_no_more()
        await client.send(TextTurn("Talk"))
        await until(lambda: client.session._outbox.unread >= 8)
        await passes()
        now[0] += 3_600.0
        await client.speak("#" * 8)
        await until(lambda: client.session.turns == 1)
        client.read_on()
        await client.phase(Phase.CAPTURING, 1)
        (interrupted,) = client.of(Interrupted)
        assert interrupted.heard_ms == round(sum(chunk.duration_ms for chunk in client.of(SpeechChunk)))
    check(client)


async def test_speech_before_the_first_token_merges_the_questions() -> None:
    scripts = Scripts()
    async with talking(scripts) as client:
        await reach(client, scripts, Phase.THINKING)
        scripts.model.steps = ["Yes."]
        scripts.transcriber.text = "my friend"
        await client.speak("#" * 8)
        await client.phase(Phase.CAPTURING, 1)
        assert client.of(Interrupted) == [Interrupted(0, 0, "", estimated=True)]
        assert turn_phases(client, 0) == ["capturing", "thinking", "complete", "idle"]
        await client.send(Stop())
        await client.idle(2)
    assert scripts.model.asked[-1][-1] == Message("user", "hello there\nmy friend")
    assert client.session.memory.updates == 2
    check(client)


@pytest.mark.parametrize("phase", [Phase.THINKING, Phase.RESPONDING])
async def test_a_shorter_noise_does_not_interrupt(phase: Phase) -> None:
    scripts = Scripts()
    async with talking(scripts, barge_in_ms=240) as client:
        await reach(client, scripts, phase)
        await client.speak("." * 5 + "#" * 7 + "." * 40)
        await client.send(Mark("heard"))
        await client.until(lambda: client.of(MarkReached))
        assert client.session.phase is phase
        assert client.of(Interrupted) == []
    check(client)


async def test_silence_does_not_interrupt_even_when_any_speech_does() -> None:
    scripts = Scripts()
    async with talking(scripts, barge_in_ms=0) as client:
        await reach(client, scripts, Phase.RESPONDING)
        await client.speak("." * 20)
        await client.send(Mark("heard"))
        await client.until(lambda: client.of(MarkReached))
        assert client.session.phase is Phase.RESPONDING
        await client.speak("#")
        await client.phase(Phase.CAPTURING, 1)
    check(client)


async def test_nothing_interrupts_where_that_is_not_wanted() -> None:
    scripts = Scripts(voice=ScriptedVoice(ms=100))
    async with talking(scripts, barge_in=False) as client:
        client.read_no_more()
        await client.send(TextTurn("Talk"))
        await until(lambda: client.session.phase is Phase.RESPONDING)
        await client.speak("#" * 50)
        client.read_on()
        await client.idle()
        await client.speak("#" * 50)  # it goes on from before
        await client.send(Mark("heard"))
        await client.until(lambda: client.of(MarkReached))
        assert client.session.phase is Phase.IDLE
        await client.speak("." * 15 + "#" * 5)
        await client.phase(Phase.CAPTURING, 1)
    assert client.of(Interrupted) == []
    check(client)


async def test_what_is_said_while_the_words_before_are_being_understood_is_not_lost() -> None:
    scripts = Scripts()
    scripts.transcriber.held.clear()
    async with talking(scripts) as client:
        await client.speak("#" * 10)
        await client.send(Stop())
        await client.phase(Phase.THINKING)
        scripts.model.steps = [asyncio.Event()]
        await client.speak("#" * 20)
        assert client.of(Interrupted) == []
        scripts.transcriber.held.set()
        await client.until(lambda: client.of(FinalTranscript))
        await client.speak("#")
        await client.phase(Phase.CAPTURING, 1)
        scripts.model.steps = ["Yes."]
        await client.speak("." * 30)
        await client.idle(2)
        assert client.of(FinalTranscript)[1].audio_ms >= 21 * FRAME_MS
    check(client)


async def understanding(client: Client, scripts: Scripts) -> None:
    """The recogniser is at the words of the first turn, and stays there until `transcriber.held` is set."""
    scripts.transcriber.held.clear()
    await client.speak("#" * 10)
    await client.send(Stop())
    await client.phase(Phase.THINKING)


@pytest.mark.parametrize("ends", ["silence", "stop", "half-close"])
async def test_words_that_end_while_those_before_are_being_understood_are_a_turn(ends: str) -> None:
    scripts = Scripts()
    scripts.transcriber.text = lambda ms: "my friend" if ms > 600 else "hello there"
    async with talking(scripts) as client:
        await understanding(client, scripts)
        await client.speak("." * 10 + "#" * 20)
        if ends == "silence":
            await client.speak("." * 30)
        elif ends == "stop":
            await client.send(Stop())
        else:
            client.session.end_input()
        await client.send(Mark("heard"))
        await client.until(lambda: client.of(MarkReached))
        assert client.session.phase is Phase.THINKING
        scripts.transcriber.held.set()
        await client.idle(2)
        assert client.session.is_over == (ends == "half-close")
    assert [final.text for final in client.of(FinalTranscript)] == ["hello there", "my friend"]
    assert turn_phases(client, 0) == ["capturing", "thinking", "complete", "idle"]
    assert turn_phases(client, 1) == SPOKEN
    assert scripts.model.asked[-1][-1] == Message("user", "hello there\nmy friend")
    if ends == "silence":
        assert client.of(TurnMetrics)[1].response_ms >= 30 * FRAME_MS, "counted from the end of the words"
    check(client)


@pytest.mark.parametrize("first", ["", SpeechError("no ears")])
async def test_words_after_some_that_were_not_understood_are_a_turn(first: str | Exception) -> None:
    scripts = Scripts()
    async with talking(scripts) as client:
        await understanding(client, scripts)
        await client.speak("." * 10 + "#" * 20 + "." * 30)
        await client.send(Mark("heard"))
        await client.until(lambda: client.of(MarkReached))
        if isinstance(first, str):
            scripts.transcriber.text = lambda ms: "my friend" if ms > 600 else first
        else:
            scripts.transcriber.failures = [first, first]  # of the pause, and of the whole
        scripts.transcriber.held.set()
        await client.idle(2)
    assert [final.text for final in client.of(FinalTranscript)] == ["hello there" if first else "my friend"]
    assert turn_phases(client, 1) == SPOKEN
    check(client)


async def test_a_stop_without_words_while_those_before_are_being_understood_is_no_turn() -> None:
    scripts = Scripts()
    scripts.transcriber.text = ""
    async with talking(scripts) as client:
        await understanding(client, scripts)
        await client.speak("." * 10)
        await client.send(Stop(), Mark("heard"))
        await client.until(lambda: client.of(MarkReached))
        scripts.transcriber.held.set()
        await client.idle()
        await client.send(Mark("after"))
        await client.until(lambda: len(client.of(MarkReached)) == 2)
        assert client.session.turns == 1
    check(client)


@pytest.mark.parametrize("how", [Cancel(), TextTurn("Never mind")])
async def test_words_before_a_cancel_or_a_typed_turn_are_not_meant(how: Cancel | TextTurn) -> None:
    scripts = Scripts()
    async with talking(scripts) as client:
        await understanding(client, scripts)
        await client.speak("." * 30 + "#" * 20)  # and still speaks
        await client.send(how, Mark("done"))
        await client.until(lambda: client.of(MarkReached))
        scripts.transcriber.held.set()
        turns = 1 if isinstance(how, Cancel) else 2
        await client.idle(turns)
        await client.speak("#" * 20)
        await client.send(Mark("heard"))
        await client.until(lambda: len(client.of(MarkReached)) == 2)
        assert client.session.phase is Phase.IDLE
        await client.speak("." * 15 + "#" * 10)
        await client.phase(Phase.CAPTURING, turns)
    check(client)


@pytest.mark.parametrize("first_end", ["stop", "silence"])
async def test_each_of_several_turns_that_wait_for_the_recogniser_ends_as_it_did(first_end: str) -> None:
    scripts = Scripts()
    async with talking(scripts) as client:
        await understanding(client, scripts)
        await client.speak("." * 10 + "#" * 20)
        if first_end == "stop":
            await client.send(Stop())
        await client.speak("." * 30 + "#" * 20)
        await client.send(Stop(), Mark("heard"))  # and nothing more comes of the microphone
        await client.until(lambda: client.of(MarkReached))
        scripts.transcriber.held.set()
        await client.idle(3)
    assert len(client.of(FinalTranscript)) == 3
    assert turn_phases(client, 2) == SPOKEN
    check(client)


async def test_the_times_of_a_turn_that_waited_count_from_its_words() -> None:
    scripts, waited_s = Scripts(), 0.0
    async with talking(scripts, clock=lambda: time.monotonic() + waited_s) as client:
        await understanding(client, scripts)
        await client.speak("#" * 20)
        await client.send(Stop(), Mark("heard"))
        await client.until(lambda: client.of(MarkReached))
        waited_s = 100.0
        scripts.transcriber.held.set()
        await client.idle(2)
    assert client.of(TurnMetrics)[1].response_ms >= 100_000
    check(client)


async def test_words_that_are_too_long_to_wait_for_the_recogniser_are_left_out_which_is_told() -> None:
    scripts = Scripts()
    scripts.model.steps = [asyncio.Event()]
    async with talking(scripts) as client:
        await understanding(client, scripts)
        await client.speak("#" * round(MOST_KEPT_MS / FRAME_MS + 50))
        await client.send(*[Stop()] * 100, Mark("heard"))
        await client.until(lambda: client.of(MarkReached))
        scripts.transcriber.held.set()
        await until(lambda: scripts.model.open)
        await client.speak("#" * 30)  # of the same words
        await client.send(Mark("more"))
        await client.until(lambda: len(client.of(MarkReached)) == 2)
        assert client.session.phase is Phase.THINKING
        assert client.of(Interrupted) == []
        await client.speak("." * 15 + "#" * 10)
        await client.phase(Phase.CAPTURING, 1)
    assert client.notices == [NOT_KEPT]
    check(client)


# --- typed turns in every phase ------------------------------------------------------------------------------


@pytest.mark.parametrize("phase", PHASES)
async def test_a_typed_turn_in_every_phase(phase: Phase) -> None:
    scripts = Scripts()
    async with talking(scripts) as client:
        await reach(client, scripts, phase)
        scripts.model.steps, scripts.voice.ms = ["Yes."], 10
        await client.send(TextTurn("Never mind"))
        turns = 1 if phase is Phase.IDLE else 2
        await client.idle(turns)
        assert turn_phases(client, turns - 1) == TYPED
        assert client.session.memory.exchanges[-1] == Exchange("Never mind", "Yes.")
        assert len(client.of(Interrupted)) == (phase in (Phase.THINKING, Phase.RESPONDING))
        assert (TYPED_INSTEAD in client.notices) == (phase is Phase.CAPTURING)
    check(client)


async def test_a_typed_turn_takes_the_place_of_words_that_are_being_understood() -> None:
    scripts = Scripts()
    scripts.transcriber.held.clear()
    async with talking(scripts) as client:
        await client.speak("#" * 10)
        await client.send(Stop())
        await client.phase(Phase.THINKING)
        await client.send(TextTurn("Never mind"))
        await client.idle(2)
    assert client.notices == [TYPED_INSTEAD]
    assert client.session.memory.exchanges == (Exchange("Never mind", ANSWER),)
    check(client)


async def test_a_typed_turn_while_an_answer_is_only_being_played_leaves_it_whole() -> None:
    scripts = Scripts(voice=ScriptedVoice(ms=60_000))
    async with talking(scripts) as client:
        await client.send(TextTurn("One"))
        await client.until(lambda: client.of(SpeechComplete))
        scripts.voice.ms = 10
        await client.send(TextTurn("Two"))
        await client.idle(2)
    assert client.session.memory.exchanges == (Exchange("One", ANSWER), Exchange("Two", ANSWER))
    assert client.of(Interrupted) == []
    check(client)


# --- playback ------------------------------------------------------------------------------------------------


async def test_a_turn_lasts_until_its_answer_has_been_played() -> None:
    scripts = Scripts(voice=ScriptedVoice(ms=60_000))
    async with talking(scripts) as client:
        await client.send(TextTurn("Talk"))
        await client.until(lambda: client.of(SpeechComplete))
        await client.send(PlaybackAck(0, 119_999), PlaybackAck(7, 120_000), Mark("acked"))
        await client.until(lambda: client.of(MarkReached))
        assert client.session.phase is Phase.RESPONDING
        await client.send(PlaybackAck(0, 120_000))
        await client.idle()
    assert client.session.memory.exchanges == (Exchange("Talk", ANSWER),)
    check(client)


async def test_a_credit_holds_for_the_answers_that_follow_and_can_be_changed() -> None:
    scripts = Scripts(voice=ScriptedVoice(ms=1_000))
    async with talking(scripts) as client:
        await client.send(PlaybackCredit(0), TextTurn("Talk"))
        await client.until(lambda: len(client.of(LlmToken)) == 3)
        await passes(50)
        assert client.of(SpeechChunk) == []
        await client.send(PlaybackCredit(500), PlaybackAck(0, 0))
        await client.until(lambda: len(client.of(SpeechChunk)) >= 2)
        await passes(50)
        assert sum(chunk.duration_ms for chunk in client.of(SpeechChunk)) <= 500
        await client.send(PlaybackCredit(60_000))
        await client.until(lambda: client.of(SpeechComplete))
        await client.send(PlaybackAck(0, 2_000))
        await client.idle()
    check(client)


# --- failures ------------------------------------------------------------------------------------------------


async def failing_turn(scripts: Scripts, code: ErrorCode, message: str, **settings: float) -> Client:
    """A spoken turn that fails recoverably; the next one works."""
    async with talking(scripts, **settings) as client:
        await client.speak("#" * 10)
        await client.send(Stop())
        await client.idle()
        failure = client.of(Failure)[0]
        assert (failure.turn, failure.code) == (0, code)
        assert message in failure.message
        assert turn_phases(client, 0)[-2:] == ["error", "idle"]
        assert client.session.memory.updates == 0
        scripts.transcriber.held.set()
        scripts.model.steps = ["Yes."]
        await client.send(TextTurn("And now?"))
        await client.idle(2)
        assert client.session.memory.exchanges == (Exchange("And now?", "Yes."),)
    assert client.codes == [code.value]
    assert scripts.metrics.registry.get_sample_value("taste_converse_errors_total", {"code": code.value}) == 1
    check(client)
    return client


async def test_a_recogniser_that_fails() -> None:
    scripts = Scripts(ScriptedTranscriber(failures=[SpeechError("no ears")] * 3))
    client = await failing_turn(scripts, ErrorCode.ASR_FAIL, "no ears")
    assert turn_phases(client, 0) == ["capturing", "thinking", "error", "idle"]


async def test_a_recogniser_that_takes_too_long() -> None:
    scripts = Scripts()
    scripts.transcriber.held.clear()
    client = await failing_turn(scripts, ErrorCode.ASR_TIMEOUT, "longer than 0.3 s", asr_timeout_s=0.3)
    assert turn_phases(client, 0) == ["capturing", "thinking", "error", "idle"]


async def test_a_model_that_fails_at_once() -> None:
    scripts = Scripts(model=ScriptedModel([LanguageModelError("no brain")]))
    client = await failing_turn(scripts, ErrorCode.LLM_FAIL, "no brain")
    assert turn_phases(client, 0) == ["capturing", "thinking", "error", "idle"]


async def test_a_model_that_fails_in_the_middle_of_an_answer() -> None:
    scripts = Scripts(model=ScriptedModel(["Half. ", LanguageModelError("no brain")]))
    client = await failing_turn(scripts, ErrorCode.LLM_FAIL, "no brain")
    assert turn_phases(client, 0) == ["capturing", "thinking", "responding", "error", "idle"]
    assert not any(token.done for token in client.of(LlmToken) if token.turn == 0)


@pytest.mark.parametrize("steps", [[], [" ", "\n"]])
async def test_a_model_that_says_nothing(steps: list[str]) -> None:
    await failing_turn(Scripts(model=ScriptedModel(steps)), ErrorCode.LLM_FAIL, "gave no answer")


async def test_a_model_that_takes_too_long() -> None:
    scripts = Scripts(cascade=CascadeSettings(llm_first_token_timeout_s=0.3))
    scripts.model.steps = [asyncio.Event()]
    await failing_turn(scripts, ErrorCode.LLM_TIMEOUT, "0.3 s for its first token")


async def test_a_phrase_that_cannot_be_spoken_is_told_and_the_answer_is_whole() -> None:
    scripts = Scripts(voice=ScriptedVoice(ms=20, before={"Well.": SpeechError("no breath")}))
    async with talking(scripts) as client:
        await client.send(TextTurn("Talk"))
        await client.idle()
    assert client.codes == ["TTS_FAIL"]
    assert turn_phases(client, 0) == TYPED
    assert [chunk.phrase_text for chunk in client.of(SpeechChunk) if chunk.phrase_text] == ["That is a question."]
    assert client.session.memory.exchanges == (Exchange("Talk", ANSWER),)
    check(client)


async def test_an_answer_of_which_nothing_can_be_spoken_is_still_one() -> None:
    everything = {phrase: SpeechError("no breath") for phrase in ("Well.", "That is a question.")}
    async with talking(Scripts(voice=ScriptedVoice(before=everything))) as client:
        await client.send(TextTurn("Talk"))
        await client.idle()
    assert client.codes == ["TTS_FAIL"] * 2
    assert client.of(SpeechComplete) == [SpeechComplete(0, 0, 0.0)]
    assert client.session.memory.updates == 1
    check(client)


class Fault(Exception):
    """Nobody foresaw it."""


def faulty(where: str) -> Scripts:
    if where == "model":
        return Scripts(model=ScriptedModel(["Half. ", Fault("secret")]))
    if where == "voice":
        return Scripts(voice=ScriptedVoice(before={"Well.": Fault("secret")}))
    return Scripts(ScriptedTranscriber(failures=[Fault("secret")]))


@pytest.mark.parametrize("where", ["recogniser", "model", "voice"])
async def test_a_fault_ends_the_conversation_and_no_other(where: str, caplog: pytest.LogCaptureFixture) -> None:
    async with talking() as other, talking(faulty(where)) as client:
        await reach(other, Scripts(), Phase.CAPTURING)
        await client.speak("#" * 10)
        await client.send(Stop())
        await client.finished()
        failure = client.events[-1]
        assert isinstance(failure, Failure)
        assert (failure.turn, failure.code) == (0, ErrorCode.INTERNAL)
        assert client.session.session_id in failure.message
        assert "secret" not in failure.message
        assert client.session.is_over
        assert client.phases[-1] == (0, "error")
        assert client.session.memory.updates == 0
        await client.send(TextTurn("Anybody there?"))
        await other.send(Stop())
        await other.idle()
    assert other.codes == []
    assert [record.message for record in caplog.records] == ["turn failed"]
    check(client)
    check(other)


async def test_a_part_that_ends_under_a_turn_is_a_fault(caplog: pytest.LogCaptureFixture) -> None:
    scripts = Scripts()

    async def end_under_it() -> None:
        raise asyncio.CancelledError

    scripts.transcriber.step = end_under_it
    async with talking(scripts) as client:
        await client.speak("#" * 10)
        await client.send(Stop())
        await client.finished()
    assert client.codes == ["INTERNAL"]
    assert [record.message for record in caplog.records] == ["turn was cut off"]


async def test_a_fault_of_the_ear_ends_the_conversation(caplog: pytest.LogCaptureFixture) -> None:
    async with talking() as client:
        client.session._ear.push = None  # type: ignore[method-assign, assignment]
        await client.speak("#")
        await client.finished()
    assert client.codes == ["INTERNAL"]
    assert [record.message for record in caplog.records] == ["conversation failed"]


@pytest.mark.parametrize("data", [b"", b"123"])
async def test_half_a_sample_is_a_violation(data: bytes) -> None:
    async with talking() as client:
        await client.speak("#" * 10)
        await client.send(AudioIn(data), TextTurn("More"))
        await client.finished()
    assert client.codes == ["PROTOCOL_VIOLATION"]
    assert f"has {len(data)} bytes" in client.of(Failure)[0].message
    check(client)


@pytest.mark.parametrize("phase", PHASES)
async def test_a_violation_ends_the_conversation_in_every_phase(phase: Phase) -> None:
    scripts = Scripts()
    async with talking(scripts) as client:
        await reach(client, scripts, phase)
        await client.send(Mark("queued"), TextTurn("queued"))
        client.session.violate("start: came twice")
        client.session.violate("start: came three times")
        await client.finished()
        assert client.codes == ["PROTOCOL_VIOLATION"]
        assert client.of(Failure)[0].message == "start: came twice"
        assert client.session.is_over
        assert client.session.memory.updates == 0
        assert len(client.of(TurnMetrics)) == (phase is not Phase.IDLE)
        failed = scripts.metrics.registry.get_sample_value("taste_turns_total", {"end": "failed"})
        assert failed == (None if phase is Phase.IDLE else 1)
    assert client.events[-1] is client.of(Failure)[0]
    check(client)


async def test_audio_that_is_looked_at_while_the_conversation_ends_is_dropped(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with talking() as client:
        await client.speak("#" * 200)
        await passes(2)  # a thread looks at it
        client.session.violate("enough")
        await client.finished()
    assert client.phases == []
    assert client.codes == ["PROTOCOL_VIOLATION"]
    assert caplog.records == []


# --- other ways to answer ------------------------------------------------------------------------------------


class Stubborn:
    """Goes on with its answer when it is told to stop; `may_end` lets it."""

    name = "stubborn"

    def __init__(self) -> None:
        self.may_end = asyncio.Event()
        self.asked = 0

    async def answer(self, question: Question, sink: AnswerSink) -> None:
        self.asked += 1
        if self.asked > 1:
            await asyncio.Event().wait()
        await sink.token("First. ")
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await self.may_end.wait()
            await sink.token("Late. ")
            await sink.audio(0, "Late.", np.ones(1_600, np.float32), 16_000)
            sink.notice("late")
            sink.phrase_failed("Late.", "late")
            raise AnswerError(ErrorCode.LLM_FAIL, "late") from None


async def test_what_still_comes_of_an_answer_that_was_given_up_is_not_the_next_ones() -> None:
    scripts = Scripts()
    scripts.answerer = stubborn = Stubborn()
    async with talking(scripts) as client:
        await client.send(TextTurn("One"))
        await client.until(lambda: client.of(LlmToken))
        await client.send(TextTurn("Two"))
        await client.phase(Phase.THINKING, 1)
        stubborn.may_end.set()
        await passes(50)
        assert client.session.phase is Phase.THINKING
        assert [token.text for token in client.of(LlmToken)] == ["First. "]
        assert (client.of(SpeechChunk), client.notices, client.codes) == ([], [], [])
        assert client.of(Interrupted) == [Interrupted(0, 0, "", estimated=True)]
    check(client)


class AudioFirst:
    """Speaks before it has the words for it."""

    name = "audio first"

    async def answer(self, question: Question, sink: AnswerSink) -> None:
        assert question.samples is None
        await sink.audio(0, "Hello.", np.ones(160, np.float32), 16_000)
        await sink.token("Hello.")


async def test_an_answer_may_begin_with_audio() -> None:
    scripts = Scripts()
    scripts.answerer = AudioFirst()
    async with talking(scripts) as client:
        await client.send(TextTurn("Talk"))
        await client.idle()
    assert turn_phases(client, 0) == TYPED
    kinds = [type(event).__name__ for event in client.events]
    assert kinds.index("SpeechChunk") > kinds.index("PhaseChanged", kinds.index("PhaseChanged") + 1)
    assert client.session.memory.exchanges == (Exchange("Talk", "Hello."),)
    check(client)


class Listens:
    """Answers what it hears."""

    name = "listens"

    async def answer(self, question: Question, sink: AnswerSink) -> None:
        self.question = question
        await sink.token("I hear.")


async def test_who_answers_may_listen_to_the_recording() -> None:
    scripts = Scripts()
    scripts.answerer = answerer = Listens()
    async with talking(scripts) as client:
        await client.speak("." * 3 + "#" * 10)
        await client.send(Stop())
        await client.idle()
    assert answerer.question.samples is not None
    assert len(answerer.question.samples) == 13 * FRAME_SAMPLES
    assert np.abs(answerer.question.samples[3 * FRAME_SAMPLES :]).min() > 0.2


# --- the end -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("phase", PHASES)
async def test_half_close_in_every_phase(phase: Phase) -> None:
    scripts = Scripts()
    async with talking(scripts) as client:
        if phase is Phase.THINKING:
            scripts.transcriber.held.clear()
            await client.speak("#" * 10)
            await client.send(Stop())
            await client.phase(phase)
        else:
            await reach(client, scripts, phase)
        client.session.end_input()
        await passes()
        scripts.transcriber.held.set()
        await client.finished()
        assert client.session.is_over
    if phase is Phase.IDLE:
        assert client.phases == []
        return
    assert turn_phases(client, 0) == SPOKEN
    assert client.session.memory.exchanges == (Exchange("hello there", ANSWER),)
    assert client.of(LlmToken)[-1].done
    check(client)


async def test_half_close_comes_after_what_was_sent_before_it() -> None:
    async with talking() as client:
        await client.speak("#" * 10)
        await client.send(Mark("last"))
        client.session.end_input()
        client.session.end_input()
        await client.finished()
    assert client.of(MarkReached) == [MarkReached("last")]
    assert client.session.memory.updates == 1
    check(client)


async def test_half_close_while_an_answer_plays_waits_for_nobody() -> None:
    scripts = Scripts(voice=ScriptedVoice(ms=60_000))
    async with talking(scripts) as client:
        await client.send(PlaybackCredit(200), PlaybackAck(0, 0), TextTurn("Talk"))
        await client.until(lambda: client.of(SpeechChunk))
        await client.send(PlaybackCredit(0), PlaybackAck(0, 10))
        client.session.end_input()
        await client.finished()
    assert client.session.memory.exchanges == (Exchange("Talk", ANSWER),)
    assert sum(chunk.duration_ms for chunk in client.of(SpeechChunk)) == 120_000
    check(client)


@pytest.mark.parametrize("phase", PHASES)
async def test_an_abrupt_end_in_every_phase(phase: Phase) -> None:
    scripts = Scripts()
    async with talking(scripts) as client:
        await reach(client, scripts, phase)
        await client.session.aclose()
        await client.session.aclose()
        await client.finished()
        assert client.session.is_over
        assert client.session.memory.updates == 0
    check(client)


async def test_an_abrupt_end_waits_for_a_recogniser_that_takes_its_time() -> None:
    scripts, may_end = Scripts(), asyncio.Event()

    async def slowly() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await may_end.wait()

    scripts.transcriber.step = slowly
    async with talking(scripts) as client:
        await client.speak("#" * 20)
        await until(lambda: scripts.transcriber.running)
        closing = asyncio.create_task(client.session.aclose())
        await passes()
        assert not closing.done()
        closing.cancel()  # it is seen to its end all the same
        await passes()
        assert not closing.done()
        may_end.set()
        await asyncio.wait([closing])
        assert closing.cancelled()
        assert scripts.transcriber.running == 0


async def test_nothing_is_taken_in_after_the_end() -> None:
    async with talking() as client:
        client.session.end_input()
        await client.finished()
        for _ in range(3 * QUEUED_EVENTS):
            await client.send(TextTurn("Hello?"))
        client.session.violate("too late")
        client.session.end_input()
        client.session.go_away("token", 1, 1)
        await passes()
    assert [type(event) for event in client.events] == [Started]


async def test_who_sends_faster_than_it_is_handled_waits() -> None:
    async with talking() as client:
        client.read_no_more()
        sent = 0

        async def flood() -> None:
            nonlocal sent
            while not client.session.is_over:
                await client.send(Mark(str(sent)))
                sent += 1

        flooding = asyncio.create_task(flood())
        await passes(2_000)
        assert MOST_EVENTS <= sent <= MOST_EVENTS + QUEUED_EVENTS + 1
        client.read_on()
        await client.until(lambda: len(client.of(MarkReached)) > 1_000)
        assert [mark.id for mark in client.of(MarkReached)] == [str(n) for n in range(len(client.of(MarkReached)))]
        client.read_no_more()
        await client.session.aclose()
        await flooding


async def test_a_slow_client_is_told_so_once_and_gets_the_whole_answer() -> None:
    lines = io.StringIO()
    scripts = Scripts(model=ScriptedModel([f"This is sentence {number}. " for number in range(30)]))
    scripts.metrics = DialogueMetrics(stream=lines)
    async with talking(scripts) as client:
        client.session._outbox._slow_after_s = 0.0
        client.read_no_more()
        await client.send(TextTurn("Talk"))
        await until(lambda: client.session._outbox.is_slow)
        await passes(50)
        assert len(scripts.model.given) < 20
        client.read_on()
        await client.idle()
    assert [message for message in client.notices if message in (SLOW, CLEAR)] == [SLOW, CLEAR]
    assert "".join(token.text for token in client.of(LlmToken)) == "".join(scripts.model.given)
    assert len(scripts.model.given) == 30
    said = [json.loads(line) for line in lines.getvalue().splitlines()]
    assert [line["message"] for line in said if line["event"] == "info"] == client.notices
    check(client)


async def test_going_away_at_rest_ends_at_once() -> None:
    async with talking() as client:
        client.session.go_away("token", 3_000, 60_000)
        await client.finished()
    assert client.events[1:] == [GoingAway("token", 3_000, 60_000)]


async def test_going_away_lets_the_running_turn_end() -> None:
    scripts = Scripts(voice=ScriptedVoice(ms=1_000))
    async with talking(scripts) as client:
        await client.send(TextTurn("Talk"))
        await client.until(lambda: client.of(SpeechComplete))
        client.session.go_away("token", 3_000, 60_000)
        await passes()
        assert not client.session.is_over
        await client.send(PlaybackAck(0, 2_000))
        await client.finished()
    assert turn_phases(client, 0) == TYPED
    assert client.session.memory.updates == 1
    assert len(client.of(GoingAway)) == 1
    check(client)


async def test_what_was_said_before_is_part_of_the_question() -> None:
    scripts = Scripts()
    async with talking(scripts, memory=Memory([Exchange("Before?", "Long ago.")])) as client:
        await client.send(TextTurn("And now?"))
        await client.idle()
    assert [message.text for message in scripts.model.asked[0]] == ["Be kind.", "Before?", "Long ago.", "And now?"]


async def test_conversations_do_not_mix() -> None:
    count = 5
    alike = [Scripts(ScriptedTranscriber(f"I am {n}"), ScriptedModel(["You ", f"are {n}."])) for n in range(count)]

    async def talk(number: int) -> None:
        async with talking(
            alike[number], is_alone=False, voice=VoiceChoice(sample_rate_hz=8_000 + 2_000 * number)
        ) as client:
            for turn in range(3):
                await client.speak("#" * (5 + number) + "." * 25)
                await client.idle(turn + 1)
        assert client.session.memory.exchanges == (Exchange(f"I am {number}", f"You are {number}."),) * 3
        assert {chunk.sample_rate_hz for chunk in client.of(SpeechChunk)} == {8_000 + 2_000 * number}
        check(client)

    async with asyncio.TaskGroup() as group:
        for number in range(count):
            group.create_task(talk(number))
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_partials_are_shown_while_somebody_speaks_and_never_after_the_final_one() -> None:
    scripts = Scripts(ScriptedTranscriber(lambda ms: f"{ms:.0f} ms"))
    async with talking(scripts, partial_interval_ms=250) as client:
        for _ in range(60):
            await client.speak("#")
            await passes(10)
        await client.speak("." * 25)
        await client.idle()
    partials = client.of(PartialTranscript)
    assert len(partials) >= 5
    assert all(earlier.audio_ms < later.audio_ms for earlier, later in pairwise(partials))
    assert partials[0].audio_ms >= 500
    assert scripts.transcriber.most_at_once == 1
    last = max(client.events.index(partial) for partial in partials)
    assert last < client.events.index(client.of(FinalTranscript)[0])
    check(client)
