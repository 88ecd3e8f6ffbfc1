"""The conversation that `generate` continues, as options whose order counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from taste_grpc.cli.conversation import Entry, Kind, Role
from taste_grpc.cli.failure import usage_error

_ORDER = "taste_grpc.option_order"
_PANEL = "Conversation"
_MEANING: dict[str, tuple[Role, Kind]] = {
    "system": ("system", "text"),
    "user": ("user", "text"),
    "user_audio": ("user", "audio"),
    "user_from": ("user", "taste"),
    "assistant": ("assistant", "text"),
    "assistant_audio": ("assistant", "audio"),
    "assistant_from": ("assistant", "taste"),
}


class OrderedCommand(TyperCommand):
    """A command that remembers the order of its options; `option_order` tells it."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read `args` as typer does, and note which options come in which order."""
        _, _, order = self.make_parser(ctx).parse_args(args=list(args))
        ctx.meta[_ORDER] = [parameter.name for parameter in order]
        return super().parse_args(ctx, args)


def option_order(context: typer.Context) -> list[str]:
    """Names of the options of an OrderedCommand, once for each time they were given."""
    order: list[str] = context.meta.get(_ORDER, [])
    return order


@dataclass(frozen=True)
class SegmentOptions:
    """What was said so far. The order of the options is the order of the conversation."""

    system: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", rich_help_panel=_PANEL, help="Instruction to the model.")
    ] = None
    user: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", rich_help_panel=_PANEL, help="What the person wrote.")
    ] = None
    user_audio: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", rich_help_panel=_PANEL, help="What the person said: WAV, FLAC, OGG or MP3."),
    ] = None
    user_from: Annotated[
        list[Path] | None,
        typer.Option(
            "--user-from",
            "--from",
            metavar="FILE.taste.json",
            rich_help_panel=_PANEL,
            help="What the person said, as text and codes.",
        ),
    ] = None
    assistant: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", rich_help_panel=_PANEL, help="What the model wrote.")
    ] = None
    assistant_audio: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", rich_help_panel=_PANEL, help="What the model said.")
    ] = None
    assistant_from: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE.taste.json",
            rich_help_panel=_PANEL,
            help="What the model said, as text and codes; it goes on with it when it comes last.",
        ),
    ] = None
    transcript: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TEXT",
            rich_help_panel=_PANEL,
            help="What is said in the --user-audio or --assistant-audio before it; recognised by the server if not "
            "given.",
        ),
    ] = None

    def entries(self, order: Sequence[str]) -> list[Entry]:
        """The options as entries of a conversation. Raises CommandError for a transcript without audio."""
        values = {field.name: iter(getattr(self, field.name) or ()) for field in fields(self)}
        entries: list[Entry] = []
        for name in order:
            if name not in values:
                continue
            value = next(values[name])
            if name == "transcript":
                if not entries or entries[-1].kind != "audio" or entries[-1].transcript is not None:
                    raise usage_error("--transcript", "comes after the audio whose words it gives")
                entries[-1].transcript = value
                continue
            role, kind = _MEANING[name]
            entries.append(Entry(f"--{name.replace('_', '-')}", role, kind, value))
        return entries
