"""The benchmark of the gRPC layer: both sides deliver what was asked for; its times are not judged."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import ModuleType
from typing import Any

import grpc
import pytest

from taste.v1 import taste_pb2, taste_pb2_grpc
from tests.support.benchmarks import benchmark
from tests.support.live_server import live_server

STREAMS, MESSAGES = 5, 150  # more than an answer may be ahead, and than one message is filled with


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return benchmark("_wire_server", monkeypatch)


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return benchmark("_wire_client", monkeypatch)


@asynccontextmanager
async def bare_channel(server: ModuleType) -> AsyncIterator[grpc.aio.Channel]:
    bare, port = await server.serve_bare()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield channel
    await bare.stop(0)


async def test_both_sides_deliver_all_messages_in_order(server: ModuleType, client: ModuleType) -> None:
    engine = server.IdleEngine()
    async with live_server(engine) as live, bare_channel(server) as bare:
        for channel in (live.channel, bare):
            for closely in (True, False):
                found = await client.measure(channel, STREAMS, MESSAGES, closely=closely)
                assert found["messages"] == STREAMS * MESSAGES
                assert found["seconds"] > 0
                assert found["cpu_s"] > 0
    stats = engine.stats()
    assert (stats.completed_calls, stats.cancelled_calls, stats.failed_calls) == (2 * STREAMS, 0, 0)
    assert "idle-model" not in {thread.name for thread in threading.enumerate()}


async def test_both_sides_send_the_same(server: ModuleType, client: ModuleType) -> None:
    """But for the times, which take as many bytes."""
    request = taste_pb2.GenerateRequest(max_length=MESSAGES)
    request.segments.add(role="ROLE_USER", text="good morning")
    brought = []
    async with live_server(server.IdleEngine()) as live, bare_channel(server) as bare:
        for channel in (live.channel, bare):
            call: Any = channel.unary_stream(client.GENERATE)
            brought.append([data async for data in call(request.SerializeToString())])
    assert [len(data) for data in brought[0]] == [len(data) for data in brought[1]]
    parsed = [[taste_pb2.StreamingResult.FromString(data) for data in side] for side in brought]
    for message in (*parsed[0], *parsed[1]):
        message.ClearField("timing")
    assert parsed[0] == parsed[1]


async def test_a_stream_that_is_not_what_was_asked_for_is_noticed(server: ModuleType, client: ModuleType) -> None:
    class Wrong(server.BareService):  # type: ignore[misc,name-defined]
        async def Generate(self, request: Any, context: Any) -> Any:
            yield server.messages(MESSAGES)[1]

    wrong = grpc.aio.server()
    taste_pb2_grpc.add_TasteServiceServicer_to_server(Wrong(), wrong)
    port = wrong.add_insecure_port("127.0.0.1:0")
    await wrong.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        with pytest.raises(ValueError, match="message 0 is"):
            await client.measure(channel, 1, MESSAGES, closely=True)
        with pytest.raises(ValueError, match="came"):
            await client.measure(channel, 1, MESSAGES, closely=False)
    await wrong.stop(0)


def test_processes_are_compared_and_end(monkeypatch: pytest.MonkeyPatch) -> None:
    module = benchmark("wire", monkeypatch)
    with module.sides() as found:
        figures = module.compare(found, 2, 20, times=2, rounds=1)
        processes = [side.client for side in found.values()]
    assert all(process.returncode == 0 for process in processes)
    fraction, medians = module.summary(figures)
    assert fraction > 0
    assert set(medians) == {"taste", "bare"}
    rows = module.table({"fraction_2": fraction}, {"2": medians})
    assert all(isinstance(text, str) for row in rows for text in row)
