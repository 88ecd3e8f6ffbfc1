"""`taste-grpc tokenize`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from taste_grpc.cli.connection import JsonOption, ServerOptions, connected
from taste_grpc.cli.failure import usage_error
from taste_grpc.cli.files import read_clip, save_spoken
from taste_grpc.cli.numbers import int32
from taste_grpc.cli.progress import ProgressLine
from taste_grpc.cli.words import model_json, print_random, print_words, words_json

if TYPE_CHECKING:
    from taste.v1.taste_pb2 import GetModelInfoResponse, TokenizeResponse


def tokenize(
    recording: Annotated[Path, typer.Argument(metavar="FILE", help="WAV, FLAC, OGG or MP3, at most 30 s.")],
    server: ServerOptions,
    text: Annotated[
        str | None, typer.Option(help="What is said in FILE; recognised by the server if not given.")
    ] = None,
    text_ids: Annotated[
        str | None,
        typer.Option(metavar="ID,ID,...", help="What is said, as ids of the language model's tokenizer."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE.taste.json", help="Where text and codes are saved.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Turn a recording into words, each with its speech tokens."""
    clip = read_clip("FILE", recording)
    if text is not None and text_ids is not None:
        raise usage_error("--text", "--text-ids was given too; one of them is enough")
    ids = None if text_ids is None else _numbers(text_ids)
    with ProgressLine(shown=not as_json) as progress, connected(server, progress) as client:
        info = client.model_info()
        progress.say(f"tokenizing {recording}")
        heard = client.tokenize(clip, text=text, text_ids=ids)
    _show(heard, info, out, as_json)


def _show(heard: TokenizeResponse, info: GetModelInfoResponse, out: Path | None, as_json: bool) -> None:
    from taste_grpc_client import SpokenText

    spoken = SpokenText.from_tokenized(heard, info)
    if out is not None:
        save_spoken(spoken, out)
    if as_json:
        content = {
            "text": heard.text,
            "words": words_json(spoken.words),
            "audio_ms": heard.audio_ms,
            "speaker": list(spoken.speaker or ()),
            **model_json(info),
            **({"taste_file": str(out)} if out is not None else {}),
        }
        typer.echo(json.dumps(content, ensure_ascii=False))
        return
    typer.echo(heard.text)
    print_words(spoken)
    if out is not None:
        typer.echo(f"text and codes are in {out}")
    print_random(info)


def _numbers(given: str) -> list[int]:
    try:
        return [int32(number) for number in given.replace(",", " ").split()]
    except typer.BadParameter:
        raise usage_error("--text-ids", f"whole numbers with commas between them are expected, not {given!r}") from None
