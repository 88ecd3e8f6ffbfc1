"""`taste-grpc reply`."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from taste_grpc.cli.connection import JsonOption, ServerOptions, connected
from taste_grpc.cli.failure import CommandError
from taste_grpc.cli.files import read_clip
from taste_grpc.cli.numbers import int32
from taste_grpc.cli.progress import ProgressLine

if TYPE_CHECKING:
    from collections.abc import Iterable

    from taste.v1.dialogue_pb2 import ReplyResponse
    from taste_grpc_client import ReplyOptions

_PANEL = "Answer; what is not given takes the server's setting"


@dataclass(frozen=True)
class AnswerOptions:
    """What to do with the question: the fields of ReplyRequest."""

    mode: Annotated[
        str | None,
        typer.Option(
            metavar="conversation|transcription", rich_help_panel=_PANEL, help="Answer it (default), or write it down."
        ),
    ] = None
    system_prompt: Annotated[
        str | None, typer.Option("--system", rich_help_panel=_PANEL, help="Instructions to the language model.")
    ] = None
    max_new_tokens: Annotated[
        int | None, typer.Option(parser=int32, metavar="N", rich_help_panel=_PANEL, help="Longest answer, in tokens.")
    ] = None
    temperature: Annotated[
        float | None, typer.Option(rich_help_panel=_PANEL, help="0 takes the likeliest; below 1 sharpens.")
    ] = None
    top_p: Annotated[float | None, typer.Option(rich_help_panel=_PANEL, help="Nucleus.")] = None
    chunk_size_words: Annotated[
        int | None,
        typer.Option(parser=int32, metavar="N", rich_help_panel=_PANEL, help="Most words that come at once."),
    ] = None
    chunk_timeout_ms: Annotated[
        int | None,
        typer.Option(parser=int32, metavar="MS", rich_help_panel=_PANEL, help="How long words wait for more of them."),
    ] = None
    timeout_ms: Annotated[
        int | None,
        typer.Option(parser=int32, metavar="MS", rich_help_panel=_PANEL, help="Time until the answer is given up."),
    ] = None
    chunk_id: Annotated[
        str | None, typer.Option(metavar="NAME", rich_help_panel=_PANEL, help="Names it in the server's log.")
    ] = None

    def given(self) -> ReplyOptions:
        """What was given, as the client takes it."""
        return cast("ReplyOptions", {name: value for name, value in asdict(self).items() if value is not None})


def reply(
    question: Annotated[Path, typer.Argument(metavar="FILE", help="WAV, FLAC, OGG or MP3, at most 30 s.")],
    answer: AnswerOptions,
    server: ServerOptions,
    as_json: JsonOption = False,
) -> None:
    """Answer a spoken question in text, a few words at a time.

    With --json each chunk is one object on a line of its own. Exit status 1 when nobody speaks, or the answer fails.
    """
    clip = read_clip("FILE", question)
    with ProgressLine(shown=not as_json) as progress, connected(server, progress, dialogue=True) as client:
        progress.say(f"listening to {question}")
        with client.reply(clip, **answer.given()) as chunks:
            _show(chunks, progress, as_json)


def _show(chunks: Iterable[ReplyResponse], progress: ProgressLine, as_json: bool) -> None:
    """Write chunks as they come. Raises CommandError when the last one is no success."""
    written, error = "", None
    for chunk in chunks:
        progress.hide()
        if as_json:
            _write(json.dumps(_chunk_json(chunk), ensure_ascii=False) + "\n")
        elif chunk.success:
            text = chunk.text if written else chunk.text.lstrip()
            _write(text)
            written += text
        error = None if chunk.success else chunk.error
    if written:
        _write("\n")
    if error is not None:
        raise CommandError("", error)


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _chunk_json(chunk: ReplyResponse) -> dict[str, Any]:
    return {
        "chunk_index": chunk.chunk_index,
        "text": chunk.text,
        "success": chunk.success,
        "is_final": chunk.is_final,
        "processing_time_ms": round(chunk.processing_time_ms, 3),
        "error": chunk.error if chunk.HasField("error") else None,
        "chunk_id": chunk.chunk_id,
    }
