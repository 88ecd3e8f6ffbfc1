"""A live server on a thread of its own, for tests that call it as other processes do."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from taste_grpc.dialogue import ReplyModel
from taste_grpc.engine.protocol import Engine
from tests.support.live_server import Live, MakeDialogue, live_server

T = TypeVar("T")
_PATIENCE_S = 60.0


@dataclass(frozen=True)
class Served:
    """The server, and the event loop it runs on."""

    live: Live
    loop: asyncio.AbstractEventLoop

    @property
    def address(self) -> str:
        return self.live.server.address

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of `work`, run on the server's loop."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(_PATIENCE_S)


@contextmanager
def served(
    make_engine: Callable[[], Engine],
    *,
    make_reply: Callable[[], ReplyModel] | None = None,
    make_dialogue: MakeDialogue | None = None,
    **flags: Any,
) -> Iterator[Served]:
    ready: Future[Served] = Future()
    stop = threading.Event()

    async def main() -> None:
        reply_model = make_reply() if make_reply is not None else None
        async with live_server(make_engine(), reply_model=reply_model, make_dialogue=make_dialogue, **flags) as live:
            ready.set_result(Served(live, asyncio.get_running_loop()))
            await asyncio.to_thread(stop.wait)

    def serve() -> None:
        try:
            asyncio.run(main())
        except BaseException as error:
            if not ready.done():
                ready.set_exception(error)
            raise

    thread = threading.Thread(target=serve, name="served", daemon=True)
    thread.start()
    try:
        yield ready.result(_PATIENCE_S)
    finally:
        stop.set()
        thread.join(_PATIENCE_S)
        assert not thread.is_alive(), "the server does not stop"
