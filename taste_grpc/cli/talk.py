"""`taste-grpc talk`."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from taste_grpc.cli.connection import JsonOption, ServerOptions, connected
from taste_grpc.cli.failure import usage_error
from taste_grpc.cli.files import read_clip
from taste_grpc.cli.numbers import int32, uint64
from taste_grpc.cli.progress import ProgressLine
from taste_grpc.errors import InvalidInputError

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


@dataclass(frozen=True)
class FileOptions:
    """What is saved."""

    out: Annotated[Path, typer.Option("--out", "-o", help="Where the answer is saved, as WAV.")] = Path("answer.wav")
    plot: Annotated[
        Path | None,
        typer.Option(
            metavar="PNG", help="Draw waveform, mel and the places of words and codes, of question and answer."
        ),
    ] = None

    def check(self) -> None:
        """Raise CommandError or PlotUnavailableError when no plot can be drawn."""
        from taste_grpc.plot import check_plot

        if self.plot is None:
            return
        try:
            check_plot(self.plot)
        except InvalidInputError as error:
            raise usage_error("--plot", error.description) from None

    def save(self, recording: Path, talked: Talked) -> None:
        """Write the files."""
        from taste_grpc.plot import save_plot
        from taste_grpc.talk import save, utterances

        save(talked, self.out)
        if self.plot is not None:
            save_plot(self.plot, utterances(recording, talked))

    def as_json(self) -> dict[str, str]:
        """Where they are."""
        return {"audio_file": str(self.out), **({} if self.plot is None else {"plot_file": str(self.plot)})}


def talk(
    recording: Annotated[Path, typer.Argument(metavar="FILE", help="WAV, FLAC, OGG or MP3, at most 30 s.")],
    answer: AnswerOptions,
    files: FileOptions,
    server: ServerOptions,
    as_json: JsonOption = False,
) -> None:
    """Ask a spoken question: hear it, answer it, say the answer while it is being made."""
    from taste_grpc.talk import talk as run_talk

    read_clip("FILE", recording)  # before a server is started for nothing
    files.check()
    with ProgressLine(shown=not as_json) as progress, connected(server, progress) as client:
        progress.say("listening")
        teller = _Teller(progress, quiet=as_json)
        talked = run_talk(client, recording, answer.talk_options(), on_transcript=teller.heard, on_words=teller.answers)
    if not as_json:
        typer.echo("")
    files.save(recording, talked)
    if as_json:
        typer.echo(json.dumps({**talked.as_json(), **files.as_json()}, ensure_ascii=False))
        return
    print_talked(talked, files.out)
    if files.plot is not None:
        typer.echo(f"question and answer are drawn in {files.plot}")


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
    from taste_grpc.cli.output import show, table

    rows = [(name, f"{value:.0f}") for name, value in talked.latency_ms.items()]
    show("latency, from the sending of the recording:", table(rows, ("event", "ms"), numbers=("ms",)))
    typer.echo(f"ended by {talked.completion_reason}; {talked.audio.duration_ms / 1000:.2f} s of audio in {out}")
    if talked.random_parts:
        typer.echo(f"random weights, so what they make means nothing: {', '.join(talked.random_parts)}")
