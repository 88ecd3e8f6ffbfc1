"""As much of sounddevice as `taste-grpc talk --live` uses, for machines without sound.

The microphone hears the raw 16 bit samples in the file FAKE_MICROPHONE, then silence, at 16 kHz; what the loudspeaker
plays goes to the file FAKE_LOUDSPEAKER. Where a variable is not set, there is no such device.
"""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

_VARIABLES = {"input": "FAKE_MICROPHONE", "output": "FAKE_LOUDSPEAKER"}
_BLOCK = 320


class PortAudioError(Exception):
    pass


def query_devices(device: Any = None, kind: str = "input") -> dict[str, Any]:
    if _VARIABLES[kind] not in os.environ:
        raise PortAudioError("Error querying device -1")
    return {"name": f"fake {kind}", "default_samplerate": 16_000.0}


class _Stream:
    def __init__(
        self, *, samplerate: int, channels: int, dtype: str, callback: Any, blocksize: int = 0, latency: str = ""
    ):
        assert (channels, dtype) == (1, "int16")
        self._frames = blocksize or _BLOCK
        self._seconds = self._frames / samplerate
        self._callback = callback
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self._thread.join(10)

    def _run(self) -> None:
        due = time.monotonic()
        while not self._stop.is_set():
            due += self._seconds
            self._stop.wait(max(0.0, due - time.monotonic()))
            self._step(2 * self._frames)

    def _step(self, size: int) -> None:
        raise NotImplementedError


class RawInputStream(_Stream):
    def start(self) -> None:
        self._spoken = Path(os.environ["FAKE_MICROPHONE"]).read_bytes()
        super().start()

    def _step(self, size: int) -> None:
        piece, self._spoken = self._spoken[:size], self._spoken[size:]
        self._callback(memoryview(piece.ljust(size, b"\0")), self._frames, None, None)


class RawOutputStream(_Stream):
    def _step(self, size: int) -> None:
        block = bytearray(size)
        self._callback(memoryview(block), self._frames, None, None)
        with Path(os.environ["FAKE_LOUDSPEAKER"]).open("ab") as file:
            file.write(block)
