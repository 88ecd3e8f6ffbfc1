"""The retrying that is built into gRPC clients obeys what the server says about when to try again."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import grpc
import pytest

from taste.v1 import taste_pb2_grpc
from taste_grpc.errors import OverloadedError, TasteError, UnavailableError
from taste_grpc.server.status import PUSHBACK_KEY
from tests.support import messages
from tests.support.live_server import live_server
from tests.support.recording_engine import RecordingEngine

PUSHBACK_MS = 150
OWN_BACKOFF_S = 60
"""What the client would wait for if the server said nothing: longer than a test may take."""

OPTIONS: list[tuple[str, Any]] = [
    ("grpc.use_local_subchannel_pool", 1),
    (
        "grpc.service_config",
        json.dumps(
            {
                "methodConfig": [
                    {
                        "name": [{"service": "taste.v1.TasteService"}],
                        "retryPolicy": {
                            "maxAttempts": 4,
                            "initialBackoff": f"{OWN_BACKOFF_S}s",
                            "maxBackoff": f"{OWN_BACKOFF_S}s",
                            "backoffMultiplier": 1,
                            "retryableStatusCodes": ["UNAVAILABLE", "RESOURCE_EXHAUSTED"],
                        },
                    }
                ]
            }
        ),
    ),
]


class ReluctantEngine(RecordingEngine):
    """Refuses its first calls, and notes when each was made."""

    def __init__(self, *refusals: TasteError) -> None:
        super().__init__()
        self.refusals = list(refusals)
        self.asked: list[float] = []

    async def _step(self, name: str) -> None:
        self.asked.append(time.monotonic())
        if self.refusals:
            raise self.refusals.pop(0)
        await super()._step(name)


def overloaded() -> TasteError:
    return OverloadedError("full", retry_after_ms=PUSHBACK_MS)


def unavailable() -> TasteError:
    return UnavailableError("not yet", retry_after_ms=PUSHBACK_MS)


def check_pauses(engine: ReluctantEngine, refusals: int) -> None:
    pauses = [1000 * (later - earlier) for earlier, later in zip(engine.asked, engine.asked[1:], strict=False)]
    assert all(pause >= PUSHBACK_MS - 5 for pause in pauses[:refusals]), pauses


@pytest.mark.parametrize("refusals", [[overloaded], [unavailable], [unavailable, overloaded, unavailable]])
@pytest.mark.parametrize("method", ["Tokenize", "Generate"])
async def test_asyncio_clients_try_again_when_they_are_told_to(method: str, refusals: list[Any]) -> None:
    engine = ReluctantEngine(*(make() for make in refusals))
    async with (
        live_server(engine) as live,
        grpc.aio.insecure_channel(live.server.address, options=OPTIONS) as channel,
        asyncio.timeout(OWN_BACKOFF_S / 2),
    ):
        stub: Any = taste_pb2_grpc.TasteServiceStub(channel)
        if method == "Tokenize":
            assert (await stub.Tokenize(messages.tokenize_request())).text_ids
        else:
            results = [result async for result in stub.Generate(messages.generate_request())]
            assert [result.index for result in results] == list(range(5))
    check_pauses(engine, len(refusals))
    assert engine.events[f"{method.lower()}:begin"] == len(refusals) + 1


@pytest.mark.parametrize("method", ["Tokenize", "Generate"])
async def test_clients_of_threads_try_again_when_they_are_told_to(method: str) -> None:
    engine = ReluctantEngine(overloaded(), unavailable())

    def run(address: str) -> int:
        with grpc.insecure_channel(address, options=OPTIONS) as channel:
            stub: Any = taste_pb2_grpc.TasteServiceStub(channel)
            if method == "Tokenize":
                return len([stub.Tokenize(messages.tokenize_request(), timeout=OWN_BACKOFF_S / 2)])
            return len(list(stub.Generate(messages.generate_request(), timeout=OWN_BACKOFF_S / 2)))

    async with live_server(engine) as live:
        assert await asyncio.to_thread(run, live.server.address) == (1 if method == "Tokenize" else 5)
    check_pauses(engine, 2)


async def test_a_server_that_loads_is_waited_for() -> None:
    engine = RecordingEngine()
    engine.load.clear()
    async with (
        live_server(engine, wait=False) as live,
        grpc.aio.insecure_channel(live.server.address, options=OPTIONS) as channel,
        asyncio.timeout(OWN_BACKOFF_S / 2),
    ):
        stub: Any = taste_pb2_grpc.TasteServiceStub(channel)
        call = stub.Tokenize(messages.tokenize_request())
        with pytest.raises(grpc.aio.AioRpcError) as refused:  # a client that does not try again knows by now
            await live.stub.Tokenize(messages.tokenize_request())
        assert dict(refused.value.trailing_metadata() or ())[PUSHBACK_KEY] == "2000"
        engine.load.set()
        assert (await call).text_ids


async def test_after_the_first_result_nothing_is_tried_again() -> None:
    class Breaking(RecordingEngine):
        async def _step(self, name: str) -> None:
            if self.events[name] == 2:
                raise overloaded()
            await super()._step(name)

    async with (
        live_server(Breaking()) as live,
        grpc.aio.insecure_channel(live.server.address, options=OPTIONS) as channel,
    ):
        call = taste_pb2_grpc.TasteServiceStub(channel).Generate(messages.generate_request())
        for _ in range(2):
            await call.read()
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            await call.read()
        assert ended.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert live.engine.events["generate:begin"] == 1


async def test_what_cannot_help_is_not_suggested() -> None:
    async with live_server(RecordingEngine()) as live:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await live.stub.Tokenize(messages.tokenize_request(" "))
        assert PUSHBACK_KEY not in dict(refused.value.trailing_metadata() or ())
