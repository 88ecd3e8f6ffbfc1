"""The server a command talks to: a running one, or one of its own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from taste_grpc.cli.failure import CommandError, usage_error
from taste_grpc.cli.progress import ProgressLine

if TYPE_CHECKING:
    from taste_grpc_client import TasteClient, Tls

TOKEN_VARIABLE = "TASTE_CLIENT_TOKEN"
"""Environment variable with the bearer token of commands that are given no other."""

_SERVER, _PEM = "Server", "PEM"

JsonOption = Annotated[bool, typer.Option("--json", help="Print data as JSON; failures are a JSON object on stderr.")]


@dataclass(frozen=True)
class ServerOptions:
    """Which server, and how to reach it."""

    server: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            rich_help_panel=_SERVER,
            help="A running server; when not given, one is started for this command alone.",
        ),
    ] = None
    model: Annotated[
        str | None,
        typer.Option(
            metavar="DIR_OR_HUB_ID",
            rich_help_panel=_SERVER,
            help="Checkpoint of the server that is started. Default: taste-nano, whose words come from a small "
            "language model and whose speech parts are random.",
        ),
    ] = None
    tls: Annotated[
        bool, typer.Option("--tls", rich_help_panel=_SERVER, help="Use TLS; the other --tls options imply it.")
    ] = False
    tls_ca: Annotated[
        Path | None,
        typer.Option(
            metavar=_PEM, exists=True, dir_okay=False, rich_help_panel=_SERVER,
            help="Trust servers with a certificate of this CA rather than the system's.",
        ),
    ] = None  # fmt: skip
    tls_cert: Annotated[
        Path | None,
        typer.Option(
            metavar=_PEM, exists=True, dir_okay=False, rich_help_panel=_SERVER, help="Certificate of this client."
        ),
    ] = None
    tls_key: Annotated[
        Path | None,
        typer.Option(
            metavar=_PEM, exists=True, dir_okay=False, rich_help_panel=_SERVER, help="Private key of --tls-cert."
        ),
    ] = None
    tls_server_name: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", rich_help_panel=_SERVER, help="Name in the server's certificate, when it is not HOST."
        ),
    ] = None
    token: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=_SERVER,
            help="Bearer token. Others on this machine may see it in the list of processes: prefer --token-file or "
            f"the environment variable {TOKEN_VARIABLE}.",
        ),
    ] = None
    token_file: Annotated[
        Path | None,
        typer.Option(
            exists=True, dir_okay=False, rich_help_panel=_SERVER, help="File that holds the bearer token alone."
        ),
    ] = None
    allow_plaintext_token: Annotated[
        bool,
        typer.Option(
            "--allow-plaintext-token", rich_help_panel=_SERVER, help="Send the token to another host without TLS too."
        ),
    ] = False
    timeout: Annotated[
        float, typer.Option(metavar="SECONDS", min=0.001, rich_help_panel=_SERVER, help="Longest time of one call.")
    ] = 300.0

    def check(self) -> None:
        """Raise CommandError for options that do not go together."""
        if self.server is None:
            remote = ("tls", "tls_ca", "tls_cert", "tls_key", "tls_server_name", "token", "token_file")
            given = [f"--{name.replace('_', '-')}" for name in remote if getattr(self, name)]
            if given:
                raise usage_error(given[0], "goes with --server")
        elif not self.server.strip():
            raise usage_error("--server", "HOST:PORT is expected")
        elif self.model is not None:
            raise usage_error("--model", "goes with a server that is started here; --server names a running one")
        if self.token is not None and self.token_file is not None:
            raise usage_error("--token", "--token-file was given too; one token is enough")
        if (self.tls_cert is None) != (self.tls_key is None):
            raise usage_error("--tls-cert", "goes with --tls-key")

    def client_arguments(self) -> dict[str, Any]:
        """What TasteClient takes beside its target."""
        return {
            "tls": self._tls(),
            "token": self._token(),
            "allow_plaintext_token": self.allow_plaintext_token,
            "timeout_s": self.timeout,
        }

    def _tls(self) -> Tls | bool | None:
        from taste_grpc_client import Tls

        if any((self.tls_ca, self.tls_cert, self.tls_server_name)):
            return Tls(
                ca_file=self.tls_ca, cert_file=self.tls_cert, key_file=self.tls_key, server_name=self.tls_server_name
            )
        return True if self.tls else None

    def _token(self) -> str | None:
        if self.token_file is not None:
            return self.token_file.read_text(encoding="utf-8").strip()
        return self.token or os.environ.get(TOKEN_VARIABLE) or None


@dataclass(frozen=True)
class Endpoint:
    """A server that serves: its address, and what clients take beside it."""

    target: str
    client_arguments: dict[str, Any]


@contextmanager
def served(options: ServerOptions, progress: ProgressLine, *, dialogue: bool = False) -> Iterator[Endpoint]:
    """The server that `options` name, or one that is started here and stopped at the end.

    One that is started here offers conversations only with `dialogue`: loading what they need takes a while.

    Raises:
        CommandError: options that do not go together.
        ServerStartError, UnavailableError: the server that was started does not serve.
    """
    options.check()
    if options.server is not None:
        yield Endpoint(options.server, options.client_arguments())
        return
    with _own_server(options, progress, dialogue=dialogue) as address:
        yield Endpoint(address, {"timeout_s": options.timeout})


@contextmanager
def connected(options: ServerOptions, progress: ProgressLine, *, dialogue: bool = False) -> Iterator[TasteClient]:
    """A client of the server that `served` gives. Raises the same."""
    with served(options, progress, dialogue=dialogue) as endpoint:
        from taste_grpc_client import TasteClient

        try:
            client = TasteClient(endpoint.target, **endpoint.client_arguments)
        except ValueError as error:
            raise as_options(error) from None
        with client:
            yield client


def as_options(error: ValueError) -> CommandError:
    """What a client has against its arguments, in terms of the options they come from."""
    argument, _, reason = str(error).partition(": ")
    option = "--" + argument.replace(".", "-").replace("_", "-").removesuffix("-file")
    for name, flag in (("allow_plaintext_token=True", "--allow-plaintext-token"), ("`tls`", "--tls")):
        reason = reason.replace(name, flag)
    return usage_error(option, reason)


@contextmanager
def _own_server(options: ServerOptions, progress: ProgressLine, *, dialogue: bool) -> Iterator[str]:
    from taste_grpc.own_server import own_server

    progress.say("starting a server (name a running one with --server)")
    flags = ["--model", options.model] if options.model else []
    with own_server(
        flags, on_event=lambda event: progress.say(str(event.get("event", ""))), dialogue=dialogue
    ) as address:
        yield address
        progress.say("stopping the server")
