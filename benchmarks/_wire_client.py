"""The client of `wire.py`, as a process: reads Generate streams of either server.

    python benchmarks/_wire_client.py TARGET

Takes orders as JSON lines at stdin, answers each with a JSON line, and ends when its stdin does.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any

import grpc

from taste.v1 import common_pb2, taste_pb2

GENERATE = "/taste.v1.TasteService/Generate"


async def read(call: Any) -> int:
    """The number of messages of a stream. They stay bytes: what they mean is not the servers' matter."""
    count = 0
    while await call.read() is not grpc.aio.EOF:
        count += 1
    return count


async def read_closely(call: Any) -> int:
    """The number of messages of a stream; raises ValueError when they are not the ones asked for, in order."""
    count, complete = 0, False
    while (data := await call.read()) is not grpc.aio.EOF:
        message = taste_pb2.StreamingResult.FromString(data)
        tokens = message.segment.tokens
        if (
            complete
            or message.index != count
            or list(tokens.word_ids) != [count]
            or len(tokens.taste_tokens.codes.ids) != 4
        ):
            raise ValueError(f"message {count} is {message}")
        count, complete = count + 1, message.is_complete
    if not complete:
        raise ValueError(f"the last of {count} messages does not say that it is the last")
    return count


async def measure(channel: grpc.aio.Channel, streams: int, messages: int, *, closely: bool) -> dict[str, float]:
    """Read `streams` at once, of `messages` each: how many came, in how many seconds, and the CPU seconds of this."""
    request = taste_pb2.GenerateRequest(max_length=messages)
    request.segments.add(role=common_pb2.ROLE_USER, text="good morning")
    data: bytes = request.SerializeToString()
    begin: Any = channel.unary_stream(GENERATE)
    reading = read_closely if closely else read
    started, cpu = time.perf_counter(), time.process_time()
    counts = await asyncio.gather(*(reading(begin(data)) for _ in range(streams)))
    seconds, cpu_s = time.perf_counter() - started, time.process_time() - cpu
    if counts != [messages] * streams:
        raise ValueError(f"of {messages} messages in each stream came {counts}")
    return {"messages": sum(counts), "seconds": seconds, "cpu_s": cpu_s}


async def main(target: str) -> None:
    """Do what stdin says."""
    async with grpc.aio.insecure_channel(target) as channel:
        while line := await asyncio.to_thread(sys.stdin.readline):
            order = json.loads(line)
            found = await measure(channel, order["streams"], order["messages"], closely=order["closely"])
            print(json.dumps(found), flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
