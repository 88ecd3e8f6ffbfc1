"""Hundreds of calls that are cancelled, run out of time, or lose their client, at points drawn at random.

The real engine over the wire. A point is a number of pieces of model work (see `ModelPieces`), so that a seed gives
the same points on every machine.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os
import random
import signal
import statistics
import threading
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import grpc
import psutil
import pytest
import pytest_asyncio
from google.protobuf.message import Message

from taste.v1 import taste_pb2
from taste_grpc.engine import EngineSettings, LocalEngine
from taste_grpc.engine.model_loop import Job
from taste_grpc.engine.slots import Reservation
from taste_grpc.engine.speaking import Utterance
from taste_grpc.streaming import Answer
from taste_grpc.streaming.speech_stream import SpeechStream
from tests.checkpoints import TINY
from tests.support import messages
from tests.support.hanging_client import client_parent
from tests.support.live_server import Live, live_server, until
from tests.support.model_pieces import ModelPieces

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(600)]

METHODS = ("Tokenize", "Generate", "Detokenize")
TIMES = {"Tokenize": 40, "Generate": 80, "Detokenize": 80}
WARM_UP = 15
WAITING = -1
"""The point at which Detokenize has spoken all there is, and waits for its caller."""

MAX_GROWTH_BYTES = 2 << 20
"""Of the resident memory from the first to the last quarter of a series: 14 KB a call. The audio of a Tokenize has
32 KB, the spectrum made of it 1.5 MB."""

SAMPLED_EVERY = 10

HELD = (Answer, Job, Reservation, SpeechStream, Utterance)
"""What only a running call may have; other tests in this process may have kept some."""


def requests_of(method: str, length: int = 4000) -> list[Message]:
    if method == "Tokenize":
        return [messages.tokenize_request()]
    segment = messages.token_segment((3, 4))
    if method == "Generate":
        return [
            taste_pb2.GenerateRequest(
                segments=[segment],
                max_length=length,
                extra_words=1024,
                eos_id=0,
                seed=5,
                conversation_format="completion",
            )
        ]
    return [
        taste_pb2.DetokenizeRequest(config=messages.config()),
        taste_pb2.DetokenizeRequest(segment=segment),
    ]


async def complete(live: Live, method: str) -> list[Message]:
    """The whole answer to a good call, without what is measured."""
    requests = requests_of(method, length=16)
    if method == "Tokenize":
        answers = [await live.stub.Tokenize(requests[0])]
    elif method == "Generate":
        answers = [answer async for answer in live.stub.Generate(requests[0])]
    else:
        answers = [answer async for answer in live.stub.Detokenize(iter(requests))]
    for answer in answers:
        answer.ClearField("timing")
    return answers


def tasks() -> Counter[str]:
    coroutines = [task.get_coro() for task in asyncio.all_tasks() if not task.done()]
    return Counter(getattr(coroutine, "__qualname__", type(coroutine).__name__) for coroutine in coroutines)


def threads() -> Counter[str]:
    return Counter(thread.name for thread in threading.enumerate())


def held() -> Counter[str]:
    """Instances of `HELD` that are alive."""
    return Counter(type(thing).__name__ for thing in gc.get_objects() if type(thing) in HELD)


@dataclass(frozen=True)
class Point:
    """Where a call ends: piece number `at`, which is `held` until the call has been asked to stop, or goes on."""

    method: str
    at: int
    held: bool


@dataclass
class Bench:
    """A live server, what it answers when all is well, and how many pieces of work that takes."""

    live: Live
    pieces: ModelPieces
    kept: Counter[str]
    """Of `HELD`, what there was before the first call."""
    good: dict[str, list[Message]] = field(default_factory=dict)
    length: dict[str, int] = field(default_factory=dict)

    async def learn(self) -> None:
        for method in METHODS:
            self.pieces.arm(0)
            self.good[method] = await complete(self.live, method)
            self.length[method] = self.pieces.begun.total()

    def points(self, seed: int) -> list[Point]:
        draw = random.Random(seed)
        chosen = [method for method in METHODS for _ in range(TIMES[method])]
        draw.shuffle(chosen)
        points = [Point(method, draw.randint(1, self.length[method]), draw.random() < 0.5) for method in chosen]
        for number, point in enumerate(points):
            if point.method == "Detokenize" and draw.random() < 0.1:
                points[number] = replace(point, at=WAITING)
        return points

    def arm(self, point: Point) -> None:
        self.pieces.arm(point.at, hold=point.held)

    async def reached(self, point: Point) -> None:
        """Wait until the call has come to its point."""
        if point.at == WAITING:
            scheduler, all_of_it = self.live.engine._loop._scheduler, self.length[point.method]
            await until(lambda: self.pieces.begun.total() >= all_of_it and not len(scheduler), 30)
        else:
            async with asyncio.timeout(30):
                await self.pieces.reached.wait()

    async def over(self) -> None:
        """Wait until no call is left, and check that the last one stopped as it must."""
        engine = self.live.engine
        await until(lambda: engine.stats().active_calls == 0 and self.live.server._gate.active == 0, 30)
        held = engine.stats().extra
        assert (held["kv_bytes"], held["live_slots"]) == (0, 0)
        assert self.pieces.late.total() <= 1, f"went on after it was asked to stop: {self.pieces.late}"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bench() -> AsyncIterator[Bench]:
    gc.collect()
    kept = held()
    engine = LocalEngine(EngineSettings(model=TINY, device="cpu", threads=1))
    async with live_server(engine) as live:
        bench = Bench(live, ModelPieces(engine), kept)
        await bench.learn()
        yield bench
        bench.pieces.remove()


class Surroundings:
    """What there was before a series of endings, to be found again after it."""

    def __init__(self, kept: Counter[str]) -> None:
        gc.collect()
        self._process = psutil.Process()
        self._kept, self._tasks, self._threads = kept, tasks(), threads()
        self._files = self._process.num_fds()
        self._resident: list[int] = []

    def sample(self) -> None:
        """Note how much memory is in use, once nothing is left that is only not given back yet."""
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        self._resident.append(self._process.memory_info().rss)

    async def check(self) -> None:
        await until(lambda: held() <= self._kept)  # the thread lets go of its last piece after it has told of its end
        await until(lambda: tasks() <= self._tasks)
        await until(lambda: self._process.num_fds() <= self._files)
        assert threads() <= self._threads
        quarter = len(self._resident) // 4
        growth = statistics.median(self._resident[-quarter:]) - statistics.median(self._resident[:quarter])
        assert growth < MAX_GROWTH_BYTES, f"memory grew by {growth / 1e6:.1f} MB"


async def read_all(call: Any, requests: list[Message]) -> None:
    """Everything that is answered; a stream of requests stays open."""
    for request in requests:
        await call.write(request)
    while await call.read() is not grpc.aio.EOF:
        pass


def begin(live: Live, method: str, **options: Any) -> tuple[Any, asyncio.Future[Any]]:
    """A call, and the future of its whole answer."""
    requests = requests_of(method)
    if method == "Tokenize":
        call = live.stub.Tokenize(requests[0], **options)
        return call, asyncio.ensure_future(call)
    if method == "Generate":
        call = live.stub.Generate(requests[0], **options)
        return call, asyncio.create_task(read_all(call, []))
    call = live.stub.Detokenize(**options)
    return call, asyncio.create_task(read_all(call, requests))


async def repeat(bench: Bench, seed: int, end: Callable[[Point], Awaitable[None]]) -> None:
    """End many calls by `end`; afterwards everything is as it was before, and a good call as good."""
    points = bench.points(seed)
    for point in points[:WARM_UP]:
        await end(point)
    surroundings = Surroundings(bench.kept)
    for number, point in enumerate(points):
        await end(point)
        if number % SAMPLED_EVERY == 0:
            surroundings.sample()
    await surroundings.check()
    stats = bench.live.engine.stats()
    assert (stats.active_calls, stats.waiting_calls) == (0, 0)
    for method in METHODS:
        assert await complete(bench.live, method) == bench.good[method]


async def cancel(bench: Bench, point: Point) -> None:
    bench.arm(point)
    call, answer = begin(bench.live, point.method)
    await bench.reached(point)
    call.cancel()
    with suppress(asyncio.CancelledError):
        await answer
    assert call.cancelled()
    await bench.over()


async def test_cancelled_calls(bench: Bench) -> None:
    await repeat(bench, 1, lambda point: cancel(bench, point))


async def test_calls_that_run_out_of_time(bench: Bench) -> None:
    """The piece at which its deadline finds a call is held until then, if the machine is so fast that it gets there."""
    times = random.Random(2)

    async def run_out(point: Point) -> None:
        bench.arm(replace(point, held=True))
        _, answer = begin(bench.live, point.method, timeout=times.uniform(0.01, 0.1))
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            await answer
        # Of a write that its deadline cut off, a grpc.aio client says that an operation of its core failed.
        cut_off = "SendMessageOperation" in (ended.value.debug_error_string() or "")
        assert cut_off or ended.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await bench.over()

    await repeat(bench, 2, run_out)


async def test_calls_whose_client_is_killed(bench: Bench) -> None:
    async with client_parent(bench.live.server.address) as parent:

        async def kill(point: Point) -> None:
            bench.arm(point)
            pid = await parent.call(point.method, requests_of(point.method))
            await bench.reached(point)
            os.kill(pid, signal.SIGKILL)
            await bench.over()

        await repeat(bench, 3, kill)


@pytest.mark.parametrize("method", METHODS)
async def test_what_a_call_held_is_freed_at_once(bench: Bench, method: str) -> None:
    """Not when the garbage collector comes by."""
    gc.collect()
    gc.disable()
    try:
        for at in range(1, bench.length[method], 7):
            await cancel(bench, Point(method, at, held=at % 2 == 0))
            await until(lambda: held() <= bench.kept)
    finally:
        gc.enable()
