"""Who calls: bearer tokens, and the names in client certificates."""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import SecretStr, TypeAdapter, ValidationError

from taste_grpc.errors import SettingsError, UnauthenticatedError
from taste_grpc.file_stamp import file_stamps
from taste_grpc.observability import log_event
from taste_grpc.settings import MIN_TOKEN_CHARS, TokenTable, distinct_tokens

logger = logging.getLogger(__name__)

AUTHORIZATION_KEY = "authorization"
"""Metadata key of the token: `authorization: Bearer TOKEN`."""

_EXEMPT = "/grpc.health.v1.Health/"
"""Orchestrators probe without credentials, and learn no more than whether calls are taken."""

_BEARER = re.compile(r"bearer +([\x21-\x7e]+)", re.IGNORECASE)
_UNPRINTABLE = re.compile(r"[^\x21-\x7e]")
_MAX_NAME_CHARS = 64
_TABLE: TypeAdapter[dict[str, SecretStr]] = TypeAdapter(TokenTable)

Metadata = Iterable[tuple[str, str | bytes]]


@dataclass(frozen=True, slots=True)
class _Holder:
    """Who has a token. Only its digest is kept: equal in length, and of no use to who sees it."""

    name: str
    digest: bytes = field(repr=False)


class Authenticator:
    """Knows callers by their bearer tokens, of the settings and of a file that is read again when it changes.

    A file that has become unusable changes nothing: its last good tokens stay, and one line is logged
    for each change. A file without any lets nobody in. To be used on the event loop only.

    Args:
        tokens: tokens by the names of their holders.
        file: TOML file of `name = "token"` lines. Without it and without `tokens`, everybody gets in.

    Raises:
        SettingsError: the file is not usable, or names what `tokens` name too.
    """

    def __init__(self, tokens: Mapping[str, SecretStr] | None = None, file: Path | None = None) -> None:
        self._tokens = dict(tokens or {})
        self._file = file
        self._stamps = file_stamps(file)
        self._holders = _holders(self._tokens, file)
        self.required = bool(self._tokens) or file is not None
        if self.required and not self._holders:
            raise SettingsError(f"tokens_file: {file}: names no token, so nobody could call")

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all who hold a token."""
        return tuple(holder.name for holder in self._holders)

    def client_of(self, method: str, metadata: Metadata) -> str:
        """Name of the caller; empty where none is asked for.

        Raises:
            UnauthenticatedError: there is no token, no proper one, or none that is known. The message
                repeats nothing of what was sent.
        """
        if not self.required or method.startswith(_EXEMPT):
            return ""
        self._read_if_changed()
        return self._holder_of(_bearer(metadata))

    def client_of_token(self, token: str | None) -> str:
        """Name of who shows `token`, in whatever way; empty where none is asked for. Raises UnauthenticatedError."""
        if not self.required:
            return ""
        if token is None:
            raise UnauthenticatedError("a token is needed")
        self._read_if_changed()
        return self._holder_of(token)

    def _holder_of(self, token: str) -> str:
        digest = _digest(token)
        name = ""
        # All of them, however early one fits: the time it takes tells nothing.
        for holder in self._holders:
            if hmac.compare_digest(holder.digest, digest):
                name = holder.name
        if not name:
            raise UnauthenticatedError("the token is not known here")
        return name

    def _read_if_changed(self) -> None:
        if self._file is None or (stamps := file_stamps(self._file)) == self._stamps:
            return
        self._stamps = stamps
        try:
            self._holders = _holders(self._tokens, self._file)
        except SettingsError as error:
            log_event(logger, logging.ERROR, "changed tokens not taken", why=str(error))
            return
        log_event(logger, logging.INFO, "tokens read again", file=self._file, holders=", ".join(self.names))


def certificate_name(context: Any) -> str:
    """The name in the certificate a client has shown; empty when it has shown none.

    The first of the alternative names, else the common name, as far as they can be printed.
    """
    identities = [identity for identity in context.peer_identities() or () if identity]
    if not identities:
        return ""
    return _UNPRINTABLE.sub("?", identities[0].decode("ascii", "replace"))[:_MAX_NAME_CHARS]


def _bearer(metadata: Metadata) -> str:
    values = [value for key, value in metadata if key == AUTHORIZATION_KEY]
    if not values:
        raise UnauthenticatedError("the call carries no token; send metadata `authorization: Bearer TOKEN`")
    if len(values) > 1:
        raise UnauthenticatedError(f"the call carries {len(values)} authorization entries; send one")
    match = _BEARER.fullmatch(values[0].strip(" ")) if isinstance(values[0], str) else None
    if match is None:
        raise UnauthenticatedError("the authorization entry is not of the form `Bearer TOKEN`")
    return match[1]


def _holders(tokens: Mapping[str, SecretStr], file: Path | None) -> tuple[_Holder, ...]:
    from_file = _read(file) if file is not None else {}
    twice = sorted(tokens.keys() & from_file.keys())
    if twice:
        raise SettingsError(f"tokens_file: {file}: {twice[0]} is named in the setting `tokens` too")
    try:
        everyone = distinct_tokens({**tokens, **from_file})
    except ValueError as error:
        raise SettingsError(f"tokens_file: {file}: {error}") from None
    return tuple(_Holder(name, _digest(token.get_secret_value())) for name, token in everyone.items())


def _read(file: Path) -> dict[str, SecretStr]:
    try:
        return _TABLE.validate_python(tomllib.loads(file.read_text("utf-8")))
    except OSError as error:
        raise SettingsError(f"tokens_file: {file}: {error.strerror or type(error).__name__}") from None
    except UnicodeDecodeError:
        raise SettingsError(f"tokens_file: {file}: is no UTF-8 text") from None
    except tomllib.TOMLDecodeError as error:
        # Where, but not what: the line that is wrong may be the one with the token.
        place = re.search(r"\(at .*\)$", str(error))
        raise SettingsError(f"tokens_file: {file}: is no TOML {place[0] if place else ''}".rstrip()) from None
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        # A long name may be a token on the wrong side of the equals sign.
        names = [str(part) for part in first["loc"] if part != "[key]" and len(str(part)) < MIN_TOKEN_CHARS]
        problem = str(first["msg"]).removeprefix("Value error, ")
        raise SettingsError(f"tokens_file: {file}: {''.join(f'{name}: ' for name in names)}{problem}") from None


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
