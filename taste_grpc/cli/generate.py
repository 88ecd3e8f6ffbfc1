"""`taste-grpc generate`."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from taste_grpc.cli.connection import JsonOption, ServerOptions, connected
from taste_grpc.cli.conversation import Conversation, read_conversation
from taste_grpc.cli.conversation_options import SegmentOptions, option_order
from taste_grpc.cli.failure import usage_error
from taste_grpc.cli.files import save_spoken
from taste_grpc.cli.numbers import int32, uint64
from taste_grpc.cli.progress import ProgressLine
from taste_grpc.cli.words import print_random, words_json

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from taste.v1.taste_pb2 import GetModelInfoResponse, StreamingResult
    from taste_grpc_client import Emit, GenerateOptions, SpokenText

_PANEL = "Sampling; what is not given takes the server's default"


@dataclass(frozen=True)
class SamplingOptions:
    """How the words are chosen: the fields of GenerateRequest."""

    text_top_p: Annotated[
        float | None, typer.Option(rich_help_panel=_PANEL, help="Nucleus for words; 0 takes the likeliest.")
    ] = None
    taste_top_p: Annotated[
        float | None, typer.Option(rich_help_panel=_PANEL, help="Nucleus for codes; 0 takes the likeliest.")
    ] = None
    text_temperature: Annotated[
        float | None, typer.Option(rich_help_panel=_PANEL, help="Temperature for words; below 1 sharpens.")
    ] = None
    repetition_penalty: Annotated[
        float | None, typer.Option(rich_help_panel=_PANEL, help="How much words already said are held back, from 1.")
    ] = None
    max_length: Annotated[
        int | None, typer.Option(parser=int32, metavar="N", rich_help_panel=_PANEL, help="Most new text ids.")
    ] = None
    extra_words: Annotated[
        int | None,
        typer.Option(
            parser=int32, metavar="N", rich_help_panel=_PANEL, help="End after the sentence that passes so many words."
        ),
    ] = None
    eos_id: Annotated[
        int | None,
        typer.Option(parser=int32, metavar="N", rich_help_panel=_PANEL, help="Text id that ends the answer."),
    ] = None
    seed: Annotated[
        int | None,
        typer.Option(parser=uint64, metavar="N", rich_help_panel=_PANEL, help="Makes the answer repeatable."),
    ] = None
    conversation_format: Annotated[
        str | None, typer.Option(rich_help_panel=_PANEL, help="One of those that `taste-grpc info` lists.")
    ] = None

    def given(self) -> GenerateOptions:
        """What was given, as the client takes it."""
        return cast("GenerateOptions", {name: value for name, value in asdict(self).items() if value is not None})


def generate(
    context: typer.Context,
    said: SegmentOptions,
    sampling: SamplingOptions,
    server: ServerOptions,
    conversation: Annotated[
        Path | None,
        typer.Argument(metavar="CONVERSATION", help="JSON file with what was said so far; - reads stdin."),
    ] = None,
    emit: Annotated[
        str | None,
        typer.Option(metavar="word|sentence|N", help="When results come: at each word, sentence, or N words."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FILE.taste.json", help="Where text and codes of the answer are saved."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Continue a conversation, word by word.

    What was said so far comes from a file, from options, or from both, the file first.

    With --json each result is one object on a line of its own.
    """
    entries = read_conversation(conversation) if conversation is not None else []
    history = Conversation([*entries, *said.entries(option_order(context))])
    policy = _policy(emit)
    with ProgressLine(shown=not as_json) as progress, connected(server, progress) as client:
        info = client.model_info()
        progress.say("generating")
        with client.generate(history.segments(info), emit=policy, **sampling.given()) as results:
            answer = _show(results, progress, as_json)
    if out is not None:
        save_spoken(_spoken(answer, info, history), out)
    if not as_json:
        if out is not None:
            typer.echo(f"text and codes are in {out}", err=True)
        print_random(info)


def _spoken(answer: Sequence[StreamingResult], info: GetModelInfoResponse, history: Conversation) -> SpokenText:
    from taste_grpc_client import SpokenText

    return SpokenText.from_results(answer, info, speaker=history.speaker)


def _policy(emit: str | None) -> Emit | None:
    if emit is None:
        return None
    if emit in ("word", "sentence"):
        return cast("Emit", emit)
    if not emit.isdecimal() or int(emit) >= 2**31:
        raise usage_error("--emit", f"word, sentence or a number of words is expected, not {emit!r}")
    return int(emit)


def _show(results: Iterable[StreamingResult], progress: ProgressLine, as_json: bool) -> list[StreamingResult]:
    """Write results as they come, and return them."""
    answer = []
    for result in results:
        progress.hide()
        answer.append(result)
        if as_json:
            _write(json.dumps(_result_json(result), ensure_ascii=False) + "\n")
        else:
            _write(result.segment.tokens.text if len(answer) > 1 else result.segment.tokens.text.lstrip())
    if not as_json:
        _write("\n")
        words = sum(len(result.segment.tokens.words) for result in answer)
        reason = _reason(answer[-1])
        typer.echo(f"ended by {reason} after {words} words", err=True)
        if reason == "no_speech":
            typer.echo("the model chose not to speak; a system text (--system) or another --seed may help", err=True)
    return answer


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _reason(result: StreamingResult) -> str:
    from taste.v1.taste_pb2 import CompletionReason

    return CompletionReason.Name(result.completion_reason).removeprefix("COMPLETION_REASON_").lower()


def _result_json(result: StreamingResult) -> dict[str, Any]:
    from taste_grpc_client import SpokenText

    return {
        "index": result.index,
        "text": result.segment.tokens.text,
        "words": words_json(SpokenText.from_results([result]).words),
        "is_complete": result.is_complete,
        "completion_reason": _reason(result),
        "elapsed_ms": round(result.timing.elapsed_ms, 3),
        "stages_ms": {name: round(ms, 3) for name, ms in result.timing.stages_ms.items()},
    }
