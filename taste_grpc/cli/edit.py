"""`taste-grpc edit`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from taste_grpc.cli.connection import JsonOption
from taste_grpc.cli.failure import usage_error
from taste_grpc.cli.files import read_spoken, save_spoken
from taste_grpc.cli.words import print_words, words_json

if TYPE_CHECKING:
    from taste_grpc_client import SpokenText


def edit(
    file: Annotated[Path, typer.Argument(metavar="FILE.taste.json", help="Text and codes.")],
    replace: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NUMBER=WORD",
            help="Say WORD the way the word with this number, which --list shows, was said. May be repeated.",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE.taste.json", help="Where the edited text is saved.")
    ] = None,
    list_words: Annotated[bool, typer.Option("--list", help="Show the words, after any change.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Swap words of a spoken text and keep their prosody. Needs no server."""
    if replace and out is None:
        raise usage_error("--out", "is needed with --replace")
    if not replace and not list_words and out is None:
        raise usage_error("--replace", "nothing to do: give --replace with --out, or --list")
    spoken = read_spoken("FILE.taste.json", file)
    for change in replace or ():
        _replace(spoken, change)
    if out is not None:
        save_spoken(spoken, out)
    if as_json:
        saved = {"taste_file": str(out)} if out is not None else {}
        typer.echo(json.dumps({"text": spoken.text, "words": words_json(spoken.words), **saved}, ensure_ascii=False))
    elif list_words:
        print_words(spoken)
    else:
        typer.echo(spoken.text)


def _replace(spoken: SpokenText, change: str) -> None:
    number, equals, word = change.partition("=")
    if not equals or not number.strip().isdecimal():
        raise usage_error("--replace", f"NUMBER=WORD is expected, not {change!r}")
    if int(number) >= len(spoken.words):
        count = len(spoken.words)
        there = f"there are {count} words, numbered from 0" if count else "the file has no words"
        raise usage_error("--replace", f"there is no word {int(number)}; {there}")
    try:
        spoken.replace_word(int(number), word)
    except ValueError as error:
        raise usage_error("--replace", f"{change!r}: {error}") from None
