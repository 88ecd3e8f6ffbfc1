"""DialogueService.Reply over the wire: scripted models behind a live server, and the real recogniser."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
from collections import Counter

import grpc
import numpy as np
import pytest

from taste.v1 import common_pb2, dialogue_pb2
from taste_grpc.audio import encode_pcm
from taste_grpc.dialogue import CascadeModel
from taste_grpc.errors import LanguageModelError
from taste_grpc.server.checks import ENCODINGS
from taste_grpc.server.gate import GateState
from tests.support import messages
from tests.support.details import read_failure
from tests.support.hanging_client import client_parent
from tests.support.live_server import live_server, until
from tests.support.log_lines import events
from tests.support.recording_engine import RecordingEngine
from tests.support.reply_server import serving
from tests.support.scripted_models import ANSWER, RealRecogniser, ScriptedLanguageModel, ScriptedRecogniser

FALLBACK = "Sorry, I didn't understand that."


def tasks() -> Counter[str]:
    """Coroutines that tasks are running, by name."""
    gc.collect()
    coroutines = [task.get_coro() for task in asyncio.all_tasks() if not task.done()]
    return Counter(getattr(coroutine, "__qualname__", type(coroutine).__name__) for coroutine in coroutines)


def check(responses: list[dialogue_pb2.ReplyResponse]) -> None:
    assert [response.chunk_index for response in responses] == list(range(len(responses)))
    assert [response.is_final for response in responses] == [False] * (len(responses) - 1) + [True]
    times = [response.processing_time_ms for response in responses]
    assert times[0] > 0
    assert times == sorted(times)
    assert all(response.success is not response.HasField("error") for response in responses)


async def test_an_answer_in_chunks(caplog):
    caplog.set_level(logging.INFO, "taste_grpc")
    async with serving() as live:
        responses = await live.all(chunk_id="q-1")
        check(responses)
        assert "".join(response.text for response in responses) == ANSWER
        assert len(responses) == 4
        assert {response.chunk_id for response in responses} == {"q-1"}
        assert all(response.success for response in responses)
        await until(lambda: len(events(caplog, "call")) == 1)
    (call,), (reply,) = events(caplog, "call"), events(caplog, "reply")
    assert (call["chunk_id"], call["code"]) == ("q-1", "OK")
    assert (reply["chunk_id"], reply["outcome"]) == ("q-1", "answered")


async def test_every_field_of_the_request_reaches_the_model():
    async with serving() as live:
        fields = {"max_new_tokens": 4096, "temperature": 0.0, "top_p": 0.25, "system_prompt": "Shout.\n\tLoudly."}
        responses = await live.all(chunk_size_words=1, mode="conversation", chunk_timeout_ms=60_000, **fields)
        assert [response.text.strip() for response in responses] == ANSWER.split()
        ((said, sampling),) = live.says.asked
        assert said[0].text == "Shout.\n\tLoudly."
        assert (sampling.max_new_tokens, sampling.temperature, sampling.top_p) == (4096, 0.0, 0.25)
        written = await live.all(mode="transcription")
        assert "".join(response.text for response in written) == live.hears.text
        assert len(live.says.asked) == 1


async def test_a_call_without_a_chunk_id_gets_its_request_id():
    async with serving() as live:
        responses = await live.all(metadata=[("x-request-id", "r-17")])
        assert {response.chunk_id for response in responses} == {"r-17"}
        (named,) = {response.chunk_id for response in await live.all()}
        assert len(named) == 32


@pytest.mark.parametrize("encoding", [common_pb2.AUDIO_ENCODING_LINEAR16, common_pb2.AUDIO_ENCODING_FLOAT32LE])
async def test_silence_is_one_response_and_no_work(encoding):
    data = encode_pcm(np.zeros(16_000, np.float32), ENCODINGS[encoding])
    clip = common_pb2.AudioClip(format=common_pb2.AudioFormat(encoding=encoding, sample_rate_hz=8_000), data=data)
    async with serving() as live:
        (response,) = [one async for one in live.dialogue.Reply(dialogue_pb2.ReplyRequest(audio=clip))]
        assert (response.success, response.text, response.is_final) == (False, "", True)
        assert response.error == "no speech was heard"
        assert live.hears.heard == []
        assert live.says.begun == 0


@pytest.mark.parametrize("given", [0, 10])
async def test_a_failure_is_a_response_too(given, caplog):
    async with serving() as live:
        live.says.failure, live.says.fails_after = LanguageModelError("the endpoint is gone"), given
        call = live.start(chunk_id="q-2")
        responses = [response async for response in call]
        assert await call.code() is grpc.StatusCode.OK
    check(responses)
    last = responses[-1]
    assert (last.success, last.text, last.error) == (False, FALLBACK, "the endpoint is gone")
    assert (len(responses) > 1) == bool(given)
    assert [line["chunk_id"] for line in events(caplog, "reply failed")] == ["q-2"]


async def test_time_runs_out():
    async with serving() as live:
        live.says.held.clear()
        (response,) = await live.all(timeout_ms=50)
        assert (response.success, response.text) == (False, FALLBACK)
        assert response.error == "the answer took longer than 50 ms"
        assert live.says.running == 0


async def test_the_real_recogniser_hears_a_recording():
    says = ScriptedLanguageModel()
    async with live_server(RecordingEngine(), reply_model=CascadeModel(RealRecogniser(), says)) as live:
        written = [one.text async for one in live.dialogue.Reply(messages.reply_request(mode="transcription"))]
        assert "".join(written).startswith("Ever tried")
        assert max(len(text.split()) for text in written) <= 4
        answer = [one.text async for one in live.dialogue.Reply(messages.reply_request())]
        assert "".join(answer) == ANSWER
        assert says.asked[0][0][-1].text == "".join(written)


# --- refusals -----------------------------------------------------------------------------------------


async def test_a_server_without_a_model_offers_nothing():
    async with live_server(RecordingEngine()) as live:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await live.dialogue.Reply(messages.reply_request()).read()
        assert read_failure(refused.value).code is grpc.StatusCode.UNIMPLEMENTED


async def test_nobody_is_let_in_while_the_server_loads():
    engine, says = RecordingEngine(), ScriptedLanguageModel()
    engine.load.clear()
    model = CascadeModel(ScriptedRecogniser(), says)
    async with live_server(engine, wait=False, reply_model=model) as live:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await live.dialogue.Reply(messages.reply_request()).read()
        failure = read_failure(refused.value)
        assert (failure.code, failure.reason) == (grpc.StatusCode.UNAVAILABLE, "ERROR_REASON_NOT_SERVING")
        assert failure.retry_s == 2.0
        engine.load.set()
        await live.server.loaded()
        assert says.is_started
        assert (await live.dialogue.Reply(messages.reply_request()).read()).success


async def test_a_model_that_is_not_initialised_is_unavailable():
    async with serving() as live:
        await live.server._dialogue.reply_model.aclose()
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await live.start().read()
        failure = read_failure(refused.value)
        assert (failure.code, failure.reason) == (grpc.StatusCode.UNAVAILABLE, "ERROR_REASON_NOT_SERVING")
        assert failure.retry_s
        assert "not initialised" in failure.message


async def test_health_speaks_for_the_service():
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    async with serving() as live:
        health = health_pb2_grpc.HealthStub(live.channel)
        request = health_pb2.HealthCheckRequest(service="taste.v1.DialogueService")
        assert (await health.Check(request)).status == health_pb2.HealthCheckResponse.SERVING
        live.server._gate.drain()
    assert live.server._gate.state is GateState.DRAINING


async def test_no_more_calls_than_the_setting_allows():
    async with serving(admission={"reply": {"active": 2, "waiting": 1}, "max_wait_ms": 60_000}) as live:
        live.says.held.clear()
        calls = [live.start() for _ in range(2)]
        reading = [asyncio.ensure_future(call.read()) for call in calls]
        await until(lambda: live.says.begun == 2)
        third = asyncio.ensure_future(live.start().read())
        await until(lambda: live.server._talks._replies._door.waiting == 1)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await live.start().read()
        failure = read_failure(refused.value)
        assert (failure.code, failure.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "ERROR_REASON_OVERLOADED")
        assert failure.retry_s
        assert live.says.begun == 2
        live.says.held.set()
        assert all(response.success for response in await asyncio.gather(*reading, third))
        assert await live.all()


# --- endings ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pieces", [0, 30])
async def test_a_cancel_stops_the_work(pieces, caplog):
    caplog.set_level(logging.INFO, "taste_grpc")
    async with serving() as live:
        live.says.endless = True
        live.says.holds_after = pieces or None
        if not pieces:
            live.says.held.clear()
        before = tasks()
        call = live.start(chunk_id="q-3")
        await until(lambda: live.says.begun == 1 and live.says.given == pieces)
        if pieces:
            assert (await call.read()).success
        call.cancel()
        await until(lambda: live.says.running == 0 and live.server._gate.active == 0)
        await until(lambda: tasks() <= before)
        assert live.server._talks._replies._door.active == 0
    assert [(line["chunk_id"], line["outcome"]) for line in events(caplog, "reply")] == [("q-3", "cancelled")]
    assert [(line["chunk_id"], line["code"]) for line in events(caplog, "call")] == [("q-3", "CANCELLED")]
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


async def test_a_deadline_stops_the_work(caplog):
    caplog.set_level(logging.INFO, "taste_grpc")
    async with serving() as live:
        live.says.held.clear()
        before = tasks()
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await live.start(timeout=0.7).read()
        assert failed.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await until(lambda: live.says.running == 0 and live.server._gate.active == 0)
        await until(lambda: tasks() <= before)
        await until(lambda: [line["code"] for line in events(caplog, "call")] == ["DEADLINE_EXCEEDED"])


async def test_a_killed_client_stops_the_work():
    async with serving() as live, client_parent(live.server.address) as parent:
        live.says.held.clear()
        pid = await parent.call("Reply", [messages.reply_request()])
        await until(lambda: live.says.begun == 1, 30)
        os.kill(pid, signal.SIGKILL)
        await until(lambda: live.says.running == 0 and live.server._gate.active == 0)


async def test_a_slow_reader_holds_the_model_back_and_misses_nothing():
    async with serving() as live:
        live.says.pieces = [f"word{number:05} " for number in range(20_000)]
        call = live.start(chunk_size_words=4, timeout_ms=600_000)
        responses = [await call.read()]
        last = -1
        while last != live.says.given:
            last = live.says.given
            await live.all(mode="transcription")  # whoever is not held back goes on in this time
        assert last < 20_000
        while (response := await call.read()) is not grpc.aio.EOF:
            responses.append(response)
        check(responses)
        assert "".join(response.text for response in responses) == "".join(live.says.pieces)


async def test_a_reader_who_does_not_read_is_let_go():
    async with serving(limits={"max_idle_ms": 300}) as live:
        live.says.endless = True
        before = tasks()
        call = live.start(timeout_ms=600_000)
        assert (await anext(aiter(call))).success
        await until(lambda: live.says.running == 0 and live.server._gate.active == 0)
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            _ = [response async for response in call]
        assert read_failure(ended.value).reason == "ERROR_REASON_IDLE"
        await until(lambda: tasks() <= before)


async def test_who_waits_to_be_let_in_may_leave():
    async with serving(admission={"reply": {"active": 1, "waiting": 4}, "max_wait_ms": 60_000}) as live:
        live.says.held.clear()
        first = live.start()
        await until(lambda: live.says.begun == 1)
        second = live.start()
        await until(lambda: live.server._talks._replies._door.waiting == 1)
        second.cancel()
        await until(lambda: live.server._talks._replies._door.waiting == 0)
        first.cancel()
        await until(lambda: live.server._talks._replies._door.active == 0 and live.says.running == 0)
        assert live.says.begun == 1


async def test_running_calls_finish_while_draining():
    async with serving(drain_grace_s=20) as live:
        live.says.held.clear()
        running = asyncio.create_task(live.all())
        await until(lambda: live.says.begun == 1)
        stopping = asyncio.create_task(live.server.stop())
        await until(lambda: live.server._gate.state is GateState.DRAINING)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await live.start().read()
        assert read_failure(refused.value).code is grpc.StatusCode.UNAVAILABLE
        live.says.held.set()
        assert "".join(response.text for response in await running) == ANSWER
        await stopping


async def test_calls_that_outlast_the_grace_are_cut():
    async with serving(drain_grace_s=0.1) as live:
        live.says.held.clear()
        call = live.start()
        await until(lambda: live.says.begun == 1)
        await live.server.stop()
        assert live.says.running == 0
        with pytest.raises(grpc.aio.AioRpcError) as cut:
            await call.read()
        assert cut.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)


async def test_a_server_that_is_stopped_while_the_model_loads():
    says = ScriptedLanguageModel()
    never = asyncio.Event()
    says.start = never.wait  # type: ignore[method-assign, assignment]
    async with live_server(RecordingEngine(), wait=False, reply_model=CascadeModel(ScriptedRecogniser(), says)) as live:
        await until(lambda: live.engine.events["start"] == 1)
        assert live.server.is_loading
    assert not live.server.is_loading
