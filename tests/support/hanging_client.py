"""Client processes whose only use is to be killed in the middle of a call.

`python -m tests.support.hanging_client ADDRESS` is the parent of such clients. It imports gRPC and opens no channel, so
that it can fork: a client is there within milliseconds. For each line `METHOD MESSAGE...` (messages in hexadecimal)
on its standard input it forks one and prints its process id. They all end with it, and it ends with its input.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager

import grpc
from google.protobuf.message import Message


class ClientParent:
    """The process that forks clients, as a test sees it."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def call(self, method: str, messages: Sequence[Message]) -> int:
        """Process id of a new client that makes a call and reads all of the answer; it never half-closes a stream."""
        assert self._process.stdin
        assert self._process.stdout
        line = " ".join([method, *(message.SerializeToString().hex() for message in messages)])
        self._process.stdin.write(f"{line}\n".encode())
        await self._process.stdin.drain()
        return int(await self._process.stdout.readline())


@asynccontextmanager
async def client_parent(address: str) -> AsyncIterator[ClientParent]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.support.hanging_client",
        address,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    try:
        yield ClientParent(process)
    finally:
        assert process.stdin
        process.stdin.close()
        await process.wait()


def _call(address: str, method: str, messages: list[bytes]) -> None:
    service = "DialogueService" if method in ("Converse", "Reply") else "TasteService"
    channel, path = grpc.insecure_channel(address), f"/taste.v1.{service}/{method}"
    forever = threading.Event()

    def requests() -> Iterator[bytes]:
        yield from messages
        forever.wait()

    if method == "Tokenize":
        channel.unary_unary(path)(messages[0])
    else:
        stream = method in ("Converse", "Detokenize")
        answers = channel.stream_stream(path)(requests()) if stream else channel.unary_stream(path)(messages[0])
        for _ in answers:
            pass
    forever.wait()


def main() -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody asks how a client ended
    for line in sys.stdin:
        method, *messages = line.split()
        pid = os.fork()
        if pid == 0:
            try:
                _call(sys.argv[1], method, [bytes.fromhex(message) for message in messages])
            finally:
                os._exit(1)
        print(pid, flush=True)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main()
