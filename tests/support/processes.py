"""Helper processes of tests that say on their first line of output where they can be reached."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from queue import Queue
from threading import Thread


class Endpoint:
    """A process that serves HTTP on this machine, and what it has printed since."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout
        self._lines: Queue[str] = Queue()
        self._reader = Thread(target=self._read, args=(process.stdout,))
        self._reader.start()
        self.url = self.line()

    def line(self) -> str:
        """The next line it prints."""
        return self._lines.get(timeout=60)

    def _read(self, output: Iterator[str]) -> None:
        for line in output:
            self._lines.put(line.rstrip("\n"))

    def join(self) -> None:
        self._reader.join()


@contextmanager
def endpoint(module: str, *arguments: str) -> Iterator[Endpoint]:
    """`python -m module arguments`, which ends when its standard input does."""
    command = [sys.executable, "-m", module, *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin
        try:
            found = Endpoint(process)
            yield found
        finally:
            process.stdin.close()
            process.wait(30)
        found.join()
