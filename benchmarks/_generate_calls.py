"""Generate calls that run side by side: a server and a client, each in a process of its own, told what to do by lines.

python benchmarks/_generate_calls.py serve '{"model": DIR, ..}'    each line "stats" brings the engine's counters
python benchmarks/_generate_calls.py call ADDRESS                  each line of JSON, {"calls", "ids", "seed"},
                                                                   brings when every id of every call arrived
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, Self

import numpy as np

PROMPT_WORDS = 16
_STOP_S = 60.0


class Answering(Protocol):
    """Whoever can be asked: what goes in and out is as plain as JSON."""

    def ask(self, question: Any) -> Any:
        """The answer to `question`."""
        ...


class Process:
    """A process of this file that answers lines of JSON with lines of JSON; ends with its standard input."""

    def __init__(self, *arguments: str) -> None:
        command = [sys.executable, __file__, *arguments]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def answer(self) -> Any:
        """What it says next. Raises SystemExit when it has ended."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"a process of the benchmark ended with status {self._process.wait()}")
        return json.loads(line)

    def ask(self, question: Any) -> Any:
        """The answer to `question`."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        return self.answer()

    def close(self) -> None:
        """End it."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        try:
            self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


@dataclass(frozen=True)
class Site:
    """A server, which is asked for `counted`, and a client of it, which is asked for `arrivals`."""

    server: Answering
    client: Answering

    def calls(self, count: int, ids: int, seed: int) -> Arrivals:
        """`count` calls of `ids` ids each, sent at the same time."""
        before = self.server.ask("stats")
        answer = self.client.ask({"calls": count, "ids": ids, "seed": seed})
        after = self.server.ask("stats")
        return Arrivals(
            sent=answer["sent"],
            times=answer["times"],
            ids=answer["ids"],
            steps=after["decode_steps"] - before["decode_steps"],
            batches=after["text_calls"] - before["text_calls"],
        )


@contextmanager
def site(settings: dict[str, Any]) -> Iterator[Site]:
    """A server with `EngineSettings(**settings)`, and a client; ended in the end."""
    server = Process("serve", json.dumps(settings))
    try:
        client = Process("call", server.answer()["address"])
        try:
            yield Site(server, client)
        finally:
            client.close()
    finally:
        server.close()


@dataclass(frozen=True)
class Arrivals:
    """When what calls brought arrived at the client.

    Attributes:
        sent: when the calls were sent, s.
        times: of each call, when each of its messages arrived, s.
        ids: of each call, the ids of each of its messages.
        steps: ids that the server drew, the ones that only fetch the codes of a last word among them.
        batches: steps over all calls that wait for one.
    """

    sent: float
    times: Sequence[Sequence[float]]
    ids: Sequence[Sequence[Sequence[int]]]
    steps: int
    batches: int

    def check(self, count: int) -> Self:
        """Raises SystemExit unless every call brought `count` ids in as many messages, and the server drew those."""
        for messages in self.ids:
            if [len(ids) for ids in messages] != [1] * count:
                raise SystemExit(f"a call brought {[len(ids) for ids in messages]} ids, {count} times 1 is expected")
        if len(self.ids) * count > self.steps or self.steps % len(self.ids):
            raise SystemExit(f"the server drew {self.steps} ids for {len(self.ids)} calls of {count}")
        return self

    @property
    def gaps(self) -> list[float]:
        """Seconds between one id and the next of the same call, of all calls."""
        return [float(gap) for times in self.times for gap in np.diff(times)]

    @property
    def first_s(self) -> float:
        """Seconds until all calls had their first id."""
        return max(times[0] for times in self.times) - self.sent

    @property
    def rate(self) -> float:
        """Ids per second, from when the calls were sent to the last id of the last of them."""
        return sum(len(times) for times in self.times) / (max(times[-1] for times in self.times) - self.sent)

    @property
    def steady_rate(self) -> float:
        """Ids per second while all calls bring some: from the last first id to the first last one."""
        start, end = max(times[0] for times in self.times), min(times[-1] for times in self.times)
        return sum(start < at <= end for times in self.times for at in times) / (end - start)


# --- the processes


async def serve(settings: dict[str, Any]) -> None:
    """Serve, and tell what the engine has counted when asked."""
    from taste_grpc.engine import EngineSettings, LocalEngine
    from taste_grpc.server import TasteServer, calm_collector
    from taste_grpc.settings import load_settings

    engine = LocalEngine(EngineSettings(**settings))
    flags = {"port": 0, "host": "127.0.0.1", "drain_grace_s": 1.0, "log_level": "error"}
    server = TasteServer(load_settings(flags), lambda: engine)
    await server.start()
    await server.loaded()
    calm_collector()
    say({"address": server.address})
    while await asyncio.to_thread(sys.stdin.readline):
        say(counted(engine))
    await server.stop()


def counted(engine: Any) -> dict[str, int]:
    """What a LocalEngine has done so far."""
    stats = engine.stats()
    return {"decode_steps": stats.decode_steps, "text_calls": stats.extra["text_calls"]}


async def call(address: str) -> None:
    """Send the calls that are asked for, and tell when their messages arrived."""
    import grpc

    from taste.v1 import taste_pb2_grpc

    async with grpc.aio.insecure_channel(address) as channel:
        stub = taste_pb2_grpc.TasteServiceStub(channel)
        while line := await asyncio.to_thread(sys.stdin.readline):
            say(await arrivals(stub, **json.loads(line)))


async def arrivals(stub: Any, calls: int, ids: int, seed: int) -> dict[str, Any]:
    """Send so many calls at once: when that was, and of each call the times and the ids of its messages."""
    from taste.v1 import taste_pb2

    async def one(request: Any) -> tuple[list[float], list[list[int]]]:
        times, found = [], []
        async for result in stub.Generate(request):
            times.append(time.perf_counter())
            found.append(list(result.segment.tokens.text_ids))
        return times, found

    info = await stub.GetModelInfo(taste_pb2.GetModelInfoRequest())
    requests = [request(info.vq_dim, ids, seed + index) for index in range(calls)]
    sent = time.perf_counter()
    brought = await asyncio.gather(*map(one, requests))
    return {"sent": sent, "times": [times for times, _ in brought], "ids": [ids for _, ids in brought]}


def request(vq_dim: int, ids: int, seed: int) -> Any:
    """A Generate request whose answer has exactly `ids` ids, after a prompt of a few spoken words."""
    from taste.v1 import common_pb2, taste_pb2

    drawn = np.random.default_rng(seed)
    codes = common_pb2.TasteCodes(vq_dim=vq_dim, ids=drawn.integers(0, 32, PROMPT_WORDS * vq_dim).tolist())
    tokens = common_pb2.SegmentTokens(
        text_ids=drawn.integers(0, 512, PROMPT_WORDS).tolist(),
        word_ids=range(PROMPT_WORDS),
        taste_tokens=common_pb2.TasteTokens(codes=codes),
    )
    segment = common_pb2.Segment(role=common_pb2.ROLE_USER, modality=common_pb2.MODALITY_AUDIO, tokens=tokens)
    emit = taste_pb2.EmitPolicy(every_words=1)
    return taste_pb2.GenerateRequest(segments=[segment], max_length=ids, extra_words=1_000, seed=seed, emit_policy=emit)


def say(answer: Any) -> None:
    """A line of JSON to whoever started this process."""
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    what, given = sys.argv[1:]
    asyncio.run(serve(json.loads(given)) if what == "serve" else call(given))
