"""`taste-grpc serve`."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from taste_grpc.cli.failure import usage_error
from taste_grpc.errors import SettingsError

if TYPE_CHECKING:
    from taste_grpc.engine import Engine
    from taste_grpc.gateway import Authenticate
    from taste_grpc.server.app import MakeWebServer
    from taste_grpc.server.dialogue_service import Dialogue
    from taste_grpc.server.web_door import WebDoor, WebServer
    from taste_grpc.settings import Settings

_MODEL, _NETWORK, _SECURITY, _ADMISSION, _SETTINGS = "Model", "Network", "Security", "Admission", "Settings"

Setting = dict[str, Any]
"""Settings by name, groups of them as nested dictionaries; None stands for what was not given."""


@dataclass(frozen=True)
class ModelFlags:
    """What is loaded, and where it runs."""

    model: Annotated[
        str | None,
        typer.Option(
            metavar="DIR_OR_HUB_ID",
            rich_help_panel=_MODEL,
            help="Checkpoint. Default: taste-nano, whose words come from a small language model and whose speech "
            "parts are random.",
        ),
    ] = None
    device: Annotated[str | None, typer.Option(rich_help_panel=_MODEL, help="auto, cpu, cuda or cuda:N.")] = None
    dtype: Annotated[str | None, typer.Option(rich_help_panel=_MODEL, help="auto, float32, bfloat16 or float16.")] = (
        None
    )
    threads: Annotated[
        int | None, typer.Option(rich_help_panel=_MODEL, help="Threads of one computation on the CPU.")
    ] = None

    def settings(self) -> Setting:
        """These flags, as settings."""
        return asdict(self)


@dataclass(frozen=True)
class NetworkFlags:
    """Where the server listens, what it offers beside its services, how it ends and what it logs."""

    host: Annotated[str | None, typer.Option(rich_help_panel=_NETWORK, help="Address to listen at.")] = None
    port: Annotated[
        int | None, typer.Option(rich_help_panel=_NETWORK, help="Port to listen at; 0 takes a free one.")
    ] = None
    port_file: Annotated[
        Path | None, typer.Option(rich_help_panel=_NETWORK, help="File that receives the port number.")
    ] = None
    reflection: Annotated[bool | None, typer.Option(rich_help_panel=_NETWORK, help="Offer server reflection.")] = None
    channelz: Annotated[bool | None, typer.Option(rich_help_panel=_NETWORK, help="Offer channelz.")] = None
    drain_grace_s: Annotated[
        float | None, typer.Option(rich_help_panel=_NETWORK, help="Time running calls get when the server stops.")
    ] = None
    metrics_port: Annotated[
        int | None,
        typer.Option(rich_help_panel=_NETWORK, help="Port for Prometheus; 0 takes a free one. Default: none."),
    ] = None
    dialogue: Annotated[
        bool | None, typer.Option(rich_help_panel=_NETWORK, help="Offer conversations: DialogueService.")
    ] = None
    web: Annotated[
        bool | None,
        typer.Option("--web", rich_help_panel=_NETWORK, help="Serve the page to talk with, and its WebSocket."),
    ] = None
    web_port: Annotated[
        int | None, typer.Option(rich_help_panel=_NETWORK, help="Port of the page; 0 takes a free one. Default: 8080.")
    ] = None
    log_level: Annotated[str | None, typer.Option(rich_help_panel=_NETWORK, help="debug, info, warning or error.")] = (
        None
    )
    log_format: Annotated[str | None, typer.Option(rich_help_panel=_NETWORK, help="text or json.")] = None

    def settings(self) -> Setting:
        """These flags, as settings."""
        flags = asdict(self)
        web = {"enabled": flags.pop("web"), "port": flags.pop("web_port")}
        return {**flags, "web": web}


@dataclass(frozen=True)
class SecurityFlags:
    """Who may call, and how the wire is protected."""

    tls_cert: Annotated[
        Path | None,
        typer.Option(metavar="PEM", rich_help_panel=_SECURITY, help="Certificate of the server; needs --tls-key."),
    ] = None
    tls_key: Annotated[
        Path | None, typer.Option(metavar="PEM", rich_help_panel=_SECURITY, help="Private key of the certificate.")
    ] = None
    tls_client_ca: Annotated[
        Path | None,
        typer.Option(metavar="PEM", rich_help_panel=_SECURITY, help="Let in only clients this CA has certified."),
    ] = None
    tokens_file: Annotated[
        Path | None,
        typer.Option(
            metavar="TOML", rich_help_panel=_SECURITY, help='Bearer tokens that are let in, as lines NAME = "TOKEN".'
        ),
    ] = None

    def settings(self) -> Setting:
        """These flags, as settings."""
        tls = {"cert_file": self.tls_cert, "key_file": self.tls_key, "client_ca_file": self.tls_client_ca}
        return {"tls": tls, "tokens_file": self.tokens_file}


@dataclass(frozen=True)
class AdmissionFlags:
    """How many calls get in."""

    max_active: Annotated[
        int | None,
        typer.Option(metavar="N", rich_help_panel=_ADMISSION, help="Calls of each method that may run at a time."),
    ] = None
    max_waiting: Annotated[
        int | None,
        typer.Option(metavar="N", rich_help_panel=_ADMISSION, help="Calls of each method that may wait for a place."),
    ] = None
    max_wait_ms: Annotated[
        int | None, typer.Option(metavar="MS", rich_help_panel=_ADMISSION, help="How long a call may wait.")
    ] = None

    def settings(self) -> Setting:
        """These flags, as settings."""
        each = {"active": self.max_active, "waiting": self.max_waiting}
        methods = {method: dict(each) for method in ("tokenize", "generate", "detokenize", "reply")}
        return {"admission": {"max_wait_ms": self.max_wait_ms, **methods}}


@dataclass(frozen=True)
class SettingsFlags:
    """Where further settings come from, and whether they are only shown."""

    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            rich_help_panel=_SETTINGS,
            help="Any setting by its name, e.g. limits.max_audio_ms=10000; wins over other flags. May be repeated.",
        ),
    ] = None
    config: Annotated[Path | None, typer.Option(rich_help_panel=_SETTINGS, help="TOML file with settings.")] = None
    print_config: Annotated[
        bool, typer.Option("--print-config", rich_help_panel=_SETTINGS, help="Print the settings as TOML and exit.")
    ] = False
    as_json: Annotated[
        bool, typer.Option("--json", rich_help_panel=_SETTINGS, help="With --print-config: as JSON. Errors too.")
    ] = False
    lifeline: Annotated[bool, typer.Option("--lifeline", hidden=True, help="Stop when stdin is closed.")] = False
    private: Annotated[
        bool, typer.Option("--private", hidden=True, help="Listen on loopback, in plain text, without tokens.")
    ] = False

    def settings(self) -> Setting:
        """What `--set` says, as settings. Raises CommandError for what is no NAME=VALUE."""
        tree: Setting = {}
        for given in self.set_ or ():
            name, equals, value = given.partition("=")
            *groups, leaf = name.strip().split(".")
            if not equals or not all((*groups, leaf)):
                raise usage_error("--set", f"NAME=VALUE is expected, not {given!r}")
            _merge(tree, _nested([*groups, leaf], value))
        return tree


def serve(
    model: ModelFlags,
    network: NetworkFlags,
    security: SecurityFlags,
    admission: AdmissionFlags,
    source: SettingsFlags,
) -> None:
    """Run the server until it is told to stop (SIGTERM, Ctrl-C).

    Settings come from flags, then TASTE_* environment variables, then a TOML file, then defaults.
    """
    flags: Setting = {}
    for group in (model, network, security, admission, source):
        _merge(flags, group.settings())
    settings = _load(flags, source)
    if source.print_config:
        from taste_grpc.settings import to_toml

        typer.echo(settings.model_dump_json() + "\n" if source.as_json else to_toml(settings), nl=False)
        return
    from taste_grpc.observability import configure_logging
    from taste_grpc.server import run_server

    configure_logging(settings.log_level, settings.log_format)
    lifeline_fd = sys.stdin.fileno() if source.lifeline else None
    if settings.metrics_port is not None and not settings.dialogue:
        raise SettingsError("metrics_port: with dialogue = false there are no metrics")
    make_dialogue = _dialogue_maker(settings) if settings.dialogue else None
    make_web = _web_maker(settings) if settings.web.enabled else None
    asyncio.run(run_server(settings, _engine_maker(settings), make_dialogue, make_web, lifeline_fd=lifeline_fd))


def _load(flags: Setting, source: SettingsFlags) -> Settings:
    from taste_grpc.settings import WebSettings, load_settings

    settings = load_settings(flags, source.config)
    if source.private:
        private: Setting = {"host": "127.0.0.1", "tls": None, "tokens": {}, "tokens_file": None, "metrics_port": None}
        return settings.model_copy(update={**private, "web": WebSettings()})
    return settings


def _engine_maker(settings: Settings) -> Callable[[], Engine]:
    def make_engine() -> Engine:
        from taste_grpc.engine import EngineSettings, LocalEngine

        return LocalEngine(
            EngineSettings(
                model=settings.model,
                device=settings.device,
                dtype=settings.dtype,
                threads=settings.threads,
                max_text_tokens=settings.limits.max_text_tokens,
                admission=settings.admission,
                cache_mib=settings.cache_mib,
                deterministic=settings.deterministic,
                flush_after_ms=settings.flush_after_ms,
            )
        )

    return make_engine


def _dialogue_maker(settings: Settings) -> Callable[[Engine], Dialogue]:
    def make_dialogue(engine: Engine) -> Dialogue:
        from taste_grpc.dialogue.local import LocalDialogue

        return LocalDialogue(settings, engine)

    return make_dialogue


def _web_maker(settings: Settings) -> MakeWebServer:
    if not settings.dialogue:
        raise SettingsError("web.enabled: there are no conversations to serve with dialogue = false")

    def make_web(conversations: WebDoor, authenticate: Authenticate, is_serving: Callable[[], bool]) -> WebServer:
        try:
            from taste_grpc.gateway import Gateway
        except ImportError as error:
            raise SettingsError(f"web.enabled: {error.name} is not installed: pip install 'taste-grpc[web]'") from error

        return Gateway(conversations, settings, authenticate, is_serving)

    return make_web


def _nested(names: list[str], value: Any) -> Setting:
    """`{"a": {"b": value}}` for names a and b."""
    for name in reversed(names):
        value = {name: value}
    nested: Setting = value
    return nested


def _merge(tree: Setting, more: Setting) -> None:
    """Put `more` into `tree`; what is None was not given, and groups without a member are left out."""
    for name, value in more.items():
        if isinstance(value, dict):
            branch = tree.get(name, {})
            if not isinstance(branch, dict):
                raise usage_error("--set", f"{name} is both a setting and a group of settings")
            _merge(branch, value)
            if branch:
                tree[name] = branch
        elif value is not None:
            tree[name] = value
