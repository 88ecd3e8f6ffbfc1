"""Health, reflection, channelz, addresses: what surrounds the services."""

from __future__ import annotations

import asyncio
import gc

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from taste.v1 import taste_pb2, taste_pb2_grpc
from taste_grpc.errors import CheckpointError, SettingsError, UnavailableError
from taste_grpc.server import TASTE_SERVICE, TasteServer, run_server
from taste_grpc.settings import load_settings
from tests.support import messages
from tests.support.details import read_failure
from tests.support.live_server import Live, live_server, until
from tests.support.recording_engine import RecordingEngine

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
DIALOGUE = "taste.v1.DialogueService"


async def status(live: Live, service: str = ""):
    stub = health_pb2_grpc.HealthStub(live.channel)
    return (await stub.Check(health_pb2.HealthCheckRequest(service=service))).status


async def services(live: Live) -> set[str]:
    stub = reflection_pb2_grpc.ServerReflectionStub(live.channel)
    request = reflection_pb2.ServerReflectionRequest(list_services="*")
    answer = await stub.ServerReflectionInfo(iter([request])).read()
    return {service.name for service in answer.list_services_response.service}


async def test_health_follows_loading_and_draining():
    engine = RecordingEngine()
    engine.load.clear()
    async with live_server(engine, wait=False, drain_grace_s=5) as live:
        watch = health_pb2_grpc.HealthStub(live.channel).Watch(health_pb2.HealthCheckRequest(service=TASTE_SERVICE))
        assert (await watch.read()).status == NOT_SERVING
        assert await status(live) == NOT_SERVING
        engine.load.set()
        await live.server.loaded()
        assert (await watch.read()).status == SERVING
        assert [await status(live, name) for name in ("", TASTE_SERVICE)] == [SERVING] * 2
        assert await status(live, DIALOGUE) == NOT_SERVING, "what answers UNIMPLEMENTED does not serve"

        engine.held.clear()
        call = live.stub.Generate(messages.generate_request())
        running = asyncio.ensure_future(call.read())
        while not engine.events["generate"]:
            await asyncio.sleep(0.01)
        stopping = asyncio.create_task(live.server.stop())
        assert (await watch.read()).status == NOT_SERVING
        assert await status(live) == NOT_SERVING
        engine.held.set()
        assert (await running).index == 0
        assert [(await call.read()).index for _ in range(4)] == [1, 2, 3, 4]
        await stopping


async def test_calls_while_loading_are_unavailable_and_say_when_to_come_back():
    engine = RecordingEngine()
    engine.load.clear()
    async with live_server(engine, wait=False) as live:
        for call in (
            live.stub.GetModelInfo(taste_pb2.GetModelInfoRequest()),
            live.stub.Tokenize(messages.tokenize_request()),
            live.stub.Generate(messages.generate_request()).read(),
            live.stub.Detokenize(iter(messages.detokenize_requests())).read(),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await call
            failure = read_failure(refused.value)
            assert failure.code is grpc.StatusCode.UNAVAILABLE
            assert (failure.reason, failure.retry_s) == ("ERROR_REASON_NOT_SERVING", 2.0)


async def test_a_model_that_cannot_be_loaded_is_never_served():
    engine = RecordingEngine()
    engine.fail_start = CheckpointError("config.json: is not there")
    async with live_server(engine, wait=False) as live:
        with pytest.raises(CheckpointError, match=r"config\.json"):
            await live.server.loaded()
        assert await status(live) == NOT_SERVING


async def test_a_server_whose_engine_fails_says_so_and_takes_no_more_calls():
    engine = RecordingEngine()
    async with live_server(engine) as live:
        watch = health_pb2_grpc.HealthStub(live.channel).Watch(health_pb2.HealthCheckRequest())
        assert (await watch.read()).status == SERVING
        engine.broken.set()
        async with asyncio.timeout(30):
            await live.server.failed()
            assert (await watch.read()).status == NOT_SERVING
        assert await status(live, TASTE_SERVICE) == NOT_SERVING
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await live.stub.Tokenize(messages.tokenize_request())
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_the_process_ends_when_its_engine_fails_and_waits_for_no_call(tmp_path):
    engine = RecordingEngine()
    engine.held.clear()
    port_file, thresholds = tmp_path / "port", gc.get_threshold()
    settings = load_settings({"port": 0, "port_file": port_file, "drain_grace_s": 600})
    running = asyncio.create_task(run_server(settings, lambda: engine))
    try:
        await until(port_file.exists)
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port_file.read_text().strip()}") as channel:
            stub = taste_pb2_grpc.TasteServiceStub(channel)
            call = stub.Generate(messages.generate_request(), wait_for_ready=True)
            reading = asyncio.ensure_future(call.read())
            await until(lambda: engine.events["generate"] > 0)
            engine.broken.set()
            with pytest.raises(UnavailableError, match="the engine failed"):
                async with asyncio.timeout(60):
                    await running
            with pytest.raises((grpc.aio.AioRpcError, asyncio.CancelledError)):
                await reading
    finally:
        running.cancel()
        gc.unfreeze()
        gc.set_threshold(*thresholds)
    assert engine.events["drain"] == 1


async def test_unknown_service_has_no_health():
    async with live_server(RecordingEngine()) as live:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await status(live, "nobody")
        assert refused.value.code() is grpc.StatusCode.NOT_FOUND
        watch = health_pb2_grpc.HealthStub(live.channel).Watch(health_pb2.HealthCheckRequest(service="nobody"))
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


async def test_a_watcher_that_does_not_read_holds_up_nobody():
    async with live_server(RecordingEngine(), wait=False) as live:
        watchers = [health_pb2_grpc.HealthStub(live.channel).Watch(health_pb2.HealthCheckRequest()) for _ in range(20)]
        await live.server.loaded()
        async with asyncio.timeout(30):
            assert await status(live) == SERVING
        del watchers


async def test_reflection_lists_the_services_and_can_be_switched_off():
    async with live_server(RecordingEngine()) as live:
        assert await services(live) == {
            TASTE_SERVICE,
            DIALOGUE,
            "grpc.health.v1.Health",
            "grpc.reflection.v1alpha.ServerReflection",
        }
    async with live_server(RecordingEngine(), reflection=False) as live:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await services(live)
        assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_channelz_is_there_when_asked_for():
    pytest.importorskip("grpc_channelz")
    from grpc_channelz.v1 import channelz_pb2, channelz_pb2_grpc

    async with live_server(RecordingEngine(), channelz=True) as live:
        stub = channelz_pb2_grpc.ChannelzStub(live.channel)
        assert (await stub.GetServers(channelz_pb2.GetServersRequest())).server
    async with live_server(RecordingEngine()) as live:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await channelz_pb2_grpc.ChannelzStub(live.channel).GetServers(channelz_pb2.GetServersRequest())
        assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_a_port_that_is_taken_is_one_clear_error():
    async with live_server(RecordingEngine()) as live:
        second = TasteServer(load_settings({"port": live.server.port}), RecordingEngine)
        with pytest.raises(SettingsError, match=rf"127\.0\.0\.1:{live.server.port}"):
            await second.start()
        await second.stop()


async def test_the_port_file_names_the_port(tmp_path):
    async with live_server(RecordingEngine(), port_file=tmp_path / "port") as live:
        assert int((tmp_path / "port").read_text()) == live.server.port
    with pytest.raises(SettingsError, match="port_file"):
        async with live_server(RecordingEngine(), port_file=tmp_path / "nowhere" / "port"):
            pass
