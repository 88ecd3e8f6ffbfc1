"""`taste-grpc talk`."""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack, closing
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from taste_grpc.cli.connection import JsonOption, ServerOptions, connected, served
from taste_grpc.cli.failure import usage_error
from taste_grpc.cli.files import read_clip
from taste_grpc.cli.numbers import int32, uint64
from taste_grpc.cli.progress import ProgressLine
from taste_grpc.errors import InvalidInputError

if TYPE_CHECKING:
    from taste_grpc.talk import Talked, TalkOptions

_LIVE = "Conversation"


@dataclass(frozen=True)
class AnswerOptions:
    """How to answer."""

    text: Annotated[str | None, typer.Option(help="What is said in FILE; recognised by the server if not given.")] = (
        None
    )
    system: Annotated[
        str | None,
        typer.Option("--system", "--system-prompt", help="Instruction before the question; empty for none."),
    ] = None
    extra_words: Annotated[
        int, typer.Option(parser=int32, metavar="N", help="End after the sentence that passes so many words.")
    ] = 12
    every_words: Annotated[int, typer.Option(parser=int32, metavar="N", help="Words that are spoken at a time.")] = 4
    max_chunk_words: Annotated[
        int | None,
        typer.Option(parser=int32, metavar="N", help="Words in a phrase at most; server's default if not given."),
    ] = None
    look_ahead_words: Annotated[
        int | None,
        typer.Option(
            parser=int32,
            metavar="N",
            help="Words after a phrase that the model is shown before it speaks it; server's default if not given.",
        ),
    ] = None
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
            max_chunk_words=self.max_chunk_words,
            look_ahead_words=self.look_ahead_words,
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


@dataclass(frozen=True)
class LiveOptions:
    """A conversation instead of one question."""

    live: Annotated[
        bool,
        typer.Option(
            "--live",
            rich_help_panel=_LIVE,
            help="Converse by voice, turn after turn: through the microphone, or with FILE, played at the pace it was "
            "spoken.",
        ),
    ] = False
    turns: Annotated[
        int | None,
        typer.Option(
            parser=int32, metavar="N", rich_help_panel=_LIVE,
            help="End after so many turns. Default: when FILE has been answered; with the microphone, at Ctrl-C.",
        ),
    ] = None  # fmt: skip
    barge_in: Annotated[
        bool | None,
        typer.Option(
            "--barge-in/--no-barge-in",
            rich_help_panel=_LIVE,
            help="Whether speech interrupts an answer. Without headphones the microphone hears the answer, too.",
        ),
    ] = None
    silence_ms: Annotated[
        int | None,
        typer.Option(
            parser=int32, metavar="MS", rich_help_panel=_LIVE, help="Silence that ends a turn. Default: the server's."
        ),
    ] = None
    voice: Annotated[
        str | None, typer.Option(metavar="NAME", rich_help_panel=_LIVE, help="One of the server's voices.")
    ] = None
    out_dir: Annotated[
        Path,
        typer.Option(
            metavar="DIR", rich_help_panel=_LIVE, help="Where the answers are saved: answer-0.wav and so on, by turns."
        ),
    ] = Path("out")

    def check(self, context: typer.Context) -> None:
        """Raise CommandError for options that were given and have no meaning with, or without, `--live`."""
        group = (AnswerOptions, FileOptions) if self.live else (LiveOptions,)
        why = "is not for --live" if self.live else "goes with --live"
        for option in (each for kind in group for each in fields(kind)):
            if option.name != "system" and _is_given(context, option.name):
                raise usage_error(f"--{option.name.replace('_', '-')}", why)
        if self.turns is not None and self.turns < 1:
            raise usage_error("--turns", f"1 or more is expected, not {self.turns}")


def _is_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def talk(
    context: typer.Context,
    answer: AnswerOptions,
    files: FileOptions,
    live: LiveOptions,
    server: ServerOptions,
    recording: Annotated[
        Path | None, typer.Argument(metavar="FILE", help="WAV, FLAC, OGG or MP3, at most 30 s unless --live.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Ask a spoken question: hear it, answer it, say the answer while it is being made. Or converse, with --live.

    With --live and --json each event is one object on a line of its own, and the last line sums them up.
    """
    live.check(context)
    if live.live:
        raise typer.Exit(_converse(recording, answer, live, server, as_json))
    if recording is None:
        raise usage_error("FILE", "the recording of a question is expected (see 'taste-grpc talk --help')")
    _ask(recording, answer, files, server, as_json)


def _converse(
    recording: Path | None, answer: AnswerOptions, live: LiveOptions, server: ServerOptions, as_json: bool
) -> int:
    from taste_grpc.cli.live import LiveSettings, open_audio, run_live

    settings = LiveSettings(
        system_prompt=answer.system,
        voice=live.voice,
        turns=live.turns,
        barge_in=live.barge_in,
        silence_ms=live.silence_ms,
        out_dir=live.out_dir,
    )
    server.check()
    with ExitStack() as stack:
        listening = stack.enter_context(closing(open_audio(recording)))  # before a server is started for nothing
        progress = stack.enter_context(ProgressLine(shown=not as_json))
        endpoint = stack.enter_context(served(server, progress, dialogue=True))
        progress.hide()
        return run_live(endpoint, listening, settings, as_json)


def _ask(recording: Path, answer: AnswerOptions, files: FileOptions, server: ServerOptions, as_json: bool) -> None:
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
