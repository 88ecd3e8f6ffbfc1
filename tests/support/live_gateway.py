"""A live gateway in this process, on a free port, and clients of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from taste_grpc.gateway import Gateway
from taste_grpc.settings import load_settings
from tests.support.live_server import Live, live_server
from tests.support.recording_engine import RecordingEngine
from tests.support.scripted_conversations import ScriptedConversations, ScriptedSession

_PATIENCE_S = 20.0


@dataclass
class LiveGateway:
    gateway: Gateway
    conversations: Any

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.gateway.port}"

    @property
    def session(self) -> ScriptedSession:
        """The conversation that was opened last."""
        return self.conversations.opened[-1]

    @asynccontextmanager
    async def client(self, **more: Any) -> AsyncIterator[Client]:
        """A client that is connected and was told the protocol."""
        async with connect(f"ws://{self.address}/ws", compression=None, max_size=None, **more) as connection:
            client = Client(connection)
            assert await client.next() == {"type": "protocol", "version": 1}
            yield client

    @asynccontextmanager
    async def talking(self, *, headers: dict[str, str] | None = None, **start: Any) -> AsyncIterator[Client]:
        """A client whose conversation is open."""
        async with self.client(additional_headers=headers) as client:
            await client.send({"type": "start", "sample_rate": 16_000, **start})
            assert (await client.next())["type"] == "started"
            yield client


@dataclass
class Client:
    connection: ClientConnection
    seen: list[dict[str, Any]] = field(default_factory=list)

    async def send(self, message: dict[str, Any] | str | bytes) -> None:
        await self.connection.send(json.dumps(message) if isinstance(message, dict) else message)

    async def next(self) -> dict[str, Any]:
        """The next message."""
        async with asyncio.timeout(_PATIENCE_S):
            message: dict[str, Any] = json.loads(await self.connection.recv())
        self.seen.append(message)
        return message

    async def until(self, kind: str) -> dict[str, Any]:
        """The next message of type `kind`."""
        while (message := await self.next())["type"] != kind:
            pass
        return message

    async def mark(self, name: str = "m") -> list[dict[str, Any]]:
        """What comes until all that was sent so far has been processed."""
        before = len(self.seen)
        await self.send({"type": "mark", "id": name})
        while await self.next() != {"type": "mark", "id": name}:
            pass
        return self.seen[before:-1]

    async def rest(self) -> tuple[list[dict[str, Any]], int]:
        """All that still comes, and the code the connection is closed with."""
        messages = []
        try:
            while True:
                messages.append(await self.next())
        except ConnectionClosed:
            return messages, self.connection.close_code or 0


@asynccontextmanager
async def live_gateway(conversations: Any = None, **flags: Any) -> AsyncIterator[LiveGateway]:
    """`flags` are settings; `gateway` among them are further arguments of `Gateway`."""
    conversations = conversations or ScriptedConversations()
    more = flags.pop("gateway", {})
    settings = load_settings({"web": {"port": 0}, **flags})
    gateway = Gateway(conversations, settings, **more)
    await gateway.start()
    try:
        yield LiveGateway(gateway, conversations)
    finally:
        await gateway.stop()


@dataclass
class RealGateway(LiveGateway):
    """With conversations that listen, answer and speak."""

    live: Live


@asynccontextmanager
async def real_gateway(**flags: Any) -> AsyncIterator[RealGateway]:
    """The gateway of a whole server; `flags` are its settings."""
    from taste_grpc.dialogue.local import LocalDialogue

    quiet = {"log_latency": False, **flags.pop("stream", {})}
    engine = RecordingEngine()
    async with live_server(engine, make_dialogue=LocalDialogue, make_web=Gateway, stream=quiet, **flags) as live:
        yield RealGateway(live.gateway, live.conversations, live)
