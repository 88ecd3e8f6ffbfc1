"""What is going on, for people who wait: on stderr, on a terminal only."""

from __future__ import annotations

import re
import sys
from types import TracebackType
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from rich.progress import Progress

_PERCENT = re.compile(r"^(?P<what>.*?):? (?P<percent>\d{1,3}) ?%$")


class ProgressLine:
    """One line on stderr that says what is going on, with a bar where it is known how far it is.

    It is gone when the block is left. Shows nothing when `shown` is false or stderr is no terminal. May be told
    from any thread.
    """

    def __init__(self, shown: bool) -> None:
        self._shown = shown and sys.stderr.isatty()
        self._progress: Progress | None = None

    def __enter__(self) -> Self:
        if self._shown:
            from rich.console import Console
            from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

            columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(24), TimeElapsedColumn())
            self._progress = Progress(*columns, console=Console(stderr=True), transient=True)
            self._progress.add_task("", total=None, visible=False)
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.hide()

    def say(self, what: str, done: float | None = None, total: float = 1.0) -> None:
        """Show `what`, and how much of `total` is `done`; a `what` that ends in `42 %` says so itself."""
        if self._progress is None:
            return
        found = _PERCENT.match(what)
        if found is not None and done is None:
            what, done, total = found["what"], float(found["percent"]), 100.0
        task = self._progress.task_ids[0]
        self._progress.update(
            task, description=what, completed=done or 0.0, total=None if done is None else total, visible=True
        )

    def hide(self) -> None:
        """Take the line away, so that others can write; for good."""
        progress, self._progress = self._progress, None
        if progress is not None:
            progress.stop()
