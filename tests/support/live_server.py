"""A live server in this process, on a free port."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import grpc

from taste.v1 import dialogue_pb2_grpc, taste_pb2_grpc
from taste_grpc.dialogue import DialogueMetrics, ReplyModel
from taste_grpc.engine.protocol import Engine
from taste_grpc.server import TasteServer
from taste_grpc.settings import Settings, load_settings

if TYPE_CHECKING:
    from taste_grpc.gateway import Gateway

MakeDialogue = Callable[[Settings, Engine], Any]

SHORT_WINDOW = [
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", 16384),
    ("grpc.use_local_subchannel_pool", 1),
]


@dataclass
class Live:
    server: TasteServer
    engine: Any
    channel: grpc.aio.Channel

    @property
    def stub(self) -> Any:
        return taste_pb2_grpc.TasteServiceStub(self.channel)

    @property
    def gateway(self) -> Gateway:
        """Where there is one."""
        return self.server._web  # type: ignore[return-value]

    @property
    def conversations(self) -> Any:
        """Those that are held here."""
        return self.server._dialogue.conversations  # type: ignore[union-attr]

    @property
    def dialogue(self) -> Any:
        return dialogue_pb2_grpc.DialogueServiceStub(self.channel)


class OnlyReplies:
    """A dialogue in which nobody converses."""

    parts = ()

    def __init__(self, reply_model: ReplyModel, settings: Settings, engine: Engine) -> None:
        self.reply_model, self.metrics = reply_model, DialogueMetrics(log_latency=False)
        self.conversations = NoConversations()

    async def start(self) -> None:
        await self.reply_model.initialize()

    async def aclose(self) -> None:
        await self.reply_model.aclose()


class NoConversations:
    async def leave(self, grace_s: float) -> None:
        """There are none."""


@asynccontextmanager
async def live_server(
    engine: Engine,
    *,
    wait: bool = True,
    make_dialogue: MakeDialogue | None = None,
    reply_model: ReplyModel | None = None,
    make_web: type[Gateway] | None = None,
    **flags: Any,
) -> AsyncIterator[Live]:
    """`make_dialogue` and `make_web` get the settings of the server too.

    With `reply_model` there are replies and nothing else.
    """
    if reply_model is not None:
        make_dialogue = partial(OnlyReplies, reply_model)
    settings = load_settings({"port": 0, "drain_grace_s": 0.2, "web": {"port": 0}, **flags})
    make = partial(make_dialogue, settings) if make_dialogue is not None else None
    beside = partial(_web, make_web, settings) if make_web is not None else None
    server = TasteServer(settings, lambda: engine, make, beside)
    await server.start()
    channel = grpc.aio.insecure_channel(server.address, options=SHORT_WINDOW)
    try:
        if wait:
            await server.loaded()
        yield Live(server, engine, channel)
    finally:
        await channel.close()
        await server.stop()


def _web(make: type[Gateway], settings: Settings, door: Any, authenticate: Any, is_serving: Any) -> Gateway:
    return make(door, settings, authenticate, is_serving)


async def until(condition: Callable[[], bool], timeout_s: float = 30.0) -> None:
    """Wait until `condition` holds; fails with a timeout when it never does."""
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.01)
