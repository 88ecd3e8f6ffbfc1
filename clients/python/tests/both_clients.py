"""AsyncTasteClient with the face of TasteClient, so that one test covers both."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any

from taste_grpc_client import AsyncTasteClient

MakeClient = Callable[..., Any]
"""Makes a client of one of the two kinds from a target and options."""

_WAIT_S = 60.0


class LoopThread:
    """An event loop that runs."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever)
        self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(_WAIT_S)

    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The result of a function that must run on the loop."""

        async def called() -> Any:
            return function(*args, **kwargs)

        return self.run(called())

    def close(self) -> None:
        self.run(self._settle())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(_WAIT_S)
        self.loop.close()

    async def _settle(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self.loop.shutdown_asyncgens()


class BlockingStream:
    """An AsyncResultStream as an iterator."""

    def __init__(self, thread: LoopThread, stream: Any) -> None:
        self._thread = thread
        self._stream = stream

    def __iter__(self) -> BlockingStream:
        return self

    def __next__(self) -> Any:
        async def step() -> Any:
            try:
                return await anext(self._stream)
            except StopAsyncIteration:
                return StopIteration

        result = self._thread.run(step())
        if result is StopIteration:
            raise StopIteration
        return result

    def __enter__(self) -> BlockingStream:
        return self

    def __exit__(self, *error: object) -> None:
        self._thread.run(self._stream.__aexit__(*error))

    def cancel(self) -> None:
        self._thread.call(self._stream.cancel)

    @property
    def results(self) -> Any:
        return self._stream.results


class BlockingConversation:
    """An AsyncConversation whose methods block."""

    def __init__(self, thread: LoopThread, talk: Any) -> None:
        self._thread = thread
        self._talk = talk

    def __iter__(self) -> BlockingConversation:
        return self

    def __next__(self) -> Any:
        return next(BlockingStream(self._thread, self._talk))

    def __enter__(self) -> BlockingConversation:
        self._thread.run(self._talk.__aenter__())
        return self

    def __exit__(self, *error: object) -> None:
        self._thread.run(self._talk.__aexit__(*error))

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._talk, name)
        if not callable(found):
            return found
        return lambda *args, **options: self._thread.run(found(*args, **options))


class BlockingClient:
    """An AsyncTasteClient whose methods block."""

    def __init__(self, thread: LoopThread, target: str, **options: Any) -> None:
        self._thread = thread
        self._client = thread.call(AsyncTasteClient, target, **options)

    def __repr__(self) -> str:
        return repr(self._client)

    def model_info(self, **options: Any) -> Any:
        return self._thread.run(self._client.model_info(**options))

    def tokenize(self, *args: Any, **options: Any) -> Any:
        return self._thread.run(self._client.tokenize(*args, **options))

    def generate(self, *args: Any, **options: Any) -> BlockingStream:
        return self._stream(self._client.generate, *args, **options)

    def reply(self, *args: Any, **options: Any) -> BlockingStream:
        return self._stream(self._client.reply, *args, **options)

    def detokenize(self, *args: Any, **options: Any) -> BlockingStream:
        return self._stream(self._client.detokenize, *args, **options)

    def speak(self, *args: Any, **options: Any) -> BlockingStream:
        return self._stream(self._client.speak, *args, **options)

    def converse(self, **options: Any) -> BlockingConversation:
        return BlockingConversation(self._thread, self._thread.call(self._client.converse, **options))

    def close(self) -> None:
        self._thread.run(self._client.close())

    def _stream(self, method: Callable[..., Any], *args: Any, **options: Any) -> BlockingStream:
        return BlockingStream(self._thread, self._thread.call(method, *args, **options))
