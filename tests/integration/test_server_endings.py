"""How calls end that do not end by themselves: each frees what it held."""

from __future__ import annotations

import asyncio
import gc
import logging
import sys
from collections import Counter

import grpc
import pytest

from taste_grpc.observability import JsonFormatter
from tests.support import messages
from tests.support.details import read_failure
from tests.support.live_server import Live, live_server, until
from tests.support.recording_engine import RecordingEngine

METHODS = ("Tokenize", "Generate", "Detokenize")


def start(live: Live, method: str, **options):
    if method == "Tokenize":
        return live.stub.Tokenize(messages.tokenize_request(), **options)
    if method == "Generate":
        return live.stub.Generate(messages.generate_request(), **options)
    return live.stub.Detokenize(iter(messages.detokenize_requests(3)), **options)


def result(call, method: str):
    return call if method == "Tokenize" else call.read()


def tasks() -> Counter[str]:
    """Coroutines that tasks are running, by name."""
    gc.collect()
    return Counter(str(task.get_coro().__qualname__) for task in asyncio.all_tasks() if not task.done())


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
        await until(lambda: any(record.getMessage() == "call" for record in caplog.records))
        assert [JsonFormatter().format(r) for r in caplog.records if '"code": "CANCELLED"' in JsonFormatter().format(r)]
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
            await result(start(live, method, timeout=0.3), method)
        assert failed.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await until(lambda: engine.running == 0 and engine.events[method.lower()] == 1)
        await until(lambda: any('"DEADLINE_EXCEEDED"' in JsonFormatter().format(r) for r in caplog.records))


@pytest.mark.parametrize("method", METHODS)
async def test_killed_client_ends_the_model_work(method):
    engine = RecordingEngine()
    engine.held.clear()
    async with live_server(engine) as live:
        client = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.support.hanging_client", live.server.address, method
        )
        try:
            await until(lambda: engine.events[method.lower()] == 1, 30)
        finally:
            client.kill()
            await client.wait()
        await until(lambda: engine.running == 0)
        assert live.server._gate.active == 0


@pytest.mark.parametrize("method", ["Generate", "Detokenize"])
async def test_a_call_that_is_dropped_midway_is_closed(method):
    engine = RecordingEngine()
    engine.results = 1_000_000
    async with live_server(engine) as live:
        call = start(live, method) if method == "Generate" else live.stub.Detokenize()
        if method == "Detokenize":
            for request in messages.detokenize_requests():
                await call.write(request)
        assert await call.read()
        call.cancel()
        await until(lambda: engine.running == 0)
        steps = engine.events[method.lower()]
        await asyncio.sleep(0.1)
        assert engine.events[method.lower()] == steps


async def test_slow_reader_is_held_back():
    engine = RecordingEngine()
    engine.chunk_samples = 24_000  # 48 kB of audio for each segment

    async def endless():
        first, segment = messages.detokenize_requests()
        yield first
        while True:
            yield segment

    async with live_server(engine) as live:
        call = live.stub.Detokenize(endless())
        assert await call.read()
        counts = []
        while len(counts) < 3 or len(set(counts[-3:])) > 1:
            await asyncio.sleep(0.2)
            counts.append(engine.events["detokenize"])
            assert len(counts) < 50, "the server runs ahead without end"
        assert counts[-1] <= 6, "more than 300 kB under way to a reader that does not read"
        for _ in range(10):
            await call.read()
        await until(lambda: engine.events["detokenize"] >= 11)
        call.cancel()
        await until(lambda: engine.running == 0)


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
        last = -1
        while sent != last:
            last = sent
            await asyncio.sleep(0.3)
        assert sent < 200
        call.cancel()
        await until(lambda: engine.running == 0)


@pytest.mark.parametrize("method", METHODS)
async def test_running_calls_finish_while_draining(method):
    engine = RecordingEngine()
    engine.held.clear()
    async with live_server(engine, drain_grace_s=10) as live:
        pending = asyncio.ensure_future(result(start(live, method), method))
        await until(lambda: engine.events[method.lower()] == 1)
        stopping = asyncio.create_task(live.server.stop())
        await asyncio.sleep(0.1)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await live.stub.Tokenize(messages.tokenize_request())
        failure = read_failure(refused.value)
        assert (failure.code, failure.retry_s) == (grpc.StatusCode.UNAVAILABLE, 1.0)
        assert failure.reason == "ERROR_REASON_NOT_SERVING"
        engine.held.set()
        assert await pending
        if method != "Tokenize":
            pending.result()
        await stopping
        assert engine.events["drain"] == 1


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
        await asyncio.sleep(0.1)
        assert not stopping.done()
        hurry.set()
        async with asyncio.timeout(8):
            await stopping
        call.cancel()
