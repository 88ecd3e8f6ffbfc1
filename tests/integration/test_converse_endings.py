"""How live conversations end that do not end by themselves, over gRPC: each frees what it held, and no other."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from taste.v1 import dialogue_pb2
from taste_grpc.dialogue import Question
from taste_grpc.dialogue.answer import AnswerSink
from taste_grpc.server.app import DIALOGUE_SERVICE
from tests.support.conversing import TYPED, Talk, calling, start, talking
from tests.support.details import Failure, read_failure
from tests.support.hanging_client import client_parent
from tests.support.live_server import Live, until
from tests.support.log_lines import events
from tests.support.scripted import ScriptedModel, ScriptedVoice, Scripts, audio
from tests.support.scripted_talks import ScriptedTalks, talks

ANSWER = "Well. That is a question."


@pytest.fixture
def stream(tmp_path: Path) -> dict[str, Any]:
    return {"resume_dir": tmp_path / "resume"}


def tasks() -> Counter[str]:
    """Coroutines that tasks of the server are running, by name."""
    running = [task.get_coro().__qualname__ for task in asyncio.all_tasks() if not task.done()]  # type: ignore[union-attr]
    return Counter(name for name in running if not name.startswith("Talk."))


def text(words: str) -> dialogue_pb2.ConverseRequest:
    return dialogue_pb2.ConverseRequest(text_turn=dialogue_pb2.TextTurn(text=words))


async def failure(talk: Talk) -> Failure:
    """How the call failed; waits for that."""
    await talk.ended()
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await talk.call.read()
    return read_failure(raised.value)


async def at_rest(live: Live, dialogue: ScriptedTalks, before: Counter[str] | None = None) -> None:
    await until(lambda: dialogue.at_rest and live.server._dialogue_gate.active == 0)
    if before is not None:
        await until(lambda: tasks() <= before)


def going_away(talk: Talk) -> Any:
    (message,) = talk.all("going_away")
    return message


# --- the server stops ---------------------------------------------------------------------------------


async def test_a_server_that_stops_tells_all_and_lets_answers_finish(stream: dict[str, Any]) -> None:
    rest = asyncio.Event()
    scripts = Scripts(model=ScriptedModel(steps=("Well. ", rest, "That is a question.")))
    async with talks(scripts, stream=stream, drain_grace_s=30) as (live, dialogue):
        address = live.server.address
        async with talking(address) as idle, talking(address) as busy:
            await busy.type("Talk")
            await busy.until(lambda: busy.answer(0) == "Well. ")
            stopping = asyncio.create_task(live.server.stop())
            assert await idle.ended() is grpc.StatusCode.OK
            assert idle.told[-1].WhichOneof("event") == "going_away"
            await busy.until(lambda: busy.all("going_away"))
            for talk in (idle, busy):
                assert going_away(talk).resume_token
                assert going_away(talk).grace_ms == 30_000
                assert going_away(talk).token_lifetime_ms == 600_000
            assert going_away(idle).resume_token != going_away(busy).resume_token
            async with calling(address) as late:
                refused = await failure(late)
            assert (refused.code, refused.retry_s) == (grpc.StatusCode.UNAVAILABLE, 1.0)
            health = health_pb2_grpc.HealthStub(live.channel)
            status = await health.Check(health_pb2.HealthCheckRequest(service=DIALOGUE_SERVICE))
            assert status.status == health_pb2.HealthCheckResponse.NOT_SERVING
            assert busy.phases() == ["THINKING", "RESPONDING"]
            rest.set()
            assert await busy.ended() is grpc.StatusCode.OK
            assert (busy.answer(0), busy.is_done(0)) == (ANSWER, True)
            assert busy.phases() == TYPED
            async with asyncio.timeout(20):
                await stopping
        assert dialogue.at_rest
        assert live.server._dialogue_gate.active == 0


async def test_what_outlasts_the_grace_is_cut_and_told_so(stream: dict[str, Any], caplog) -> None:
    scripts = Scripts(model=ScriptedModel(steps=("Well. ", asyncio.Event())))
    async with talks(scripts, stream=stream, drain_grace_s=0.1) as (live, dialogue):
        before = tasks()
        async with talking(live.server.address) as answered, talking(live.server.address) as speaking:
            await answered.type("Talk")
            await answered.until(lambda: answered.answer(0) == "Well. ")
            await speaking.send(audio=audio("#" * 20))
            await speaking.until_phase("CAPTURING", 0)
            async with asyncio.timeout(20):
                await live.server.stop()
            for talk in (answered, speaking):
                cut = await failure(talk)
                assert (cut.code, cut.reason) == (grpc.StatusCode.UNAVAILABLE, "ERROR_REASON_NOT_SERVING")
                assert cut.message == "the server stopped before the conversation had ended"
                assert cut.retry_s
                assert going_away(talk).resume_token
            assert not answered.is_done(0)
        assert dialogue.at_rest
        await until(lambda: tasks() <= before)
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


async def test_a_second_signal_cuts_conversations_at_once(stream: dict[str, Any]) -> None:
    scripts, hurry = Scripts(model=ScriptedModel(steps=(asyncio.Event(),))), asyncio.Event()
    async with talks(scripts, stream=stream, drain_grace_s=60) as (live, dialogue):
        async with talking(live.server.address) as talk:
            await talk.type("Talk")
            await talk.until(lambda: talk.phases() == ["THINKING"])
            stopping = asyncio.create_task(live.server.stop(hurry))
            await talk.until(lambda: talk.all("going_away"))
            hurry.set()
            assert await talk.ended() is grpc.StatusCode.UNAVAILABLE
            async with asyncio.timeout(20):
                await stopping
        assert dialogue.at_rest


async def test_a_server_stops_under_a_client_that_does_not_read(stream: dict[str, Any]) -> None:
    scripts = Scripts(model=ScriptedModel(steps=("Well. ",) * 50), voice=ScriptedVoice(ms=2_000))
    async with talks(scripts, stream=stream, drain_grace_s=0.1) as (live, dialogue):
        call = live.dialogue.Converse()
        await call.write(start())
        await call.read()
        await call.write(text("Talk"))
        await until(lambda: dialogue.phases == ["RESPONDING"])
        async with asyncio.timeout(20):
            await live.server.stop()
        assert dialogue.at_rest
        assert live.server._dialogue_gate.active == 0
        call.cancel()


async def test_a_conversation_goes_on_on_another_server_once(stream: dict[str, Any]) -> None:
    voice = dialogue_pb2.Voice(out_sample_rate_hz=24_000)
    async with talks(stream=stream) as (live, _), talking(live.server.address, start(voice=voice)) as talk:
        assert not talk.all("started")[0].resumed
        await talk.type("Who are you?")
        await talk.until_idle(0)
        await live.server.stop()
        assert await talk.ended() is grpc.StatusCode.OK
        token = going_away(talk).resume_token
    async with talks(stream=stream) as (live, dialogue):
        async with talking(live.server.address, start(resume_token=token)) as talk:
            (started,) = talk.all("started")
            assert started.resumed
            assert started.output_format.sample_rate_hz == 24_000
            await talk.type("And now?")
            await talk.until_idle(0)
            assert talk.is_done(0)
            said = [(message.role, message.text) for message in dialogue.scripts.model.asked[-1]]
            assert said == [
                ("system", "Be kind."),
                ("user", "Who are you?"),
                ("assistant", ANSWER),
                ("user", "And now?"),
            ]
        async with calling(live.server.address) as again:
            await again.send(start(resume_token=token))
            refused = await failure(again)
            assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
            (error,) = again.all("error")
            assert error.code == dialogue_pb2.CONVERSE_ERROR_CODE_PROTOCOL_VIOLATION
            assert "used before" in error.message
        await at_rest(live, dialogue)


async def test_of_a_turn_that_was_cut_nothing_is_remembered(stream: dict[str, Any]) -> None:
    cut = Scripts(model=ScriptedModel(steps=("Never mind. ", asyncio.Event())))
    async with talks(cut, stream=stream, drain_grace_s=0.05) as (live, _), talking(live.server.address) as talk:
        await talk.type("Talk")
        await talk.until(lambda: talk.answer(0))
        await live.server.stop()
        token = going_away(talk).resume_token
    async with talks(stream=stream) as (live, dialogue):
        async with talking(live.server.address, start(resume_token=token)) as talk:
            await talk.type("And now?")
            await talk.until_idle(0)
        assert [message.text for message in dialogue.scripts.model.asked[-1]] == ["Be kind.", "And now?"]


# --- clients that are gone, late, or too many ---------------------------------------------------------


@dataclass(frozen=True)
class Moment:
    """A phase, how a client brings it about, and what the model answers."""

    phase: str
    said: tuple[dialogue_pb2.ConverseRequest, ...]
    steps: tuple[str | asyncio.Event, ...] = ()


def moments() -> list[Moment]:
    """All phases that last."""
    return [
        Moment("IDLE", ()),
        Moment("CAPTURING", (dialogue_pb2.ConverseRequest(audio=audio("#" * 30)),)),
        Moment("THINKING", (text("Talk"),), (asyncio.Event(),)),
        Moment("RESPONDING", (text("Talk"),), ("Well. ", asyncio.Event())),
    ]


async def test_a_client_that_is_killed_leaves_nothing_behind(stream: dict[str, Any]) -> None:
    async with talks(stream=stream) as (live, dialogue), client_parent(live.server.address) as parent:
        before = tasks()
        for moment in moments():
            dialogue.scripts.model.steps = moment.steps
            pid = await parent.call("Converse", [start(), *moment.said])
            await until(lambda: dialogue.phases == [moment.phase], 30)  # noqa: B023
            os.kill(pid, signal.SIGKILL)
            await at_rest(live, dialogue, before)
        dialogue.scripts.model.steps = ("Yes.",)
        async with talking(live.server.address) as talk:
            await talk.type("Is anybody there?")
            await talk.until_idle(0)
            assert talk.answer(0) == "Yes."


async def test_a_deadline_ends_a_conversation_in_any_phase(stream: dict[str, Any]) -> None:
    async with talks(stream=stream) as (live, dialogue):
        before, running, phases = tasks(), [], []
        for moment in moments():
            dialogue.scripts.model.steps = moment.steps
            talk = Talk(live.dialogue.Converse(timeout=3.0))
            for request in (start(), *moment.said):
                await talk.send(request)
            running.append(talk)
            phases.append(moment.phase)
            await until(lambda: dialogue.phases == phases)
        assert [await talk.ended() for talk in running] == [grpc.StatusCode.DEADLINE_EXCEEDED] * len(phases)
        await at_rest(live, dialogue, before)


async def test_a_client_that_says_nothing_for_too_long_is_let_go(stream: dict[str, Any]) -> None:
    async with talks(stream=stream, limits={"max_idle_ms": 400}) as (live, dialogue):
        before = tasks()
        for first in (None, start()):
            async with calling(live.server.address) as talk:
                if first is not None:
                    await talk.send(first)
                let_go = await failure(talk)
                assert (let_go.code, let_go.reason) == (grpc.StatusCode.DEADLINE_EXCEEDED, "ERROR_REASON_IDLE")
                assert "400 ms" in let_go.message
                assert len(talk.all("started")) == (first is not None)
        await at_rest(live, dialogue, before)


async def test_more_conversations_than_there_are_places_for_are_refused(stream: dict[str, Any]) -> None:
    async with talks(stream={**stream, "max_sessions": 2}) as (live, dialogue):
        address = live.server.address
        async with talking(address) as one, talking(address):
            async with calling(address) as third:
                await third.send(start())
                refused = await failure(third)
                assert (refused.code, refused.retry_s) == (grpc.StatusCode.RESOURCE_EXHAUSTED, 5.0)
                assert "2 conversations are under way" in refused.message
                assert not third.all("started")
            await one.call.done_writing()
            assert await one.ended() is grpc.StatusCode.OK
            await until(lambda: dialogue.conversations.open_sessions == 1)
            async with talking(address) as again:
                await again.type("Talk")
                await again.until_idle(0)
                assert again.answer(0) == ANSWER


# --- faults -------------------------------------------------------------------------------------------


class FaultyAnswerer:
    """Has a fault that nobody foresaw in the answers to some questions."""

    name = "faulty"

    def __init__(self) -> None:
        self.held = asyncio.Event()

    async def answer(self, question: Question, sink: AnswerSink) -> None:
        if question.messages[-1].text == "Fail":
            await sink.token("Well")
            raise KeyError("sk-secret")
        await sink.token("Yes, ")
        await self.held.wait()
        await sink.token("indeed.")


async def test_a_fault_in_one_conversation_leaves_the_others_untouched(stream: dict[str, Any], caplog) -> None:
    answerer = FaultyAnswerer()
    async with talks(Scripts(answerer=answerer), stream=stream) as (live, dialogue):
        async with talking(live.server.address) as well, talking(live.server.address) as ill:
            await well.type("Talk")
            await well.until(lambda: well.answer(0))
            await ill.type("Fail")
            failed = await failure(ill)
            assert failed.code is grpc.StatusCode.INTERNAL
            assert failed.request_id
            assert ill.phases() == ["THINKING", "RESPONDING", "ERROR"]
            (error,) = ill.all("error")
            assert (error.code, error.recoverable) == (dialogue_pb2.CONVERSE_ERROR_CODE_INTERNAL, False)
            assert ill.all("started")[0].session_id in error.message
            assert "secret" not in error.message + failed.message
            assert not ill.is_done(0)
            answerer.held.set()
            await well.until_idle(0)
            assert (well.answer(0), well.is_done(0), well.all("error")) == ("Yes, indeed.", True, [])
        await at_rest(live, dialogue)
    assert [event["session"] for event in events(caplog, "turn failed")] == [ill.all("started")[0].session_id]
