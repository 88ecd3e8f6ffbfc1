"""What a live conversation looks like: its turns, by the events that came; as text, tables and JSON. Does no I/O."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from taste_grpc.cli.output import table
from taste_grpc_client import (
    ConversationEvent,
    Failure,
    FinalTranscript,
    GoingAway,
    Interrupted,
    LlmToken,
    MarkReached,
    Notice,
    PartialTranscript,
    Phase,
    PhaseChanged,
    SpeechChunk,
    SpeechComplete,
    Started,
    TurnMetrics,
)

LATENCIES = {
    "first_partial_ms": "first partial",
    "final_transcript_ms": "transcript",
    "first_token_ms": "first token",
    "first_audio_ms": "first audio",
    "response_ms": "response",
}
"""Fields of TurnMetrics, and what they are called."""

_OVER = (Phase.COMPLETE, Phase.ERROR)
_EVENT_NAMES: dict[type[ConversationEvent], str] = {
    Started: "started",
    PhaseChanged: "phase_change",
    PartialTranscript: "partial_transcript",
    FinalTranscript: "final_transcript",
    LlmToken: "llm_token",
    SpeechChunk: "tts_chunk",
    SpeechComplete: "tts_complete",
    Interrupted: "interruption",
    MarkReached: "mark",
    TurnMetrics: "turn_metrics",
    Notice: "notice",
    Failure: "error",
    GoingAway: "going_away",
}


@dataclass
class TurnView:
    """A turn as far as it has got.

    Attributes:
        number: counted from 0.
        phase: the last it entered.
        heard: what was understood.
        is_final: whether that is the final transcript.
        answer: the words of the answer.
        audio_ms: how much of the answer's audio came.
    """

    number: int
    phase: Phase = Phase.IDLE
    heard: str = ""
    is_final: bool = False
    answer: str = ""
    audio_ms: float = 0.0
    interruption: Interrupted | None = None
    metrics: TurnMetrics | None = None
    failures: list[Failure] = field(default_factory=list)

    @property
    def is_over(self) -> bool:
        """Whether it has ended, well or not."""
        return self.phase in _OVER

    @property
    def failure(self) -> Failure | None:
        """What it failed with; None when it did not, though something in it may have."""
        return self.failures[-1] if self.phase is Phase.ERROR and self.failures else None

    def take(self, event: ConversationEvent) -> None:
        """Note an event of this turn."""
        match event:
            case PhaseChanged(phase=phase):
                self.phase = phase
            case PartialTranscript(text=text) if not self.is_final:
                self.heard = text
            case FinalTranscript(text=text):
                self.heard, self.is_final = text, True
            case LlmToken(text=text):
                self.answer += text
            case SpeechChunk(duration_ms=duration_ms):
                self.audio_ms += duration_ms
            case Interrupted():
                self.interruption = event
            case TurnMetrics():
                self.metrics = event
            case Failure():
                self.failures.append(event)

    def as_json(self) -> dict[str, Any]:
        """The turn in plain values."""
        interruption, metrics = self.interruption, self.metrics
        return {
            "turn": self.number,
            "transcript": self.heard,
            "answer": self.answer.strip(),
            "phase": self.phase.value,
            "audio_ms": round(self.audio_ms, 3),
            "heard_ms": None if interruption is None else interruption.heard_ms,
            "heard_text": None if interruption is None else interruption.heard_text,
            "errors": [{"code": each.code.value, "message": each.message} for each in self.failures],
            "latency_ms": {name: getattr(metrics, name) if metrics else None for name in LATENCIES},
        }


class ConversationView:
    """A conversation as far as it has got.

    Attributes:
        phase: the last that was entered.
        activity: counts the phases entered.
        marks: those that came back.
        notices: what the server found worth knowing, that belongs to no turn.
    """

    def __init__(self) -> None:
        self.phase = Phase.IDLE
        self.activity = 0
        self.marks: set[str] = set()
        self.notices: list[str] = []
        self._turns: dict[int, TurnView] = {}
        self._shown = 0

    @property
    def turns(self) -> list[TurnView]:
        """Those that began, in their order."""
        return [self._turns[number] for number in sorted(self._turns)]

    @property
    def is_quiet(self) -> bool:
        """Whether no turn is under way."""
        return self.phase is Phase.IDLE or self.phase in _OVER

    def take(self, event: ConversationEvent) -> None:
        """Note an event."""
        match event:
            case PhaseChanged(phase=phase):
                self.phase = phase
                self.activity += 1
                if phase is Phase.IDLE:  # of a turn that has not begun
                    return
            case MarkReached(id=name):
                self.marks.add(name)
            case Notice(turn=None, message=message):
                self.notices.append(message)
            case Failure(turn=None, code=code, message=message):
                self.notices.append(f"{code}: {message}")
            case GoingAway(grace_ms=grace_ms):
                self.notices.append(f"the server is about to stop, within {grace_ms / 1000:g} s")
        turn = getattr(event, "turn", None)
        if turn is not None:
            self._turns.setdefault(turn, TurnView(turn)).take(event)

    def settled(self, everything: bool = False) -> list[TurnView]:
        """The turns nothing more is expected of, once each: those that are over and have their times, or have another
        turn after them. `everything`: all that are left."""
        turns = self.turns
        found = []
        while self._shown < len(turns):
            turn, is_last = turns[self._shown], self._shown == len(turns) - 1
            if not (everything or (turn.is_over and (turn.metrics is not None or not is_last))):
                break
            found.append(turn)
            self._shown += 1
        return found

    @property
    def unsettled(self) -> list[TurnView]:
        """The turns that `settled` has not given."""
        return self.turns[self._shown :]

    def as_json(self) -> dict[str, Any]:
        """All turns, and what they come to, in plain values."""
        return {"turns": [turn.as_json() for turn in self.turns], "notices": self.notices, "totals": self.totals()}

    def totals(self) -> dict[str, Any]:
        """What the turns come to: how many, how long the answers, medians of the latencies."""
        turns = self.turns
        return {
            "turns": len(turns),
            "answered": sum(turn.audio_ms > 0 for turn in turns),
            "interrupted": sum(turn.interruption is not None for turn in turns),
            "failed": sum(turn.phase is Phase.ERROR for turn in turns),
            "audio_ms": round(sum(turn.audio_ms for turn in turns), 3),
            "median_latency_ms": {name: _median(turns, name) for name in LATENCIES},
        }


def _median(turns: Sequence[TurnView], name: str) -> float | None:
    told = (getattr(turn.metrics, name) for turn in turns if turn.metrics is not None)
    values = [value for value in told if value is not None]
    return median(values) if values else None


def event_json(event: ConversationEvent, at_ms: float) -> dict[str, Any]:
    """An event in plain values, but for its audio, under the name that the contract gives it.

    `at_ms` is when it came, after the conversation was opened.
    """
    content = asdict(event)
    audio = content.pop("audio", None)
    if audio is not None:
        content["audio_bytes"] = len(audio)
    return {"event": _EVENT_NAMES[type(event)], "at_ms": round(at_ms, 1), **content}


def turn_text(turn: TurnView) -> Text:
    """A turn for people: what was said, what was answered, how it went."""
    lines = [Text.assemble(("you:    ", "bold cyan"), (turn.heard, "" if turn.is_final else "dim italic"))]
    if turn.answer:
        lines.append(Text.assemble(("answer: ", "bold green"), turn.answer.strip()))
    if turn.interruption is not None:
        heard = turn.interruption
        how = "about " if heard.estimated else ""
        lines.append(Text(f"        interrupted; {how}{heard.heard_ms / 1000:.1f} s were heard: {heard.heard_text}"))
    lines += [Text(f"        {each.code}: {each.message}", "red") for each in turn.failures]
    if turn.metrics is not None:
        told = [f"{label} {_ms(turn, name)}" for name, label in LATENCIES.items() if _ms(turn, name)]
        lines.append(Text(f"        ms: {', '.join(told)}" if told else "", "dim"))
    return Text("\n").join(lines)


def _ms(turn: TurnView, name: str) -> str:
    value = None if turn.metrics is None else getattr(turn.metrics, name)
    return "" if value is None else f"{value:.0f}"


def current_view(view: ConversationView, hint: str = "") -> RenderableType:
    """What changes in place: the turns under way, and the phase."""
    status = Text.assemble((view.phase.value, "bold"), (f"  {hint}" if hint else "", "dim"))
    return Group(*map(turn_text, view.unsettled), status)


def latency_table(view: ConversationView) -> Table:
    """Times of all turns, in ms after the beginning of a turn's audio, and their medians."""
    turns = view.turns
    rows = [
        (str(turn.number), *(_ms(turn, name) for name in LATENCIES), f"{turn.audio_ms / 1000:.2f}") for turn in turns
    ]
    if len(turns) > 1:
        medians = [_median(turns, name) for name in LATENCIES]
        shown = ("" if value is None else f"{value:.0f}" for value in medians)
        rows.append(("median", *shown, f"{sum(turn.audio_ms for turn in turns) / 1000:.2f} in all"))
    header = ("turn", *LATENCIES.values(), "answer, s")
    return table(rows, header, numbers=header[1:])


def totals_line(view: ConversationView) -> str:
    """How many turns there were, in a sentence."""
    totals = view.totals()
    parts = [f"{totals['turns']} turn{'s' * (totals['turns'] != 1)}, {totals['answered']} answered"]
    parts += [f"{totals[name]} {name}" for name in ("interrupted", "failed") if totals[name]]
    return ", ".join(parts)
