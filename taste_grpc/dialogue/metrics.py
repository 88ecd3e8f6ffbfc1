"""When things happened in a turn: events, histograms, lines on stdout."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import IO

from prometheus_client import CollectorRegistry, Counter, Histogram

from taste_grpc.dialogue.events import ErrorCode, TurnMetrics

_SECONDS = (0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0)


@dataclass
class TurnTimes:
    """Moments of one turn, in seconds of one clock; None for what has not happened.

    Attributes:
        t0: its audio began, or it was typed.
        speech_end: the person fell silent.
        t1: first partial transcript.
        t2: final transcript.
        t3: first token of the answer.
        t4: first audio of the answer.
    """

    t0: float
    speech_end: float | None = None
    t1: float | None = None
    t2: float | None = None
    t3: float | None = None
    t4: float | None = None

    def metrics(self, turn: int) -> TurnMetrics:
        """As times after t0, in ms."""
        return TurnMetrics(
            turn,
            first_partial_ms=_ms(self.t0, self.t1),
            final_transcript_ms=_ms(self.t0, self.t2),
            first_token_ms=_ms(self.t0, self.t3),
            first_audio_ms=_ms(self.t0, self.t4),
            response_ms=_ms(self.speech_end, self.t4),
        )


def _ms(begin: float | None, end: float | None) -> float | None:
    return None if begin is None or end is None else 1000 * (end - begin)


class DialogueMetrics:
    """Figures of all conversations of a server.

    Args:
        registry: where Prometheus finds the histograms.
        log_latency: whether each turn, error and notice becomes a JSON line on `stream`.
        stream: stdout when None.
    """

    def __init__(
        self, registry: CollectorRegistry | None = None, *, log_latency: bool = True, stream: IO[str] | None = None
    ) -> None:
        self.registry = registry or CollectorRegistry()
        self._log_latency, self._stream = log_latency, stream
        self._histograms: dict[str, Callable[[float], None]] = {
            name: Histogram(f"taste_turn_{name}_seconds", help_text, registry=self.registry, buckets=_SECONDS).observe
            for name, help_text in (
                ("first_partial", "From the beginning of a turn's audio to its first partial transcript"),
                ("final_transcript", "From the beginning of a turn's audio to its final transcript"),
                ("first_token", "From the beginning of a turn's audio to the first token of the answer"),
                ("first_audio", "From the beginning of a turn's audio to the first audio of the answer"),
                ("response", "From the end of speech to the first audio of the answer"),
            )
        }
        self._turns = Counter("taste_turns", "Turns that have ended", ["end"], registry=self.registry)
        self._errors = Counter("taste_converse_errors", "Errors of conversations", ["code"], registry=self.registry)

    def turn_ended(self, session_id: str, metrics: TurnMetrics, end: str) -> None:
        """Take in the times of a turn; `end` says how it ended: complete, interrupted, cancelled or failed."""
        self._turns.labels(end).inc()
        times = {name: getattr(metrics, f"{name}_ms") for name in self._histograms}
        known = {name: ms for name, ms in times.items() if ms is not None}
        for name, ms in known.items():
            self._histograms[name](ms / 1000)
        rounded = {f"{name}_ms": round(ms, 1) for name, ms in known.items()}
        self._line("latency", level="info", sid=session_id, turn=metrics.turn, end=end, **rounded)

    def error(self, session_id: str, code: ErrorCode) -> None:
        """Count an error, and say so."""
        self._errors.labels(code.value).inc()
        self._line("error", code=code.value, sid=session_id)

    def notice(self, session_id: str, message: str) -> None:
        """Say what was noticed."""
        self._line("info", message=message, sid=session_id)

    def _line(self, event: str, **fields: object) -> None:
        if not self._log_latency:
            return
        stream = self._stream or sys.stdout
        with suppress(OSError, ValueError):  # whoever read stdout has gone
            stream.write(json.dumps({"event": event, **fields}) + "\n")
            stream.flush()
