"""One reply on its way: the chunks, the time it has, what the log says of it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from taste_grpc.dialogue.reply import ReplyChunk, ReplyMode
from taste_grpc.errors import TasteError
from taste_grpc.observability import log_event

logger = logging.getLogger(__name__)

FALLBACK_TEXT = "Sorry, I didn't understand that."
NO_SPEECH = "no speech was heard"
_MAX_CAUSE_CHARS = 400


@dataclass
class ReplyProgress:
    """One reply: its chunks as they are numbered, its time, its end.

    Attributes:
        model: name of the one that answers.
        chunk_id: that of the request; every log line has it.
        mode: what is to be done.
        clock: seconds.
        chunks: how many there are so far.
        outcome: how it ended: `answered`, `no_speech`, `failed`, `refused`; `cancelled` until one of them is known.
    """

    model: str
    chunk_id: str
    mode: ReplyMode = "conversation"
    clock: Callable[[], float] = time.monotonic
    chunks: int = 0
    outcome: str = "cancelled"

    def __post_init__(self) -> None:
        self.begun = self.clock()

    def begin(self, mode: ReplyMode, timeout_ms: int) -> None:
        """It is known what to do, and how long that may take since the call."""
        self.mode, self._timeout_ms = mode, timeout_ms
        self._deadline = self.begun + timeout_ms / 1000

    @contextmanager
    def paused(self) -> Iterator[None]:
        """The reader has the chunk: its time is not the model's."""
        since = self.clock()
        yield
        self._deadline += self.clock() - since

    def patience_s(self, due_in_s: float | None) -> float:
        """How long to wait for the next piece: until words have waited long enough, or the time is over."""
        left_s = max(0.0, self._deadline - self.clock())
        return left_s if due_in_s is None else min(left_s, due_in_s)

    def check_time(self) -> None:
        """Raises TimeoutError when the time is over."""
        if self.clock() >= self._deadline:
            raise TimeoutError(f"the answer took longer than {self._timeout_ms} ms")

    def chunk(self, text: str, *, is_final: bool = False) -> ReplyChunk:
        """More of the answer."""
        if is_final:
            self.outcome = "answered"
        return self._made(text, is_final=is_final)

    def no_speech(self) -> ReplyChunk:
        """The end of a reply to silence."""
        self.outcome = "no_speech"
        return self._made("", is_final=True, error=NO_SPEECH)

    def failure(self, error: Exception) -> ReplyChunk:
        """The end of a reply that failed, which is logged."""
        self.outcome = "failed"
        log_event(
            logger,
            logging.WARNING,
            "reply failed",
            error=error,
            chunk_id=self.chunk_id,
            mode=self.mode,
            model=self.model,
        )
        return self._made(FALLBACK_TEXT, is_final=True, error=_cause(error))

    def _made(self, text: str, *, is_final: bool, error: str | None = None) -> ReplyChunk:
        index, self.chunks = self.chunks, self.chunks + 1
        return ReplyChunk(error is None, text, is_final, index, self._elapsed_ms(), error, self.chunk_id)

    def _elapsed_ms(self) -> float:
        return 1000.0 * (self.clock() - self.begun)

    def log(self) -> None:
        """The line of a reply that has ended, however it did."""
        log_event(
            logger,
            logging.INFO,
            "reply",
            chunk_id=self.chunk_id,
            mode=self.mode,
            outcome=self.outcome,
            chunks=self.chunks,
            duration_ms=round(self._elapsed_ms(), 1),
        )


def _cause(error: Exception) -> str:
    """One line for the one who asked."""
    known = isinstance(error, TasteError | TimeoutError) and str(error)
    text = " ".join((str(error) if known else f"{type(error).__name__}: {error}").split())
    return text if len(text) <= _MAX_CAUSE_CHARS else f"{text[: _MAX_CAUSE_CHARS - 1]}…"
