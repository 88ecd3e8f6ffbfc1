"""The `taste-grpc` command: its commands, and how they end."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import typer

from taste_grpc.cli.conversation_options import OrderedCommand
from taste_grpc.cli.detokenize import detokenize
from taste_grpc.cli.edit import edit
from taste_grpc.cli.failure import BROKEN_PIPE, INTERRUPTED, describe, report
from taste_grpc.cli.generate import generate
from taste_grpc.cli.info import info
from taste_grpc.cli.option_groups import grouped
from taste_grpc.cli.parity import parity
from taste_grpc.cli.reply import reply
from taste_grpc.cli.serve import serve
from taste_grpc.cli.talk import talk
from taste_grpc.cli.tokenize import tokenize

app = typer.Typer(
    name="taste-grpc",
    help="Live spoken conversation with a text-aligned spoken language model, over gRPC.",
    epilog="Exit status: 0 success, 1 failure, 2 wrong usage, 130 ended by Ctrl-C.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _command(function: Callable[..., None]) -> Callable[..., None]:
    """What typer calls: `function` with its groups of options, ended quietly when nobody reads its output."""
    command = grouped(function)

    @functools.wraps(command)
    def ended_quietly(**values: Any) -> None:
        try:
            command(**values)
            sys.stdout.flush()
        except BrokenPipeError:
            # What is left in the buffer goes nowhere, rather than into a complaint when the process ends.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(BROKEN_PIPE) from None

    return ended_quietly


for _function in (serve, talk, tokenize, detokenize, edit, reply, info, parity):
    app.command()(_command(_function))
app.command(cls=OrderedCommand)(_command(generate))


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command that `arguments` (those of the process when None) ask for, and return its exit status."""
    # gRPC reads it once, when it is imported; its notices of connections that come and go are nobody's business.
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        status = app(given, prog_name="taste-grpc", standalone_mode=False)
    except typer.Abort:
        return INTERRUPTED
    except Exception as error:
        return _failed(error, as_json="--json" in given)
    return status if isinstance(status, int) else 0


def _failed(error: Exception, as_json: bool) -> int:
    known = describe(error)
    if known is None:
        raise error
    status, content = known
    if content["message"]:  # empty when typer has shown the help instead
        report(content, as_json)
    return status
