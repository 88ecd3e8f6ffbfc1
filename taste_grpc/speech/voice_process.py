"""A process that speaks: how it is started, spoken to and ended."""

from __future__ import annotations

import asyncio
import signal
from asyncio.subprocess import PIPE, Process
from collections.abc import Sequence

import numpy as np

from taste_grpc.audio.waveform import Float32Array
from taste_grpc.errors import SpeechError
from taste_grpc.speech.piper_process import AUDIO, DROP, END, FAILED, HEADER, NEXT, READY, SAY

_START_S = 60.0
_EXIT_S = 1.0
_MAX_UNREAD = 32


class Phrase:
    """A phrase on its way through a process, between the one who wants to hear it and the one who makes it."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.is_dropped = False
        self._pieces: asyncio.Queue[Float32Array | SpeechError | None] = asyncio.Queue()
        self._room = asyncio.Semaphore(_MAX_UNREAD)
        self._limit: asyncio.Timeout | None = None
        self._grace_s = 0.0

    async def next_piece(self) -> Float32Array | None:
        """Audio `[T]` float32; None after the last. Raises SpeechError when the phrase cannot be spoken."""
        piece = await self._pieces.get()
        if isinstance(piece, SpeechError):
            raise piece
        self._room.release()
        return piece

    def drop(self) -> None:
        """Nobody wants it any more."""
        self.is_dropped = True
        self._room.release()
        if self._limit is not None:
            self._limit.reschedule(asyncio.get_running_loop().time() + self._grace_s)

    def limit_when_dropped(self, limit: asyncio.Timeout | None, grace_s: float = 0.0) -> None:
        """Once dropped, let `limit` run out after `grace_s`; None takes it back."""
        self._limit, self._grace_s = limit, grace_s

    async def put(self, piece: Float32Array) -> None:
        """Hand over `piece`; waits while many are not fetched, unless the phrase is dropped."""
        self._pieces.put_nowait(piece)
        await self._room.acquire()

    def end(self, error: SpeechError | None = None) -> None:
        """No piece comes after those that were put; `error` says why not."""
        self._pieces.put_nowait(error)


class VoiceProcess:
    """Runs `command`, a program with the frames of `piper_process`, and starts it again when it has ended.

    Used from the event loop, for one phrase at a time.
    """

    def __init__(self, command: Sequence[str]) -> None:
        self._command = command
        self._process: Process | None = None

    @property
    def pid(self) -> int | None:
        """Of the process; None when it does not run."""
        return self._process.pid if self._process is not None else None

    async def start(self) -> None:
        """Start it unless it runs, and wait until it is ready to speak. Raises SpeechError when it does not start."""
        if self._process is not None and self._process.returncode is None:
            return
        await self.end()
        try:
            # of no terminal's group: Ctrl-C is for the server, which ends the process when it has drained
            self._process = await asyncio.create_subprocess_exec(
                *self._command, stdin=PIPE, stdout=PIPE, limit=1 << 20, start_new_session=True
            )
            async with asyncio.timeout(_START_S):
                kind, rest = await self._receive()
            if kind != READY:
                raise SpeechError(f"the process of the voice does not start: {rest.decode(errors='replace')}")
        except OSError as error:  # TimeoutError too
            await self.end()
            reason = f"it is not ready after {_START_S:.0f} s" if isinstance(error, TimeoutError) else str(error)
            raise SpeechError(f"the process of the voice does not start: {reason}") from error
        except BaseException:
            await self.end()
            raise

    async def say(self, phrase: Phrase) -> None:
        """Put the pieces of `phrase`, until it is dropped. The process must have been started.

        Raises SpeechError when the process has ended; it must be ended and started before the next phrase then, and
        also when this was cancelled. What it cannot speak ends the phrase with an error.
        """
        await self._send(SAY, phrase.text.encode(errors="replace"))
        while True:
            kind, rest = await self._receive()
            if kind == AUDIO:
                await phrase.put(np.frombuffer(rest, "<f4"))
                await self._send(DROP if phrase.is_dropped else NEXT)
            elif kind == FAILED:
                return phrase.end(SpeechError(f"the voice cannot say this: {rest.decode(errors='replace')}"))
            elif kind == END:
                return phrase.end()
            else:
                raise SpeechError(f"the process of the voice sent {kind!r}, which is not known")

    async def end(self) -> None:
        """Kill it, if it runs; it holds nothing that would be lost."""
        process, self._process = self._process, None
        if process is None:
            return
        if process.returncode is None:
            process.kill()
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.close()
        while await process.stdout.read(1 << 20):
            pass  # the pipe is closed once it has been read to its end
        await process.wait()

    async def _send(self, kind: bytes, rest: bytes = b"") -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(HEADER.pack(kind, len(rest)) + rest)
            await self._process.stdin.drain()
        except ConnectionError as error:
            raise await self._ended() from error

    async def _receive(self) -> tuple[bytes, bytes]:
        assert self._process is not None
        assert self._process.stdout is not None
        try:
            kind, length = HEADER.unpack(await self._process.stdout.readexactly(HEADER.size))
            return kind, await self._process.stdout.readexactly(length)
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            raise await self._ended() from error

    async def _ended(self) -> SpeechError:
        assert self._process is not None
        try:
            async with asyncio.timeout(_EXIT_S):
                code = await self._process.wait()
        except TimeoutError:
            return SpeechError("the process of the voice has closed its output")
        how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit status {code}"
        return SpeechError(f"the process of the voice was ended {how}")
