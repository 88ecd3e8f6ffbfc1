"""Phrases of many conversations over a few processes that speak."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence

from taste_grpc.audio.waveform import Float32Array
from taste_grpc.errors import SpeechError
from taste_grpc.speech.voice_process import Phrase, VoiceProcess


class VoiceProcesses:
    """Each process speaks a phrase at a time, first come first served. Used from one event loop.

    A process that ends takes the phrase with it that it had, and is started again.

    Args:
        command: the program, with the frames of `piper_process`.
        count: how many of it.
        grace_s: how long a process may still be busy with a phrase that was dropped before it is killed.
    """

    def __init__(self, command: Sequence[str], count: int, grace_s: float) -> None:
        self._processes = [VoiceProcess(command) for _ in range(count)]
        self._grace_s = grace_s
        self._waiting: asyncio.Queue[Phrase] = asyncio.Queue()
        self._workers: list[asyncio.Task[None]] = []
        self._started: list[asyncio.Future[SpeechError | None]] = []
        self._is_closed = False

    @property
    def pids(self) -> list[int]:
        """Of the processes that run."""
        return [process.pid for process in self._processes if process.pid is not None]

    async def start(self) -> None:
        """Wait until all processes have started. Raises SpeechError when one does not."""
        self._begin()
        for started in self._started:
            if (error := await asyncio.shield(started)) is not None:
                raise error

    async def speak(self, text: str) -> AsyncGenerator[Float32Array]:
        """The audio of `text`, sentence by sentence; `Voice.speak` says the rest."""
        self._begin()
        phrase = Phrase(text)
        self._waiting.put_nowait(phrase)
        try:
            while (piece := await phrase.next_piece()) is not None:
                yield piece
        finally:
            phrase.drop()

    async def aclose(self) -> None:
        """End the processes; phrases that wait or are under way fail."""
        self._is_closed = True
        for worker in self._workers:
            worker.cancel()
        await asyncio.gather(*self._workers, return_exceptions=True)
        for process in self._processes:
            await process.end()
        for started in self._started:
            if not started.done():
                started.set_result(_closed())
        while not self._waiting.empty():
            self._waiting.get_nowait().end(_closed())

    def _begin(self) -> None:
        if self._is_closed:
            raise _closed()
        if not self._workers:
            loop = asyncio.get_running_loop()
            self._started = [loop.create_future() for _ in self._processes]
            self._workers = [
                loop.create_task(self._work(process, started))
                for process, started in zip(self._processes, self._started, strict=True)
            ]

    async def _work(self, process: VoiceProcess, started: asyncio.Future[SpeechError | None]) -> None:
        """All that happens to `process`: so that nothing does once this has been cancelled."""
        started.set_result(await _start(process))
        while True:
            phrase = await self._waiting.get()
            if phrase.is_dropped:
                continue
            try:
                await self._say(process, phrase)
            except asyncio.CancelledError:
                phrase.end(_closed())
                raise
            except Exception as error:
                phrase.end(error if isinstance(error, SpeechError) else SpeechError(f"the voice failed: {error!r}"))
                await process.end()
                await _start(process)  # if that fails, the next phrase tries again and says why

    async def _say(self, process: VoiceProcess, phrase: Phrase) -> None:
        await process.start()
        if phrase.is_dropped:
            return
        try:
            async with asyncio.timeout(None) as limit:
                phrase.limit_when_dropped(limit, self._grace_s)
                try:
                    await process.say(phrase)
                finally:
                    phrase.limit_when_dropped(None)
        except TimeoutError:
            raise SpeechError(f"the voice was busy for {self._grace_s} s with a phrase nobody wanted") from None


async def _start(process: VoiceProcess) -> SpeechError | None:
    try:
        await process.start()
    except SpeechError as error:
        return error
    return None


def _closed() -> SpeechError:
    return SpeechError("the voice has been closed")
