"""The microphone and the loudspeaker of this machine, by way of sounddevice and PortAudio."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import closing
from typing import Any

from taste_grpc.cli.failure import CommandError, usage_error
from taste_grpc.cli.live_audio import PIECE_MS
from taste_grpc_client import SpeechChunk

_WAITING_PIECES = 50
"""Two seconds: what a microphone may be ahead of the connection before audio is dropped."""
_BYTES_PER_SAMPLE = 2


def _sounddevice() -> Any:
    """The module. Raises CommandError where it cannot be used."""
    try:
        import sounddevice
    except ImportError:
        raise _nothing_to_hear("needs sounddevice: pip install 'taste-grpc[live]'") from None
    except OSError:
        raise _nothing_to_hear("needs PortAudio (libportaudio2 on Debian), which is not on this machine") from None
    return sounddevice


def _nothing_to_hear(why: str) -> CommandError:
    return usage_error("FILE", f"none was given, and the microphone {why}")


class Microphone:
    """The microphone this machine uses unless told otherwise, in the sample rate it likes best.

    Raises CommandError when there is none.
    """

    channels = 1
    silent_ms = 0.0

    def __init__(self) -> None:
        self._sounddevice = _sounddevice()
        try:
            device = self._sounddevice.query_devices(kind="input")
        except (ValueError, self._sounddevice.PortAudioError) as error:
            raise _nothing_to_hear(f"is not there: {error}") from None
        self.sample_rate_hz = int(device["default_samplerate"])
        self.name = str(device["name"])

    async def pieces(self) -> AsyncGenerator[bytes]:
        """What is spoken into it. When the connection does not keep up, the oldest audio is dropped."""
        loop = asyncio.get_running_loop()
        spoken: deque[bytes] = deque(maxlen=_WAITING_PIECES)
        more = asyncio.Event()

        def arrived(data: bytes) -> None:
            spoken.append(data)
            more.set()

        def callback(indata: Any, frames: int, time: Any, status: Any) -> None:  # on a thread of PortAudio's
            loop.call_soon_threadsafe(arrived, bytes(indata))

        with closing(self._opened(callback)):
            while True:
                await more.wait()
                more.clear()
                while spoken:
                    yield spoken.popleft()

    def _opened(self, callback: Any) -> Any:
        try:
            stream = self._sounddevice.RawInputStream(
                samplerate=self.sample_rate_hz,
                blocksize=self.sample_rate_hz * PIECE_MS // 1000,
                channels=1,
                dtype="int16",
                callback=callback,
            )
            stream.start()
        except self._sounddevice.PortAudioError as error:
            raise CommandError("", f"the microphone {self.name} cannot be used: {error}") from None
        return stream

    def close(self) -> None:
        """Nothing to end: it listens while its pieces are taken."""


class Loudspeaker:
    """A Player on the loudspeaker this machine uses unless told otherwise.

    Audio counts as played when it is handed to the device. Raises CommandError when it cannot be used.
    """

    def __init__(self, sample_rate_hz: int) -> None:
        sounddevice = _sounddevice()
        self._bytes_per_ms = _BYTES_PER_SAMPLE * sample_rate_hz / 1000
        self._lock = threading.Lock()
        self._waiting: deque[tuple[int, memoryview]] = deque()
        self._played: dict[int, int] = {}
        self._told: dict[int, int] = {}
        try:
            self._stream = sounddevice.RawOutputStream(
                samplerate=sample_rate_hz, channels=1, dtype="int16", latency="low", callback=self._fill
            )
            self._stream.start()
        except sounddevice.PortAudioError as error:
            raise CommandError("", f"the loudspeaker cannot be used: {error}") from None

    def play(self, chunk: SpeechChunk) -> None:
        """Take the next audio."""
        with self._lock:
            self._waiting.append((chunk.turn, memoryview(chunk.audio)))

    def stop(self) -> None:
        """Be silent at once."""
        with self._lock:
            self._waiting.clear()

    def progress(self) -> list[tuple[int, float]]:
        """Turns, and how many ms of their answers were played, where that has changed since last asked."""
        with self._lock:
            changed = {turn: played for turn, played in self._played.items() if played != self._told.get(turn)}
            self._told.update(changed)
        return [(turn, played / self._bytes_per_ms) for turn, played in changed.items()]

    @property
    def unplayed_ms(self) -> float:
        """Length of the audio that is still to be played."""
        with self._lock:
            return sum(len(data) for _, data in self._waiting) / self._bytes_per_ms

    def close(self) -> None:
        """Stop playing."""
        self._stream.close()

    def _fill(self, outdata: Any, frames: int, time: Any, status: Any) -> None:
        """What PortAudio asks for, on a thread of its own; silence where there is nothing to play."""
        wanted = frames * _BYTES_PER_SAMPLE
        filled = bytearray()
        with self._lock:
            while self._waiting and len(filled) < wanted:
                turn, data = self._waiting.popleft()
                taken, rest = data[: wanted - len(filled)], data[wanted - len(filled) :]
                filled += taken
                self._played[turn] = self._played.get(turn, 0) + len(taken)
                if rest:
                    self._waiting.appendleft((turn, rest))
        outdata[:] = bytes(filled.ljust(wanted, b"\0"))


def has_loudspeaker() -> bool:
    """Whether there is one to play to."""
    sounddevice = _sounddevice()
    try:
        sounddevice.query_devices(kind="output")
    except (ValueError, sounddevice.PortAudioError):
        return False
    return True
