"""`taste-grpc talk`."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from taste_grpc.cli.connection import JsonOption, ServerOptions, connected
from taste_grpc.cli.files import read_clip
from taste_grpc.cli.numbers import int32, uint64
from taste_grpc.cli.progress import ProgressLine

if TYPE_CHECKING:
    from taste_grpc.talk import Talked, TalkOptions


@dataclass(frozen=True)
class AnswerOptions:
    """How to answer."""

    text: Annotated[str | None, typer.Option(help="What is said in FILE; recognised by the server if not given.")] = (
        None
    )
    system: Annotated[str | None, typer.Option(help="Instruction before the question; empty for none.")] = None
    extra_words: Annotated[
        int, typer.Option(parser=int32, metavar="N", help="End after the sentence that passes so many words.")
    ] = 12
    every_words: Annotated[int, typer.Option(parser=int32, metavar="N", help="Words that are spoken at a time.")] = 4
    text_top_p: Annotated[
        float | None, typer.Option(help="0 takes the likeliest words; server's default otherwise.")
    ] = None
    seed: Annotated[int | None, typer.Option(parser=uint64, metavar="N", help="Makes the answer repeatable.")] = None

    def talk_options(self) -> TalkOptions:
        """The same, for `taste_grpc.talk`."""
        from taste_grpc.talk import TalkOptions

        return TalkOptions(
            system=self.system,
            text=self.text,
            extra_words=self.extra_words,
            every_words=self.every_words,
            text_top_p=self.text_top_p,
            seed=self.seed,
        )


def talk(
    recording: Annotated[
        Path,
        typer.Argument(metavar="FILE", exists=True, dir_okay=False, help="WAV, FLAC, OGG or MP3, at most 30 s."),
    ],
    answer: AnswerOptions,
    server: ServerOptions,
    out: Annotated[Path, typer.Option("--out", "-o", help="Where the answer is saved, as WAV.")] = Path("answer.wav"),
    plot: Annotated[
        Path | None,
        typer.Option(
            metavar="PNG", help="Draw waveform, mel and the places of words and codes, of question and answer."
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Ask a spoken question: hear it, answer it, say the answer while it is being made."""
    from taste_grpc.plot import check_plot, save_plot
    from taste_grpc.talk import save, utterances
    from taste_grpc.talk import talk as run_talk

    read_clip("FILE", recording)
    if plot is not None:
        check_plot(plot)
    with ProgressLine(shown=not as_json) as progress, connected(server, progress) as client:
        progress.say("listening")
        teller = _Teller(progress, quiet=as_json)
        talked = run_talk(client, recording, answer.talk_options(), on_transcript=teller.heard, on_words=teller.answers)
        save(talked, out)
        if plot is not None:
            save_plot(plot, utterances(recording, talked))
    if as_json:
        files = {"audio_file": str(out), **({"plot_file": str(plot)} if plot is not None else {})}
        typer.echo(json.dumps({**talked.as_json(), **files}, ensure_ascii=False))
        return
    typer.echo("")
    print_talked(talked, out)


class _Teller:
    """Says what is heard and answered while it happens."""

    def __init__(self, progress: ProgressLine, quiet: bool) -> None:
        self._progress, self._quiet = progress, quiet

    def heard(self, text: str) -> None:
        self._progress.hide()
        self._write(f"heard:  {text}\nanswer: ")

    def answers(self, words: str) -> None:
        self._write(words)

    def _write(self, text: str) -> None:
        if not self._quiet:
            sys.stdout.write(text)
            sys.stdout.flush()


def print_talked(talked: Talked, out: Path) -> None:
    """Show what came of `talk`, for people."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    console.print("latency, from the sending of the recording:")
    table = Table()
    table.add_column("event")
    table.add_column("ms", justify="right")
    for name, value in talked.latency_ms.items():
        table.add_row(name, f"{value:.0f}")
    console.print(table)
    console.print(f"ended by {talked.completion_reason}; {talked.audio.duration_ms / 1000:.2f} s of audio in {out}")
    if talked.random_parts:
        console.print(f"random weights, so what they make means nothing: {', '.join(talked.random_parts)}")
