"""How calls end that do not end by themselves: each frees what it held."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
from collections import Counter

import grpc
import pytest
from google.protobuf.message import Message

from taste.v1 import taste_pb2
from taste_grpc.observability import JsonFormatter
from taste_grpc.server.gate import GateState
from tests.support import messages
from tests.support.details import read_failure
from tests.support.hanging_client import client_parent
from tests.support.live_server import Live, live_server, until
from tests.support.recording_engine import RecordingEngine

METHODS = ("Tokenize", "Generate", "Detokenize")


def requests_of(method: str) -> list[Message]:
    if method == "Tokenize":
        return [messages.tokenize_request()]
    return [messages.generate_request()] if method == "Generate" else messages.detokenize_requests(3)


def start(live: Live, method: str, **options):
    requests = requests_of(method)
    if method == "Detokenize":
        return live.stub.Detokenize(iter(requests), **options)
    return getattr(live.stub, method)(requests[0], **options)


def result(call, method: str):
    return call if method == "Tokenize" else call.read()


async def written(call, requests: list[Message]) -> None:
    for request in requests:
        await call.write(request)


async def stalled(live: Live) -> int:
    """Steps of the engine's first call, once it stands still while another call goes on."""
    engine, before = live.engine, -1
    for _ in range(100):
        if before == engine.progress[0]:
            return before
        before, engine.results = engine.progress[0], 300
        async for _ in live.stub.Generate(messages.generate_request()):
            pass  # whoever is not held back comes as far in this time
    raise AssertionError(f"goes on without end: {engine.progress[0]}")


async def read_all(call) -> list[Message]:
    answers = []
    while (answer := await call.read()) is not grpc.aio.EOF:
        answers.append(answer)
    return answers


def tasks() -> Counter[str]:
    """Coroutines that tasks are running, by name."""
    gc.collect()
    coroutines = [task.get_coro() for task in asyncio.all_tasks() if not task.done()]
    return Counter(getattr(coroutine, "__qualname__", type(coroutine).__name__) for coroutine in coroutines)


def logged(caplog, code: str) -> bool:
    lines = [JsonFormatter().format(record) for record in caplog.records if record.getMessage() == "call"]
    return any(f'"code": "{code}"' in line for line in lines)


@pytest.mark.parametrize("method", METHODS)
async def test_cancel_ends_the_model_work(method, caplog):
    caplog.set_level(logging.INFO, "taste_grpc")
    engine = RecordingEngine()
    engine.held.clear()
    async with live_server(engine) as live:
        before = tasks()
        call = start(live, method)
        await until(lambda: engine.events[method.lower()] == 1)
        call.cancel()
        await until(lambda: engine.running == 0)
        assert live.server._gate.active == 0
        await until(lambda: logged(caplog, "CANCELLED"))
        await until(lambda: tasks() <= before)
        engine.held.set()
        assert await result(start(live, method), method)
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


@pytest.mark.parametrize("method", METHODS)
async def test_deadline_ends_the_model_work(method, caplog):
    caplog.set_level(logging.INFO, "taste_grpc")
    engine = RecordingEngine()
    engine.held.clear()
    async with live_server(engine) as live:
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await result(start(live, method, timeout=1.0), method)
        assert failed.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await until(lambda: engine.running == 0 and engine.events[method.lower()] == 1)
        await until(lambda: logged(caplog, "DEADLINE_EXCEEDED"))


@pytest.mark.parametrize("method", METHODS)
async def test_killed_client_ends_the_model_work(method):
    engine = RecordingEngine()
    engine.held.clear()
    async with live_server(engine) as live, client_parent(live.server.address) as parent:
        pid = await parent.call(method, requests_of(method))
        await until(lambda: engine.events[method.lower()] == 1, 30)
        os.kill(pid, signal.SIGKILL)
        await until(lambda: engine.running == 0)
        assert live.server._gate.active == 0


@pytest.mark.parametrize("method", ["Generate", "Detokenize"])
async def test_a_call_that_is_dropped_midway_is_closed(method):
    engine = RecordingEngine()
    engine.results = 1_000_000
    async with live_server(engine) as live:
        call = start(live, method) if method == "Generate" else live.stub.Detokenize()
        if method == "Detokenize":
            await written(call, messages.detokenize_requests())
        assert await call.read()
        call.cancel()
        await until(lambda: engine.running == 0)
        steps = engine.events[method.lower()]
        await live.stub.Tokenize(messages.tokenize_request())
        assert engine.events[method.lower()] == steps


# --- half-close, and callers that keep the server waiting --------------------------------------------


async def test_half_close_before_the_first_message():
    async with live_server(RecordingEngine()) as live:
        call = live.stub.Detokenize()
        await call.done_writing()
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call.read()
        failure = read_failure(refused.value)
        assert (failure.code, failure.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["config"])
        assert live.engine.running == 0


async def test_half_close_after_the_config_is_an_empty_answer():
    async with live_server(RecordingEngine()) as live:
        call = live.stub.Detokenize()
        await written(call, messages.detokenize_requests(0))
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF
        assert await call.code() is grpc.StatusCode.OK
        await until(lambda: live.engine.running == 0)


async def test_half_close_midway_ends_the_call_after_what_was_said():
    engine = RecordingEngine()
    async with live_server(engine) as live:
        call = live.stub.Detokenize()
        await written(call, messages.detokenize_requests(1))
        assert (await call.read()).segment_index == 0
        engine.held.clear()
        await call.write(messages.detokenize_requests(1)[1])
        await until(lambda: engine.events["detokenize"] == 2)
        await call.done_writing()  # while the server is at work
        engine.held.set()
        assert (await call.read()).segment_index == 1
        assert await call.read() is grpc.aio.EOF
        assert await call.code() is grpc.StatusCode.OK


@pytest.mark.parametrize("method", ["GetModelInfo", "Tokenize", "Generate"])
async def test_a_call_that_ends_without_its_request_is_refused(method):
    async def nothing():
        return
        yield

    async with live_server(RecordingEngine()) as live:
        call = live.channel.stream_stream(f"/taste.v1.TasteService/{method}")(nothing())
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await asyncio.wait_for(call.read(), 10)
        assert read_failure(refused.value).code is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("sent", [0, 1, 2])
async def test_a_caller_that_keeps_the_server_waiting_is_let_go(sent, caplog):
    """Without a message, with the config alone, and after a segment."""
    engine = RecordingEngine()
    async with live_server(engine, limits={"max_idle_ms": 400}) as live:
        before = tasks()
        call = live.stub.Detokenize()
        await written(call, messages.detokenize_requests(1)[:sent])
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            await read_all(call)
        failure = read_failure(ended.value)
        assert (failure.code, failure.reason) == (grpc.StatusCode.DEADLINE_EXCEEDED, "ERROR_REASON_IDLE")
        assert "400 ms" in failure.message
        await until(lambda: engine.running == 0 and live.server._gate.active == 0)
        await until(lambda: tasks() <= before)
        assert engine.events["detokenize:begin"] == min(sent, 1)
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


async def test_the_time_the_server_works_or_waits_to_be_read_is_not_the_callers():
    """A wait that is too long for the caller's next message is none while the server has one."""
    engine = RecordingEngine()
    engine.held.clear()
    requests = messages.detokenize_requests(3)
    async with live_server(engine, limits={"max_idle_ms": 300}) as live:
        call = live.stub.Detokenize()
        await written(call, requests)
        await call.done_writing()
        impatient = live.stub.Detokenize()
        with pytest.raises(grpc.aio.AioRpcError, match="300 ms"):  # the other call has been at work for longer by then
            await impatient.read()
        engine.held.set()
        assert [chunk.index for chunk in [await call.read() for _ in range(3)]] == [0, 1, 2]
        assert await call.read() is grpc.aio.EOF


# --- readers and writers that are out of step ---------------------------------------------------------


async def test_slow_reader_is_held_back_and_misses_nothing():
    engine = RecordingEngine()
    engine.chunk_samples = 24_000  # 48 kB of audio for each segment

    async def segments():
        first, segment = messages.detokenize_requests()
        yield first
        for _ in range(40):
            yield segment

    async with live_server(engine) as live:
        call = live.stub.Detokenize(segments())
        chunks = [await call.read()]
        assert await stalled(live) <= 6, "more than 300 kB under way to a reader that does not read"
        chunks += await read_all(call)
        assert [chunk.index for chunk in chunks] == list(range(40))
        assert [chunk.first_sample for chunk in chunks] == list(range(0, 40 * 24_000, 24_000))
        assert {len(chunk.audio) for chunk in chunks} == {48_000}


async def test_small_messages_to_a_slow_reader_are_held_back_too():
    engine = RecordingEngine()
    async with live_server(engine) as live:
        engine.results = 3_000
        call = live.stub.Generate(messages.generate_request())
        results = [await call.read()]
        assert await stalled(live) * results[0].ByteSize() < 64 << 10
        results += await read_all(call)
        assert [message.index for message in results] == list(range(3_000))


@pytest.mark.parametrize("method", ["Generate", "Detokenize"])
async def test_cancel_of_a_call_whose_reader_does_not_read(method, caplog):
    caplog.set_level(logging.INFO, "taste_grpc")
    engine = RecordingEngine()
    engine.chunk_samples = 24_000

    async def endless():
        first, segment = messages.detokenize_requests()
        yield first
        while True:
            yield segment

    async with live_server(engine) as live:
        before = tasks()
        engine.results = 1_000_000
        generate = method == "Generate"
        call = live.stub.Generate(messages.generate_request()) if generate else live.stub.Detokenize(endless())
        assert await call.read()
        await stalled(live)
        assert engine.running == 1
        call.cancel()
        await until(lambda: engine.running == 0 and live.server._gate.active == 0)
        await until(lambda: logged(caplog, "CANCELLED"))
        await until(lambda: tasks() <= before)
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


async def test_slow_reader_holds_up_nobody_else():
    engine = RecordingEngine()
    engine.results = 1_000_000
    async with live_server(engine) as live:
        slow = live.stub.Generate(messages.generate_request())
        assert await slow.read()
        await live.stub.Tokenize(messages.tokenize_request())
        slow.cancel()


async def test_unread_input_is_held_back():
    """A client that sends segments faster than they are spoken waits; the server does not collect them."""
    engine = RecordingEngine()
    sent = 0

    async def many():
        nonlocal sent
        first, segment = messages.detokenize_requests()
        yield first
        segment.segment.tokens.text = "x" * 8000
        for _ in range(2000):
            yield segment
            sent += 1

    async with live_server(engine) as live:
        engine.held.clear()
        call = live.stub.Detokenize(many())
        await until(lambda: engine.events["detokenize"] == 1)
        last = -1
        while sent != last:
            last = sent
            for _ in range(100):
                await live.stub.GetModelInfo(taste_pb2.GetModelInfoRequest())
        assert sent < 200
        call.cancel()
        await until(lambda: engine.running == 0)


# --- the server stops ---------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
async def test_running_calls_finish_while_draining(method):
    engine = RecordingEngine()
    engine.held.clear()
    async with live_server(engine, drain_grace_s=10) as live:
        pending = asyncio.ensure_future(result(start(live, method), method))
        await until(lambda: engine.events[method.lower()] == 1)
        stopping = asyncio.create_task(live.server.stop())
        await until(lambda: live.server._gate.state is GateState.DRAINING)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await live.stub.Tokenize(messages.tokenize_request())
        failure = read_failure(refused.value)
        assert (failure.code, failure.retry_s) == (grpc.StatusCode.UNAVAILABLE, 1.0)
        assert failure.reason == "ERROR_REASON_NOT_SERVING"
        engine.held.set()
        assert await pending
        await stopping
        assert engine.events["drain"] >= 1


async def test_calls_that_outlast_the_grace_are_cut():
    engine = RecordingEngine()
    engine.held.clear()
    async with live_server(engine, drain_grace_s=0.1) as live:
        call = live.stub.Generate(messages.generate_request())
        await until(lambda: engine.events["generate"] == 1)
        await live.server.stop()
        assert engine.running == 0
        with pytest.raises(grpc.aio.AioRpcError) as cut:
            await call.read()
        assert cut.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)


async def test_a_second_signal_cuts_the_grace_short():
    engine = RecordingEngine()
    engine.held.clear()
    hurry = asyncio.Event()
    async with live_server(engine, drain_grace_s=60) as live:
        call = live.stub.Generate(messages.generate_request())
        await until(lambda: engine.events["generate"] == 1)
        stopping = asyncio.create_task(live.server.stop(hurry))
        await until(lambda: live.server._gate.state is GateState.DRAINING)
        with pytest.raises(grpc.aio.AioRpcError):
            await live.stub.Tokenize(messages.tokenize_request())
        assert not stopping.done()
        hurry.set()
        async with asyncio.timeout(30):
            await stopping
        call.cancel()
