"""A server of one's own, as a process, for commands that were given none."""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from taste_grpc.errors import TasteError, UnavailableError

_STOP_S = 60.0
_KEPT_LINES = 50

LogEvent = dict[str, Any]
"""A line of the server's log: `event` says what happened."""

OnEvent = Callable[[LogEvent], None]


class ServerStartError(TasteError):
    """The server process ended before it served, or did not end as it should."""


class ServerProcess:
    """`taste-grpc serve` as a process, which ends when this one does, however that happens.

    Args:
        flags: further flags of `taste-grpc serve`. It listens on a free port and logs JSON at level info.
        log: file that receives its log.
        on_event: called with each event of the log, on a thread of this object's.
    """

    def __init__(self, flags: Sequence[str] = (), *, log: Path | None = None, on_event: OnEvent | None = None) -> None:
        command = [sys.executable, "-m", "taste_grpc.cli", "serve", "--port", "0", *flags, "--lifeline"]
        command += ["--log-format", "json", "--log-level", "info"]
        self._log, self._on_event = log, on_event
        self._events: queue.SimpleQueue[LogEvent | None] = queue.SimpleQueue()
        self._last_lines: deque[str] = deque(maxlen=_KEPT_LINES)
        # Its stdin is the lifeline. A Ctrl-C in the terminal does not reach it, in a session of its own: who started it
        # stops it.
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
        )
        self._reader = threading.Thread(target=self._read, name="server-log", daemon=True)
        self._reader.start()

    def wait_for(self, event: str, timeout_s: float) -> LogEvent:
        """The next line of the log whose event is `event`; lines before it are skipped.

        Raises:
            ServerStartError: the process ended first.
            UnavailableError: it did not come in time.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                found = self._events.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise UnavailableError(f"the server did not say '{event}' within {timeout_s:g} s") from None
            if found is None:
                self._events.put(None)  # for whoever asks next
                status = self.process.wait()
                reason = self._last_words() or f"it ended with status {status}"
                raise ServerStartError(f"the server did not start: {reason}")
            if found.get("event") == event:
                return found

    def stop(self) -> int:
        """Tell the process to stop, wait for its end, and return its exit status."""
        self.process.terminate()
        try:
            return self.process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()
        finally:
            self._reader.join(_STOP_S)
            for pipe in (self.process.stdin, self.process.stdout):
                if pipe is not None:
                    pipe.close()

    def _read(self) -> None:
        """Take in the log until the process ends; somebody has to, or its pipe fills and it stands still."""
        log = self._log.open("wb") if self._log is not None else None
        try:
            for line in self.process.stdout or ():
                if log is not None:
                    log.write(line)
                    log.flush()
                self._take(line.decode(errors="replace").rstrip())
        finally:
            if log is not None:
                log.close()
            self._events.put(None)

    def _take(self, line: str) -> None:
        try:
            event = json.loads(line)
        except ValueError:
            event = None
        if not isinstance(event, dict):
            self._last_lines.append(line)
            return
        self._events.put(event)
        if self._on_event is not None:
            self._on_event(event)

    def _last_words(self) -> str:
        """What the process said, outside its log, before it ended: the sentence of its failure."""
        said = [line for line in self._last_lines if line.strip()]
        return said[-1].removeprefix("taste-grpc: ") if said else ""


@contextmanager
def own_server(
    flags: Sequence[str] = (),
    *,
    log: Path | None = None,
    on_event: OnEvent | None = None,
    timeout_s: float = 600.0,
    dialogue: bool = False,
) -> Iterator[str]:
    """Start a private server, wait until it serves, and stop it at the end.

    It listens on this machine's loopback only, in plain text and without tokens, whatever environment and
    configuration file say; all other settings count.

    Args:
        flags: further flags of `taste-grpc serve`.
        log: file that receives its log, a JSON object a line.
        on_event: called with each line of the log, on another thread.
        timeout_s: how long it may take to load.
        dialogue: whether it loads what conversations need, too.

    Yields:
        Its address, `host:port`.

    Raises:
        ServerStartError: it ended before it served (the message says why), or its exit status was not 0.
        UnavailableError: it did not serve in time.
    """
    offered = "--dialogue" if dialogue else "--no-dialogue"
    server = ServerProcess([*flags, offered, "--private"], log=log, on_event=on_event)
    try:
        address = str(server.wait_for("listening", timeout_s)["address"])
        server.wait_for("serving", timeout_s)
        yield address
    finally:
        status = server.stop()
    if status != 0:
        raise ServerStartError(f"the server ended with status {status}")
