"""The settings of a server: one immutable tree, read once at start-up.

A value comes from the first of these that has it: command-line flags, environment
variables (`TASTE_PORT`, `TASTE_LIMITS__MAX_AUDIO_MS`, `STREAM_VAD_SILENCE_MS`), a TOML file (`port = ...`,
`[limits]`), the defaults below.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import tomlkit
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, InitSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict
from pydantic_settings import SettingsError as PydanticSettingsError
from tomlkit import TOMLDocument
from tomlkit.items import Table

from taste_grpc.errors import SettingsError

DEFAULT_MODEL = "taste-nano"
"""The model of a server that was told of none: assembled from models that packages ship."""

CONFIG_VARIABLE = "TASTE_CONFIG"
"""Environment variable with the path of the TOML file."""

MIN_TOKEN_CHARS = 16
"""Shorter bearer tokens can be guessed; 32 random bytes in hexadecimal are 64."""

_PREFIX = "TASTE_"
_STREAM_PREFIX = "STREAM_"
_NESTED = "__"
_TOKEN = re.compile(r"[\x21-\x7e]*")
_TOKEN_NAME = re.compile(r"[A-Za-z0-9._@:/+-]{1,64}")
_MAX_TOKEN_CHARS = 4_096
_ORIGIN = re.compile(r"https?://([a-z0-9._-]+|\[[0-9a-f:.]+\])(:[0-9]{1,5})?/?")


def _checked_token(token: SecretStr) -> SecretStr:
    secret = token.get_secret_value()
    if not _TOKEN.fullmatch(secret):
        raise ValueError("a token has printable ASCII characters only, and no blanks")
    if not MIN_TOKEN_CHARS <= len(secret) <= _MAX_TOKEN_CHARS:
        raise ValueError(f"a token has {MIN_TOKEN_CHARS} to {_MAX_TOKEN_CHARS:,} characters, this one {len(secret):,}")
    return token


def _checked_token_name(name: str) -> str:
    if not _TOKEN_NAME.fullmatch(name):
        raise ValueError("a token's name has 1 to 64 letters, digits and ._@:/+-")
    return name


def distinct_tokens(tokens: dict[str, SecretStr]) -> dict[str, SecretStr]:
    """`tokens` as they are. Raises ValueError when two names have the same token: a log could not tell them apart."""
    names: dict[str, str] = {}
    for name, token in tokens.items():
        other = names.setdefault(token.get_secret_value(), name)
        if other != name:
            raise ValueError(f"{other} and {name} have the same token")
    return tokens


TokenTable = Annotated[
    dict[Annotated[str, AfterValidator(_checked_token_name)], Annotated[SecretStr, AfterValidator(_checked_token)]],
    AfterValidator(distinct_tokens),
]
"""Bearer tokens by the name of their holder."""


class LimitSettings(BaseModel):
    """What requests may contain. Names and meaning are those of `taste.v1.Limits`.

    The ranges are what the model and the wire can bear; a setting cannot go beyond them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    min_audio_ms: Annotated[int, Field(ge=1, le=30_000)] = 20
    max_audio_ms: Annotated[int, Field(ge=1, le=30_000)] = 30_000
    min_sample_rate_hz: Annotated[int, Field(ge=8_000, le=96_000)] = 8_000
    max_sample_rate_hz: Annotated[int, Field(ge=8_000, le=96_000)] = 96_000
    max_channels: Annotated[int, Field(ge=1, le=2)] = 2
    max_text_bytes: Annotated[int, Field(ge=1, le=1 << 20)] = 8_192
    max_segments: Annotated[int, Field(ge=1, le=65_536)] = 256
    max_text_tokens: Annotated[int, Field(ge=1, le=1 << 20)] = 8_192
    max_length: Annotated[int, Field(ge=1, le=65_536)] = 4_096
    max_extra_words: Annotated[int, Field(ge=1, le=65_536)] = 1_024
    max_request_bytes: Annotated[int, Field(ge=1_024, le=1 << 30)] = 16 << 20
    max_converse_message_bytes: Annotated[int, Field(ge=1_024, le=1 << 24)] = 64 << 10
    min_reference_ms: Annotated[int, Field(ge=1, le=30_000)] = 1_000
    max_reference_ms: Annotated[int, Field(ge=1, le=30_000)] = 30_000
    max_resume_state_bytes: Annotated[int, Field(ge=1_024, le=1 << 24)] = 256 << 10
    max_request_audio_ms: Annotated[int, Field(ge=1, le=3_600_000)] = 120_000
    """Longest audio of all segments of one request together: compressed clips decode to far more than they weigh."""
    max_idle_ms: Annotated[int, Field(ge=1, le=86_400_000)] = 300_000
    """Longest wait for the next message of a call that streams requests."""

    @model_validator(mode="after")
    def _ordered(self) -> LimitSettings:
        for low, high in (
            ("min_audio_ms", "max_audio_ms"),
            ("min_sample_rate_hz", "max_sample_rate_hz"),
            ("min_reference_ms", "max_reference_ms"),
        ):
            if getattr(self, low) > getattr(self, high):
                raise ValueError(f"{low} is {getattr(self, low)}, above {high}, which is {getattr(self, high)}")
        return self


class MethodAdmission(BaseModel):
    """How many calls of one method may be under way, and how many may wait for that."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    active: Annotated[int, Field(ge=1, le=65_536)] = 16
    waiting: Annotated[int, Field(ge=0, le=65_536)] = 64


class AdmissionSettings(BaseModel):
    """Who gets in. Calls beyond `waiting`, and those that waited for `max_wait_ms`, end in RESOURCE_EXHAUSTED."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_wait_ms: Annotated[int, Field(ge=0, le=3_600_000)] = 10_000
    tokenize: MethodAdmission = MethodAdmission()
    generate: MethodAdmission = MethodAdmission()
    detokenize: MethodAdmission = MethodAdmission()
    reply: MethodAdmission = MethodAdmission()


class ChunkedResponseSettings(BaseModel):
    """How spoken questions are answered in text; each may be set differently by a request."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_new_tokens: Annotated[int, Field(ge=1, le=4_096)] = 50
    """Longest answer, in tokens of the language model."""
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] = 0.7
    """0 takes the most likely token."""
    top_p: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = 0.9
    chunk_size_words: Annotated[int, Field(ge=1, le=64)] = 4
    """Most words in a chunk."""
    chunk_timeout_ms: Annotated[int, Field(ge=1, le=60_000)] = 500
    """How long whole words wait for a chunk to fill."""
    timeout_ms: Annotated[int, Field(ge=1, le=600_000)] = 60_000
    """How long an answer may take."""
    system_prompt: Annotated[str, Field(min_length=1, max_length=8_192)] | None = None
    """Instructions to the language model; None leaves them to it."""


VadSilenceMs = Annotated[int, Field(ge=300, le=2_000)]
PartialIntervalMs = Annotated[int, Field(ge=250, le=3_000)]
MaxUtteranceMs = Annotated[int, Field(ge=1_000, le=120_000)]
BargeInMs = Annotated[int, Field(ge=32, le=5_000)]
MaxNewTokens = Annotated[int, Field(ge=1, le=4_096)]
"""What conversations may be told, as settings and by clients alike."""


class StreamSettings(BaseModel):
    """Live conversations. Each may also be given as an environment variable of its own, `STREAM_VAD_SILENCE_MS`."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    vad_silence_ms: VadSilenceMs = 700
    """Silence that ends a turn."""
    partial_interval_ms: PartialIntervalMs = 1_000
    """Time between partial transcripts."""
    max_utterance_ms: MaxUtteranceMs = 30_000
    """The longest turn."""
    max_utterance_bytes: Annotated[int, Field(ge=65_536, le=1 << 30)] = 16 << 20
    """The most microphone audio of one turn, in bytes as they come."""
    barge_in_ms: BargeInMs = 240
    """Speech that interrupts an answer; a shorter noise does not."""
    max_new_tokens: MaxNewTokens = 160
    """The longest answer."""
    max_pending_phrases: Annotated[int, Field(ge=1, le=1_000)] = 5
    """Phrases that wait for the voice; with more, the language model is not read further."""
    asr_timeout_s: Annotated[float, Field(gt=0, le=3_600, allow_inf_nan=False)] = 15.0
    """For the final transcript of a turn."""
    llm_timeout_s: Annotated[float, Field(gt=0, le=3_600, allow_inf_nan=False)] = 30.0
    """For all of an answer's text, without the time in which the language model waits for the voice."""
    llm_first_token_timeout_s: Annotated[float, Field(gt=0, le=3_600, allow_inf_nan=False)] | None = None
    """For the first token of an answer; half of `llm_timeout_s` when unset."""
    tts_timeout_s: Annotated[float, Field(gt=0, le=3_600, allow_inf_nan=False)] = 10.0
    """For one phrase."""
    log_latency: bool = True
    """A JSON line on stdout for each turn, error and notice."""

    system_prompt: Annotated[str, Field(max_length=8_192)] | None = None
    """Instructions to the language model; None takes some that suit it."""
    max_sessions: Annotated[int, Field(ge=1, le=65_536)] = 8
    """Conversations that may be open at a time. The embedded language model keeps a place for each."""
    resume_dir: Path | None = None
    """Where conversations are kept that have to go on in another server; shared by those servers. None takes one in the
    user's cache."""
    resume_lifetime_s: Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)] = 600.0
    """How long they are kept."""

    detector: Literal["silero", "webrtc"] = "silero"
    """Tells speech from other sound."""
    recogniser: Literal["moonshine", "whisper"] = "moonshine"
    """Speech to text."""
    recognisers: Annotated[int, Field(ge=1, le=64)] | None = None
    """Transcripts that are made at a time; None takes half as many as there are cores."""
    model_whisper: Annotated[str, Field(min_length=1)] = "small-int8"
    """Whisper model: its size and number format, or a directory. Only for the recogniser `whisper`."""
    language_model: Literal["auto", "embedded", "openai", "taste"] = "auto"
    """`auto` takes an OpenAI-compatible endpoint when OPENAI_BASE_URL or OPENAI_API_KEY is set, else `embedded`."""
    openai_model: Annotated[str, Field(min_length=1)] = "gpt-4o-mini"
    """Name of the model behind that endpoint."""
    openai_context_tokens: Annotated[int, Field(ge=256, le=1 << 24)] = 8_192
    """The longest conversation that is sent there, answer and all."""
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    """Of the language model; None takes 0.7, and 0.2 for the embedded one, which wanders otherwise."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.9
    voxtral: str | None = None
    """Directory or hub id of a Voxtral model that answers Reply; None leaves it to recogniser and language model."""
    taste_reference: Path | None = None
    """Recording of the person as whom a TASTE model answers, where the client names no voice; None takes one that ships
    with the embedded recogniser. Only for the language model `taste`."""
    voice: Literal["auto", "piper", "espeak"] = "auto"
    """`auto` takes Piper where it is installed, else espeak-ng."""
    voice_processes: Annotated[int, Field(ge=1, le=64)] = 1
    """Phrases that are spoken at a time."""

    @property
    def first_token_timeout_s(self) -> float:
        """The limit that counts."""
        return self.llm_timeout_s / 2 if self.llm_first_token_timeout_s is None else self.llm_first_token_timeout_s


class TlsSettings(BaseModel):
    """Transport security, from PEM files that are read again when they change."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    cert_file: Path
    """Certificate of the server, followed by those that lead from it to its authority."""
    key_file: Path
    """Private key of the certificate, not encrypted."""
    client_ca_file: Path | None = None
    """Authorities of clients. When given, only clients with a certificate of theirs get in."""


def _checked_origin(origin: str) -> str:
    if not _ORIGIN.fullmatch(origin.lower()):
        raise ValueError("an origin is written like https://talk.example.com or http://10.0.0.5:8080")
    return origin.lower().rstrip("/")


class WebSettings(BaseModel):
    """The page to talk with, and the WebSocket behind it; under `tls` they are served with its certificate."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    enabled: bool = False
    host: Annotated[str, Field(min_length=1)] = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65_535)] = 8_080
    """0 takes any free one; the log tells which."""
    origins: tuple[Annotated[str, AfterValidator(_checked_origin)], ...] = ()
    """Where the page may come from beside `localhost` and plain addresses: the names browsers know this server by, such
    as `https://talk.example.com`."""
    max_connections: Annotated[int, Field(ge=1, le=65_536)] = 64
    """Conversations at once; further ones are told to try again later."""


class Settings(BaseSettings):
    """Everything a server can be told. Immutable; make one with `load_settings`."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        env_prefix=_PREFIX,
        env_nested_delimiter=_NESTED,
        env_ignore_empty=True,
        protected_namespaces=(),
    )

    model: Annotated[str, Field(min_length=1)] = DEFAULT_MODEL
    """Directory or hub id of a checkpoint in the published layout, or `taste-nano`."""
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")] = "auto"
    """`auto` takes CUDA when there is one."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    threads: Annotated[int, Field(ge=1, le=1_024)] | None = None
    """Threads of one model computation on the CPU; None lets the engine choose."""

    cache_mib: Annotated[int, Field(ge=16, le=1 << 22)] | None = None
    """Keys and values of all calls together; None takes a quarter of the memory of the device."""
    deterministic: bool = False
    """A call gives the same to the bit whatever runs beside it, at some cost."""
    flush_after_ms: Annotated[int, Field(ge=0, le=60_000)] = 100
    """How long the end of a segment waits for the next one, so that the joint cannot be heard."""

    host: Annotated[str, Field(min_length=1)] = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65_535)] = 50_051
    """0 takes any free one; `port_file` and the log tell which."""
    port_file: Path | None = None
    """File that receives the port number once the server listens."""
    reflection: bool = True
    channelz: bool = False
    drain_grace_s: Annotated[float, Field(ge=0, le=3_600, allow_inf_nan=False)] = 30.0
    """How long running calls may go on once the server was told to stop."""
    max_concurrent_streams: Annotated[int, Field(ge=1, le=1_000_000)] = 256
    """Calls that one connection may have open at once; further ones wait in the client."""
    max_metadata_bytes: Annotated[int, Field(ge=1_024, le=1 << 20)] = 16 << 10
    keepalive_s: Annotated[float, Field(ge=1, le=86_400, allow_inf_nan=False)] = 30.0
    """A connection on which nothing was heard for so long is probed, and closed when nobody answers."""

    tls: TlsSettings | None = None
    """Plain text when None."""
    tokens: TokenTable = {}
    """Bearer tokens, by the name that log lines give their holders. All are let in when there are none here and no
    `tokens_file`."""
    tokens_file: Path | None = None
    """TOML file of `name = "token"` lines, beside `tokens`; read again when it changes."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["text", "json"] = "text"

    limits: LimitSettings = LimitSettings()
    admission: AdmissionSettings = AdmissionSettings()
    chunked_response: ChunkedResponseSettings = ChunkedResponseSettings()

    dialogue: bool = True
    """Whether conversations are offered: DialogueService."""
    stream: StreamSettings = StreamSettings()
    web: WebSettings = WebSettings()
    metrics_port: Annotated[int, Field(ge=0, le=65_535)] | None = None
    """Port for Prometheus, at `host`; 0 takes any free one. None: no metrics."""


class _StreamVariables(PydanticBaseSettingsSource):
    """`STREAM_VAD_SILENCE_MS` and the like; what is none of the settings belongs to somebody else."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        return None, field_name, False

    def __call__(self) -> dict[str, Any]:
        given = {name: os.environ.get(_STREAM_PREFIX + name.upper()) for name in StreamSettings.model_fields}
        named = {name: value for name, value in given.items() if value}
        return {"stream": named} if named else {}


def load_settings(flags: Mapping[str, Any] | None = None, config: Path | None = None) -> Settings:
    """Settings from flags, environment, file and defaults, in this order of precedence.

    Args:
        flags: what the command line gave; a value of None counts as not given.
        config: the TOML file; None takes `TASTE_CONFIG`, and no file when that is unset too.

    Raises:
        SettingsError: a value is not allowed, a name unknown, or the file cannot be read.
            One line, naming the setting and where its value came from.
    """
    given = {name: value for name, value in (flags or {}).items() if value is not None}
    path = config or (Path(os.environ[CONFIG_VARIABLE]) if os.environ.get(CONFIG_VARIABLE) else None)
    from_file = _read_toml(path) if path else {}

    class Sources(Settings):
        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,
            file_secret_settings: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            streams = _StreamVariables(settings_cls)
            return init_settings, streams, env_settings, InitSettingsSource(settings_cls, init_kwargs=from_file)

    try:
        return Sources(**given)
    except ValidationError as error:
        first = error.errors()[0]
        raise SettingsError(_sentence(dict(first), given, path)) from None
    except PydanticSettingsError as error:
        # Groups of settings are parsed before they are validated; the error tells their name in its text only.
        named = re.search(r'field "(\w+)"', str(error))
        name = named[1] if named else "settings"
        raise SettingsError(f"{name}: is no JSON object (environment variable {_PREFIX}{name.upper()})") from None


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise SettingsError(f"{path}: {error.strerror or error}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: is no TOML: {error}") from None


def _sentence(error: dict[str, Any], flags: Mapping[str, Any], path: Path | None) -> str:
    """One line for a validation error: the setting, what is wrong, where the value came from."""
    location = [str(part) for part in error["loc"]]
    name = ".".join(location) or "settings"
    variable = _PREFIX + _NESTED.join(location).upper()
    of_stream = _STREAM_PREFIX + location[-1].upper() if location[:1] == ["stream"] and len(location) == 2 else ""
    if location and location[0] in flags:
        origin = f"flag --{location[0].replace('_', '-')}" if len(location) == 1 else "command line"
    elif of_stream and os.environ.get(of_stream):
        origin = f"environment variable {of_stream}"
    elif location and any(key.upper() == variable for key in os.environ):
        origin = f"environment variable {variable}"
    else:
        origin = str(path) if path else "settings"
    if error["type"] == "extra_forbidden":
        return f"{name}: there is no such setting ({origin})"
    message = "is missing" if error["type"] == "missing" else str(error["msg"]).removeprefix("Value error, ")
    is_secret = location[:1] == ["tokens"]
    value = "" if is_secret or isinstance(error["input"], dict) else f"{error['input']!r}: "
    return " ".join(f"{name}: {value}{message} ({origin})".split())


def to_toml(settings: Settings) -> str:
    """`settings` as a TOML file that `load_settings` reads back; what is unset, and tokens, are comments."""
    document = tomlkit.document()
    _fill(document, settings.model_dump(mode="json", exclude={"tokens"}))
    if settings.tokens:
        document.add(tomlkit.comment(f"tokens are not shown; they are those of {', '.join(settings.tokens)}"))
    return tomlkit.dumps(document)


def _fill(table: TOMLDocument | Table, values: Mapping[str, Any]) -> None:
    """Add `values`, plain ones first: what follows a nested table belongs to it."""
    for name, value in values.items():
        if value is None:
            table.add(tomlkit.comment(f"{name} is not set"))
        elif not isinstance(value, dict):
            table.add(name, value)
    for name, value in values.items():
        if isinstance(value, dict):
            nested = tomlkit.table()
            _fill(nested, value)
            table.add(name, nested)
