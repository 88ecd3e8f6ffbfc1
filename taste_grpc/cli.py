"""The command line. Heavy imports wait until a command needs them."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(
    name="taste-grpc",
    help="Live spoken conversation with a text-aligned spoken language model, over gRPC.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

FAILURE, USAGE = 1, 2

ServerOption = Annotated[
    str | None, typer.Option("--server", metavar="HOST:PORT", help="A running server; one is started when not given.")
]
ModelOption = Annotated[
    str | None,
    typer.Option(
        metavar="DIR_OR_HUB_ID",
        help="Checkpoint of the server that is started. Default: taste-nano, whose words come from a small language "
        "model and whose speech parts are random.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]


def _fail(message: str, status: int = FAILURE) -> typer.Exit:
    typer.echo(f"taste-grpc: {message}", err=True)
    return typer.Exit(status)


@app.command()
def serve(
    model: ModelOption = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N.")] = None,
    dtype: Annotated[str | None, typer.Option(help="auto, float32, bfloat16 or float16.")] = None,
    threads: Annotated[int | None, typer.Option(help="Threads of one computation on the CPU.")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen at.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen at; 0 takes a free one.")] = None,
    port_file: Annotated[Path | None, typer.Option(help="File that receives the port number.")] = None,
    reflection: Annotated[bool | None, typer.Option(help="Offer server reflection.")] = None,
    channelz: Annotated[bool | None, typer.Option(help="Offer channelz.")] = None,
    drain_grace_s: Annotated[float | None, typer.Option(help="Time running calls get when the server stops.")] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error.")] = None,
    log_format: Annotated[str | None, typer.Option(help="text or json.")] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file with settings.")] = None,
    print_config: Annotated[bool, typer.Option("--print-config", help="Print the settings as TOML and exit.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="With --print-config: as JSON.")] = False,
    lifeline: Annotated[bool, typer.Option("--lifeline", hidden=True, help="Stop when stdin is closed.")] = False,
) -> None:
    """Run the server until it is told to stop (SIGTERM, Ctrl-C)."""
    from taste_grpc.errors import SettingsError, TasteError
    from taste_grpc.settings import load_settings, to_toml

    flags = {
        "model": model,
        "device": device,
        "dtype": dtype,
        "threads": threads,
        "host": host,
        "port": port,
        "port_file": port_file,
        "reflection": reflection,
        "channelz": channelz,
        "drain_grace_s": drain_grace_s,
        "log_level": log_level,
        "log_format": log_format,
    }
    try:
        settings = load_settings(flags, config)
    except SettingsError as error:
        raise _fail(str(error)) from None
    if print_config:
        typer.echo(settings.model_dump_json() + "\n" if as_json else to_toml(settings), nl=False)
        return
    from taste_grpc.observability import configure_logging
    from taste_grpc.server import run_server

    configure_logging(settings.log_level, settings.log_format)

    def make_engine() -> Any:
        from taste_grpc.engine import EngineSettings, LocalEngine

        return LocalEngine(
            EngineSettings(
                model=settings.model,
                device=settings.device,
                dtype=settings.dtype,
                threads=settings.threads,
                max_text_tokens=settings.limits.max_text_tokens,
            )
        )

    try:
        asyncio.run(run_server(settings, make_engine, lifeline_fd=sys.stdin.fileno() if lifeline else None))
    except TasteError as error:
        raise _fail(str(error)) from None


@contextmanager
def _client(server: str | None, model: str | None, quiet: bool) -> Iterator[Any]:
    """A client of `server`, or of one started for the occasion; its errors end the command."""
    from taste_grpc.errors import TasteError
    from taste_grpc.own_server import own_server
    from taste_grpc_client import TasteClient, TasteClientError

    if server is not None and model is not None:
        raise _fail("--model goes with a server that is started here; --server names a running one", USAGE)
    try:
        if server is not None:
            with TasteClient(server) as client:
                yield client
            return
        if not quiet:
            typer.echo("starting a server (name a running one with --server) ...", err=True)
        flags = ["--log-level", "warning", *(["--model", model] if model else [])]
        with own_server(flags) as address, TasteClient(address) as client:
            yield client
    except (TasteError, TasteClientError, OSError) as error:
        raise _fail(str(error)) from None


@app.command()
def talk(
    recording: Annotated[Path, typer.Argument(metavar="FILE", help="WAV, FLAC, OGG or MP3, at most 30 s.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Where the answer is saved.")] = Path("answer.wav"),
    server: ServerOption = None,
    model: ModelOption = None,
    text: Annotated[
        str | None, typer.Option(help="What is said in FILE; recognised by the server if not given.")
    ] = None,
    system: Annotated[str | None, typer.Option(help="Instruction before the question; empty for none.")] = None,
    extra_words: Annotated[int, typer.Option(help="End after the sentence that passes so many words.")] = 12,
    every_words: Annotated[int, typer.Option(help="Words that are spoken at a time.")] = 4,
    text_top_p: Annotated[
        float | None, typer.Option(help="0 takes the likeliest words; server's default otherwise.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Makes the answer repeatable.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Ask a spoken question: hear it, answer it, say the answer while it is being made."""
    from taste_grpc.talk import TalkOptions, save
    from taste_grpc.talk import talk as run_talk
    from taste_grpc_client import audio_clip

    try:
        audio_clip(recording)  # before a server is started for nothing
    except (OSError, ValueError) as error:
        raise _fail(str(error), USAGE) from None
    options = TalkOptions(
        system=system,
        text=text,
        extra_words=extra_words,
        every_words=every_words,
        text_top_p=text_top_p,
        seed=seed,
    )
    with _client(server, model, as_json) as client:
        quiet = as_json
        talked = run_talk(
            client,
            recording,
            options,
            on_transcript=lambda heard: None if quiet else typer.echo(f"heard:  {heard}\nanswer: ", nl=False),
            on_words=lambda words: None if quiet else _say(words),
        )
        save(talked, out)
    if as_json:
        typer.echo(json.dumps({**talked.as_json(), "audio_file": str(out)}, ensure_ascii=False))
        return
    typer.echo("")
    print_talked(talked, out)


def _say(words: str) -> None:
    typer.echo(words, nl=False)
    sys.stdout.flush()


def print_talked(talked: Any, out: Path) -> None:
    """Show what came of `talk`, for people."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="latency, from the sending of the recording")
    table.add_column("event")
    table.add_column("ms", justify="right")
    for name, value in talked.latency_ms.items():
        table.add_row(name, f"{value:.0f}")
    console = Console(highlight=False)
    console.print(table)
    console.print(f"ended by {talked.completion_reason}; {talked.audio.duration_ms / 1000:.2f} s of audio in {out}")
    if talked.random_parts:
        console.print(f"random weights, so what they make means nothing: {', '.join(talked.random_parts)}")


@app.command()
def info(server: ServerOption = None, model: ModelOption = None, as_json: JsonOption = False) -> None:
    """Show what a server has loaded, which parts are random, and its limits."""
    from google.protobuf.json_format import MessageToDict

    with _client(server, model, as_json) as client:
        described = client.model_info(timeout_s=60)
    content = MessageToDict(described, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
    if as_json:
        typer.echo(json.dumps(content, ensure_ascii=False))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(show_header=False)
    for name, value in content.items():
        if name == "parts":
            value = ", ".join(f"{part['name']} {'trained' if part['trained'] else 'RANDOM'}" for part in value)
        elif name == "special_tokens":
            value = ", ".join(f"{token['name']} {token['id']}" for token in value)
        elif name == "limits":
            value = "\n".join(f"{limit} {bound}" for limit, bound in value.items())
        table.add_row(name, value if isinstance(value, str) else json.dumps(value))
    Console(highlight=False).print(table)


@app.command()
def parity(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Checkpoint directory with a goldens/ folder.")],
    stage: Annotated[str, typer.Option(metavar="PATTERN", help="Only stages that match, e.g. 'flow.*'.")] = "*",
    failures: Annotated[bool, typer.Option("--failures", help="Print only what fails, and the totals.")] = False,
) -> None:
    """Check that a checkpoint computes the numbers recorded with it."""
    from taste_grpc.parity import main as run_parity

    arguments = [str(directory), "--stage", stage, *(["--failures"] if failures else [])]
    raise typer.Exit(run_parity(arguments))


def main() -> None:
    """Entry point of the `taste-grpc` command."""
    # gRPC reads it once, when it is imported; its notices of connections that come and go are nobody's business.
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    app()


if __name__ == "__main__":
    main()
