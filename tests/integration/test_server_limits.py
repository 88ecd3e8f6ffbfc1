"""What one connection may ask of the server: metadata, calls at a time, time to say something; what is switched off."""

from __future__ import annotations

import asyncio
import logging

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from taste.v1 import taste_pb2
from taste_grpc.server import app
from tests.support import messages
from tests.support.certificates import LOCAL, Authority, ServerFiles
from tests.support.live_server import Live, live_server, until
from tests.support.log_lines import events, lines
from tests.support.recording_engine import RecordingEngine

MAX_METADATA = 4_096


def calls(live: Live, metadata):
    """Calls of each kind, with this metadata."""
    return {
        "unary": lambda: live.stub.GetModelInfo(taste_pb2.GetModelInfoRequest(), metadata=metadata),
        "streaming answers": lambda: live.stub.Generate(messages.generate_request(), metadata=metadata).read(),
        "streaming both ways": lambda: live.stub.Detokenize(
            iter(messages.detokenize_requests()), metadata=metadata
        ).read(),
    }


@pytest.mark.parametrize("kind", ["unary", "streaming answers", "streaming both ways"])
@pytest.mark.parametrize("metadata", [(("x", "y" * MAX_METADATA),), (("x", "y" * 50),) * 60], ids=["long", "many"])
async def test_too_much_metadata_is_refused_and_the_next_call_works(kind, metadata, caplog):
    caplog.set_level(logging.INFO)
    async with live_server(RecordingEngine(), max_metadata_bytes=MAX_METADATA) as live:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await calls(live, metadata)[kind]()
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert f"vs. {MAX_METADATA}" in refused.value.details()
        assert live.engine.requests == [], "no work was begun"
        await calls(live, (("x", "y" * (MAX_METADATA // 2)),))[kind]()
    logged = "\n".join(lines(caplog))
    assert "yyy" not in logged
    assert "Traceback" not in logged
    assert [line["code"] for line in events(caplog, "call")][-1] != "INTERNAL"


async def test_metadata_within_the_default_limit_is_no_matter():
    async with live_server(RecordingEngine()) as live:
        await calls(live, (("authorization", "Bearer " + "x" * 4_096), ("x", "y" * 8_000)))["unary"]()


async def test_a_connection_has_so_many_calls_at_a_time():
    """One more waits in the client, whatever it calls, until one ends; other connections are not affected."""
    engine = RecordingEngine()
    async with live_server(engine, max_concurrent_streams=2) as live:
        check = health_pb2_grpc.HealthStub(live.channel).Check
        await check(health_pb2.HealthCheckRequest())  # the client has been told the limit now
        engine.held.clear()
        running = [live.stub.Generate(messages.generate_request()) for _ in range(2)]
        first = [asyncio.ensure_future(call.read()) for call in running]
        await until(lambda: engine.events["generate"] == 2)
        with pytest.raises(grpc.aio.AioRpcError) as waited:
            await check(health_pb2.HealthCheckRequest(), timeout=0.5)
        assert waited.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED

        third = live.stub.Generate(messages.generate_request())
        waiting = asyncio.ensure_future(third.read())
        async with grpc.aio.insecure_channel(live.server.address, LOCAL) as other:
            await health_pb2_grpc.HealthStub(other).Check(health_pb2.HealthCheckRequest())
        assert engine.events["generate:begin"] == 2
        assert not waiting.done()

        running[0].cancel()
        await until(lambda: engine.events["generate:begin"] == 3)
        engine.held.set()
        assert (await waiting).index == 0
        assert (await first[1]).index == 0
        with pytest.raises(asyncio.CancelledError):
            await first[0]
    assert engine.running == 0


@pytest.mark.parametrize("secure", [False, True])
async def test_who_connects_and_says_nothing_does_not_stay(secure, monkeypatch, tmp_path, caplog):
    monkeypatch.setattr(app, "_HANDSHAKE_MS", 300)
    flags = {"tls": ServerFiles(tmp_path, Authority().issue("localhost")).settings} if secure else {}
    async with live_server(RecordingEngine(), **flags) as live:
        caplog.clear()
        reader, writer = await asyncio.open_connection("127.0.0.1", live.server.port)
        async with asyncio.timeout(10):
            await reader.read()
        writer.close()
        assert lines(caplog) == []


@pytest.mark.parametrize("on", [True, False])
async def test_reflection_can_be_switched_off(on, caplog):
    async with live_server(RecordingEngine(), reflection=on) as live:
        call = reflection_pb2_grpc.ServerReflectionStub(live.channel).ServerReflectionInfo(
            iter([reflection_pb2.ServerReflectionRequest(file_containing_symbol="taste.v1.TasteService")])
        )
        if on:
            assert (await call.read()).file_descriptor_response.file_descriptor_proto
        else:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await call.read()
            assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED
        await live.stub.GetModelInfo(taste_pb2.GetModelInfoRequest())
