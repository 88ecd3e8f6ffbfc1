"""How both clients connect, and what goes with each of their calls."""

from __future__ import annotations

import math
import threading
from typing import Any

import grpc
import grpc.aio

from taste_grpc_client.errors import TasteClientError, TlsError, from_status
from taste_grpc_client.hints import hint
from taste_grpc_client.limits import MAX_MESSAGE_BYTES
from taste_grpc_client.retry import Attempts, Retry
from taste_grpc_client.security import Tls, is_local, token_metadata

DEFAULT_TARGET = "localhost:50051"
"""Where `taste-grpc serve` listens unless told otherwise."""


class Connection:
    """Where a client's calls go and what they carry; the arguments are those of the clients.

    Attributes:
        closed: set when the client is.

    Raises:
        ValueError: they contradict each other, or would send a token where it can be read.
        OSError: a file of `tls` cannot be read.
    """

    def __init__(
        self,
        target: str,
        *,
        tls: Tls | bool | None,
        token: str | None,
        allow_plaintext_token: bool,
        retry: Retry | None,
        timeout_s: float | None,
        has_channel: bool,
    ) -> None:
        self._target = "the given channel" if has_channel else target
        self._timeout_s = _checked_timeout(timeout_s)
        self._retry = retry
        self.closed = threading.Event()
        self._tls = Tls() if tls is True else tls or None
        self._local = not has_channel and is_local(target)
        self._metadata = (token_metadata(token),) if token is not None else ()
        if has_channel and self._tls is not None:
            raise ValueError("tls: a channel was given, which is encrypted or is not; tls cannot change that")
        if token is not None and not (self._tls or self._local or allow_plaintext_token):
            raise ValueError(_TOKEN_OF_CHANNEL if has_channel else _TOKEN_IN_PLAIN_TEXT.format(target))
        self._credentials = self._tls.credentials() if self._tls else None

    def open(self) -> grpc.Channel:
        """A channel for threads."""
        if self._credentials is None:
            return grpc.insecure_channel(self._target, options=self._options())
        return grpc.secure_channel(self._target, self._credentials, options=self._options())

    def open_aio(self) -> grpc.aio.Channel:
        """A channel for the running event loop."""
        if self._credentials is None:
            return grpc.aio.insecure_channel(self._target, options=self._options())
        return grpc.aio.secure_channel(self._target, self._credentials, options=self._options())

    def _options(self) -> list[tuple[str, int | str]]:
        options: list[tuple[str, int | str]] = [
            # A short window: the server's audio waits on the server while the reader is slow, so that a cancel or an
            # interruption is not followed by a minute of speech that is under way already.
            ("grpc.http2.bdp_probe", 0),
            ("grpc.http2.lookahead_bytes", 16384),
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            # Attempts are made in Python. gRPC's own (1.85), even those it makes unasked when a connection is about to
            # close, lose messages of a request stream, and the call ends with OK all the same.
            ("grpc.enable_retries", 0),
            # A server that vanished without a word is noticed, also by calls without a deadline.
            ("grpc.keepalive_time_ms", 30_000),
            ("grpc.keepalive_timeout_ms", 10_000),
        ]
        if self._local:
            # A proxy's loopback is another machine's.
            options.append(("grpc.enable_http_proxy", 0))
        if self._tls and self._tls.server_name is not None:
            options.append(("grpc.ssl_target_name_override", self._tls.server_name))
        return options

    def attempts(self, timeout_s: float | None) -> Attempts:
        """Those of a call that begins now. `timeout_s` None takes the client's; infinity is none."""
        timeout_s = self._timeout_s if timeout_s is None else _checked_timeout(timeout_s)
        return Attempts(self._retry, None if timeout_s == math.inf else timeout_s)

    def conversation_attempts(self, timeout_s: float | None) -> tuple[Attempts, Attempts]:
        """Those of the opening of a conversation that begins now, and those of the whole of it, which has no deadline
        unless one is given: it lasts as long as people talk."""
        return self.attempts(timeout_s), self.attempts(math.inf if timeout_s is None else timeout_s)

    def call_options(self, attempts: Attempts) -> dict[str, Any]:
        """Keyword arguments of the attempt that begins now. Raises ValueError when the client is closed."""
        if self.closed.is_set():
            raise ValueError("the client is closed")
        return {"timeout": attempts.timeout_s, "metadata": self._metadata or None}

    @property
    def keep_bytes(self) -> int:
        """How much of a request stream is kept for another attempt."""
        return self._retry.buffer_bytes if self._retry else 0

    def error(self, code: grpc.StatusCode, details: str | None, trailers: object) -> TasteClientError:
        """The exception for a call that ended with this status."""
        details = details or "no details"
        found = hint(code, details, self._target, tls=self._tls is not None)
        message = f"{found.text} ({details})" if found.text else details
        return from_status(code, message, trailers, TlsError if found.about_tls else None)


def _checked_timeout(timeout_s: float | None) -> float | None:
    if timeout_s is not None and not timeout_s > 0:
        raise ValueError(f"timeout_s: a number of seconds above 0 was expected, not {timeout_s!r}")
    return timeout_s


_TOKEN_IN_PLAIN_TEXT = (
    "token: it would travel to {} in plain text; give `tls`, or allow_plaintext_token=True where the network is trusted"
)
_TOKEN_OF_CHANNEL = "token: a given channel may be plain text; allow_plaintext_token=True says that it may carry one"
