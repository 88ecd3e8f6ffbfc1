"""Words and their codes, as tables and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from taste.v1.taste_pb2 import GetModelInfoResponse
    from taste_grpc_client import SpokenText, Word


def words_json(words: Sequence[Word]) -> list[dict[str, Any]]:
    """Each word with its codes and text ids."""
    return [{"text": word.text, "codes": list(word.codes), "text_ids": list(word.text_ids)} for word in words]


def model_json(info: GetModelInfoResponse) -> dict[str, Any]:
    """Which model it was, and what of it is random."""
    from taste_grpc.talk import random_parts

    return {"model": {"id": info.model_id, "revision": info.revision}, "random_parts": random_parts(info)}


def print_words(spoken: SpokenText) -> None:
    """Show the words of `spoken`, numbered as `edit --replace` counts them, on stdout."""
    from taste_grpc.cli.output import show, table

    rows = [
        (str(number), word.text, " ".join(map(str, word.codes)), " ".join(map(str, word.text_ids)))
        for number, word in enumerate(spoken.words)
    ]
    show(table(rows, ("#", "word", "codes", "text ids"), numbers=("#",)))


def print_random(info: GetModelInfoResponse) -> None:
    """Say on stderr which parts of the model have learned nothing, if there are any."""
    import typer

    from taste_grpc.talk import random_parts

    if names := random_parts(info):
        typer.echo(f"random weights, so what they make means nothing: {', '.join(names)}", err=True)
