"""What is left behind by a thousand calls of which many end badly.

    python benchmarks/soak.py [--quick] [--calls N]

A server over a small model of random weights in deterministic mode; clients in the same process, 16 calls at a time:
Generate, Detokenize and Tokenize mixed, a third of them cancelled at random points, a tenth with slow readers, a few
malformed. Every hundred calls all is let come to rest and looked at. Before them and after them each request is made
alone: that is what it has to bring in company.

JSON keys:

- `rss_growth`: resident memory of the process at the greatest of the later looks over that after the first hundred
  calls (with `--quick`, the first quarter), less 1 (at most 0.05 wanted); `rss_mb` has them all;
- `kv_bytes`, `live_slots`: of the caches, the most that was held when no call was left, at any look (0 wanted);
  `kv_bytes_busy`, `live_slots_busy`: the most that was held in between;
- `leaked_tasks`: tasks of the event loop, on which both sides run, that were not there before the first call (0
  wanted);
- `wrong_results`: calls that were read to their end, slowly or not, and did not bring, to the bit, what the same
  request brought alone; malformed ones that did not end in INVALID_ARGUMENT; cancelled ones that ended in an error of
  another kind; requests that bring something else alone after all the calls (0 wanted).
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import grpc
import psutil

from taste_grpc.engine import EngineSettings, LocalEngine
from taste_grpc.model.embedded.random_checkpoint import write_random_checkpoint
from taste_grpc.server import TasteServer, calm_collector
from taste_grpc.settings import AdmissionSettings, MethodAdmission, load_settings

sys.path.insert(0, str(Path(__file__).parent))
from _report import report
from _soak_calls import RESPONSES, SERVICE, Fate, Planned, Request, bad_requests, content, good_requests, plan

CALLS, QUICK_CALLS = 1_000, 150
AT_ONCE = 16
REST_TIMEOUT_S = 60.0
GLANCE_S = 0.05  # between two looks at the caches while calls run
PAUSE_S = 0.03  # of slow readers, after each message
ADMISSION = MethodAdmission(active=6, waiting=64)
_OWN_CHANNEL = ("grpc.use_local_subchannel_pool", 1)
_SHORT_WINDOW = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 1_024), _OWN_CHANNEL]


@dataclass(frozen=True)
class Alone:
    """What a request brings when nothing else runs."""

    content: Any
    messages: int
    seconds: float


@dataclass
class Site:
    """A running server and two ways to it."""

    engine: LocalEngine
    channel: grpc.aio.Channel
    narrow: grpc.aio.Channel

    def call(self, request: Request, *, slow: bool = False) -> Any:
        """Begin a call; the answer is read from it."""
        channel, path = self.narrow if slow else self.channel, SERVICE + request.method
        read = {"response_deserializer": RESPONSES[request.method]}
        if request.method == "Tokenize":
            return channel.unary_unary(path, **read)(request.messages[0])
        if request.method == "Generate":
            return channel.unary_stream(path, **read)(request.messages[0])
        return channel.stream_stream(path, **read)(iter(request.messages))


@dataclass
class Tally:
    """What became of the calls, and what was seen of the caches: at rest, and at most in between."""

    ended: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    rss_mb: list[float] = field(default_factory=list)
    at_rest: Counter[str] = field(default_factory=Counter)
    busy: Counter[str] = field(default_factory=Counter)


@asynccontextmanager
async def site(directory: str) -> AsyncIterator[Site]:
    """A server over the checkpoint in `directory`, stopped in the end."""
    admission = AdmissionSettings(max_wait_ms=3_600_000, tokenize=ADMISSION, generate=ADMISSION, detokenize=ADMISSION)
    engine = LocalEngine(
        EngineSettings(
            model=directory,
            device="cpu",
            threads=1,
            admission=admission,
            deterministic=True,
            flush_after_ms=600_000,  # speech is ended when the caller is, and not because a core is busy
        )
    )
    settings = load_settings({"port": 0, "host": "127.0.0.1", "drain_grace_s": 1.0, "log_level": "error"})
    server = TasteServer(settings, lambda: engine)
    await server.start()
    await server.loaded()
    calm_collector()
    async with (
        grpc.aio.insecure_channel(server.address, options=[_OWN_CHANNEL]) as channel,
        grpc.aio.insecure_channel(server.address, options=_SHORT_WINDOW) as narrow,
    ):
        yield Site(engine, channel, narrow)
    await server.stop()


async def answers(call: Any, request: Request, pause_s: float = 0.0) -> list[Any]:
    """All answers of a call. Raises AioRpcError."""
    if request.method == "Tokenize":
        return [await call]
    found = []
    async for answer in call:
        found.append(answer)
        await asyncio.sleep(pause_s)
    return found


async def made_alone(place: Site, requests: Sequence[Request]) -> dict[Request, Alone]:
    """Each request by itself."""
    found = {}
    for request in requests:
        started = time.perf_counter()
        given = await answers(place.call(request), request)
        found[request] = Alone(content(request.method, given), len(given), time.perf_counter() - started)
    return found


async def make(place: Site, call: Planned, expected: dict[Request, Alone], tally: Tally) -> None:
    """One call, from beginning to end."""
    running = place.call(call.request, slow=call.fate is Fate.SLOW)
    alone = expected.get(call.request)
    try:
        if call.fate is Fate.CANCEL:
            assert alone is not None
            code = await cancelled(running, call, alone)
            tally.ended["over before it was cancelled" if code is grpc.StatusCode.OK else "cancelled"] += 1
            if code not in (grpc.StatusCode.OK, grpc.StatusCode.CANCELLED):
                tally.wrong.append(f"{call.request.method} {call.request.variant}: cancelled, but {code.name}")
            return
        given = await answers(running, call.request, PAUSE_S if call.fate is Fate.SLOW else 0.0)
        if alone is None:
            tally.wrong.append(f"{call.request.method}: a malformed request was answered")
        elif content(call.request.method, given) != alone.content:
            tally.wrong.append(f"{call.request.method} {call.request.variant}: another result than alone")
        tally.ended[call.fate.name.lower()] += 1
    except grpc.aio.AioRpcError as error:
        if alone is not None or error.code() is not grpc.StatusCode.INVALID_ARGUMENT:
            tally.wrong.append(f"{call.request.method} {call.request.variant}: {error.code().name}: {error.details()}")
        tally.ended[call.fate.name.lower()] += 1


async def cancelled(running: Any, call: Planned, alone: Alone) -> grpc.StatusCode:
    """Cancel a call at its moment; how it ended: OK when it was over before."""
    if call.request.method == "Tokenize" or not call.by_messages:
        await asyncio.sleep(call.moment * alone.seconds * AT_ONCE / 2)
    else:
        for _ in range(int(call.moment * alone.messages)):
            await running.read()
    running.cancel()
    code: grpc.StatusCode = await running.code()
    return code


def held(place: Site) -> Counter[str]:
    """What calls hold of the caches."""
    extra = place.engine.stats().extra
    return Counter({name: int(extra[name]) for name in ("kv_bytes", "live_slots")})


async def at_rest(place: Site) -> Counter[str]:
    """Return once the engine has no call left, or after a minute all the same: what was held at that moment."""
    deadline = time.monotonic() + REST_TIMEOUT_S
    while time.monotonic() < deadline:
        stats = place.engine.stats()
        if not (stats.active_calls or stats.waiting_calls):
            break
        await asyncio.sleep(0.01)
    found = held(place)
    await asyncio.sleep(0.2)
    gc.collect()
    return found


def tasks() -> Counter[str]:
    """What the tasks of the event loop run, by name."""
    return Counter(
        str(getattr(task.get_coro(), "__qualname__", "?")) for task in asyncio.all_tasks() if not task.done()
    )


async def storm(place: Site, calls: Sequence[Planned], expected: dict[Request, Alone], tally: Tally) -> None:
    """All of `calls`, so many at once, and the rest after them."""
    coming: Iterator[Planned] = iter(calls)

    async def client() -> None:
        for call in coming:
            await make(place, call, expected, tally)

    async def glance() -> None:
        while True:
            tally.busy |= held(place)  # the greater of each
            await asyncio.sleep(GLANCE_S)

    glancing = asyncio.create_task(glance())
    async with asyncio.TaskGroup() as clients:
        for _ in range(AT_ONCE):
            clients.create_task(client())
    glancing.cancel()
    tally.at_rest |= await at_rest(place)
    tally.rss_mb.append(psutil.Process().memory_info().rss / 1e6)


async def soak(directory: str, count: int, batch: int, seed: int = 0) -> dict[str, Any]:
    """`count` calls, at rest after each `batch` (at least two), on the checkpoint in `directory`: the figures."""
    tally = Tally()
    async with site(directory) as place:
        requests = good_requests(place.engine.info)
        calls = plan(count, requests, bad_requests(place.engine.info), seed)
        expected = await made_alone(place, requests)
        await at_rest(place)
        before, started = tasks(), time.perf_counter()
        for first in range(0, count, batch):
            await storm(place, calls[first : first + batch], expected, tally)
        seconds = time.perf_counter() - started
        leaked, stats = tasks() - before, place.engine.stats()
        for request, alone in (await made_alone(place, requests)).items():
            if alone.content != expected[request].content:
                tally.wrong.append(f"{request.method} {request.variant}: another result after all the calls")
    return {
        "rss_growth": round(max(tally.rss_mb[1:]) / tally.rss_mb[0] - 1, 4),
        "kv_bytes": tally.at_rest["kv_bytes"],
        "live_slots": tally.at_rest["live_slots"],
        "leaked_tasks": leaked.total(),
        "wrong_results": len(tally.wrong),
        "calls": count,
        "kv_bytes_busy": tally.busy["kv_bytes"],
        "live_slots_busy": tally.busy["live_slots"],
        "ended": dict(tally.ended),
        "wrong": tally.wrong[:10],
        "tasks_left": dict(leaked),
        "calls_left": stats.active_calls + stats.waiting_calls,
        "rss_mb": [round(mb, 1) for mb in tally.rss_mb],
        "seconds": round(seconds, 1),
        "alone_ms": {method: round(1000 * _median(expected, method)) for method in RESPONSES},
        "engine": {
            "completed": stats.completed_calls,
            "cancelled": stats.cancelled_calls,
            "failed": stats.failed_calls,
            "rounds": stats.extra["rounds"],
        },
    }


def _median(expected: dict[Request, Alone], method: str) -> float:
    return statistics.median(alone.seconds for request, alone in expected.items() if request.method == method)


def table(figures: dict[str, Any]) -> list[tuple[str, str]]:
    """What people read."""
    rss = figures["rss_mb"]
    return [
        *((f"calls: {how}", str(count)) for how, count in sorted(figures["ended"].items())),
        ("seconds", str(figures["seconds"])),
        (
            "resident memory, first look and greatest later one",
            f"{rss[0]:.0f} / {max(rss[1:]):.0f} MB ({figures['rss_growth']:+.1%})",
        ),
        ("cache bytes and slots held by no call", f"{figures['kv_bytes']} / {figures['live_slots']}"),
        ("at most held by calls", f"{figures['kv_bytes_busy']} / {figures['live_slots_busy']}"),
        ("tasks left", f"{figures['leaked_tasks']} {figures['tasks_left'] or ''}"),
        ("wrong results", f"{figures['wrong_results']} {'; '.join(figures['wrong'])}"),
    ]


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_CALLS} calls")
    parser.add_argument("--calls", type=int, help=f"number of calls (default {CALLS})")
    arguments = parser.parse_args()
    count = arguments.calls or (QUICK_CALLS if arguments.quick else CALLS)
    with tempfile.TemporaryDirectory() as folder:
        write_random_checkpoint(folder, seed=0)
        figures = asyncio.run(soak(folder, count, batch=min(100, max(1, count // 4))))
    report(f"{count} calls, {AT_ONCE} at a time", table(figures), figures, arguments.quick)


if __name__ == "__main__":
    main()
