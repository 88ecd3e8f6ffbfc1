"""Shows a live conversation: in place on a terminal, turn by turn elsewhere, or as JSON."""

from __future__ import annotations

import json
import sys
from typing import Any, Protocol

from rich.console import Console
from rich.live import Live

from taste_grpc.cli.live_view import (
    ConversationView,
    current_view,
    event_json,
    latency_table,
    totals_line,
    turn_text,
)
from taste_grpc.cli.output import show
from taste_grpc_client import ConversationEvent


class Screen(Protocol):
    """Is told of each event after the view has taken it."""

    def take(self, view: ConversationView, event: ConversationEvent, at_ms: float) -> None:
        """Show what has changed."""
        ...

    def finish(self, view: ConversationView, files: list[str]) -> None:
        """Show what it came to, and where the answers were saved. The conversation is over."""
        ...

    def close(self) -> None:
        """Leave the terminal as it was."""
        ...


def screen_for(as_json: bool, hint: str) -> Screen:
    """The one for stdout as it is; `hint` says on a terminal what to do."""
    if as_json:
        return JsonScreen()
    return TerminalScreen(hint) if sys.stdout.isatty() else PageScreen()


class JsonScreen:
    """An object a line for each event, and one for all of it at the end."""

    def take(self, view: ConversationView, event: ConversationEvent, at_ms: float) -> None:
        """Write the event."""
        self._write(event_json(event, at_ms))

    def finish(self, view: ConversationView, files: list[str]) -> None:
        """Write the summary."""
        self._write({"event": "summary", **view.as_json(), "audio_files": files})

    def close(self) -> None:
        """Nothing to leave."""

    def _write(self, content: dict[str, Any]) -> None:
        sys.stdout.write(json.dumps(content, ensure_ascii=False) + "\n")
        sys.stdout.flush()


class PageScreen:
    """Each turn once it is over."""

    def take(self, view: ConversationView, event: ConversationEvent, at_ms: float) -> None:
        """Write the turns that are over."""
        for turn in view.settled():
            show(turn_text(turn))

    def finish(self, view: ConversationView, files: list[str]) -> None:
        """Write what is left, the times of all turns, and the totals."""
        show(*map(turn_text, view.settled(everything=True)), *_closing_words(view))
        _name_files(files)

    def close(self) -> None:
        """Nothing to leave."""


class TerminalScreen:
    """What is under way changes in place; turns that are over stay above it."""

    def __init__(self, hint: str) -> None:
        self._hint = hint
        self._console = Console(highlight=False)
        self._live = Live(console=self._console, auto_refresh=False)
        self._live.start()

    def take(self, view: ConversationView, event: ConversationEvent, at_ms: float) -> None:
        """Draw it anew."""
        for turn in view.settled():
            self._console.print(turn_text(turn))
        self._live.update(current_view(view, self._hint), refresh=True)

    def finish(self, view: ConversationView, files: list[str]) -> None:
        """As on a page."""
        self._live.update("", refresh=True)
        self._live.stop()
        show(*map(turn_text, view.settled(everything=True)), *_closing_words(view))
        _name_files(files)

    def close(self) -> None:
        """Give the terminal its cursor back."""
        self._live.stop()


def _closing_words(view: ConversationView) -> list[Any]:
    words: list[Any] = [*view.notices]
    if view.turns:
        words += ["latency, from the beginning of each turn's audio, in ms:", latency_table(view)]
    words.append(totals_line(view))
    return words


def _name_files(files: list[str]) -> None:
    """In one line however long it is: paths are to be copied."""
    if files:
        sys.stdout.write(f"the answers are in {', '.join(files)}\n")
        sys.stdout.flush()
