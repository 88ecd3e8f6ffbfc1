"""The web server, beside the gRPC server on one event loop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable, Iterator

import uvicorn

from taste_grpc.errors import SettingsError
from taste_grpc.gateway.app import make_app
from taste_grpc.gateway.conversations import Authenticate, Conversations, anybody
from taste_grpc.gateway.tls import WebTls
from taste_grpc.gateway.wire import TalkProtocol, WebProtocol, bound_buffers
from taste_grpc.observability import log_event
from taste_grpc.settings import Settings

logger = logging.getLogger(__name__)

PING_EVERY_S = 20.0
PONG_WITHIN_S = 40.0
"""A client that reads slowly answers late; one that answers later than this is taken to be gone."""

_STOP_WITHIN_S = 3
"""Time for connections to end once the gateway was told to stop; conversations were told before."""


class Gateway:
    """Serves the page and the WebSocket. All methods are to be called on one event loop.

    Args:
        conversations: where conversations are opened.
        settings: of the server; `web`, `tls` and `limits` are used.
        authenticate: knows clients by their bearer tokens.
        is_serving: whether conversations can be opened, for `/healthz`.

    Raises:
        SettingsError: the files of `tls` are not usable.
    """

    def __init__(
        self,
        conversations: Conversations,
        settings: Settings,
        authenticate: Authenticate = anybody,
        is_serving: Callable[[], bool] = lambda: True,
    ) -> None:
        self._settings = settings
        self._tls = WebTls(settings.tls) if settings.tls else None
        self._app = make_app(conversations, settings, authenticate, is_serving)
        self._server: _Server | None = None
        self._serving: asyncio.Task[None] | None = None
        self.port = 0

    @property
    def url(self) -> str:
        """Address of the page; after `start`."""
        host = self._settings.web.host
        return f"{'https' if self._tls else 'http'}://{f'[{host}]' if ':' in host else host}:{self.port}/"

    @property
    def connections(self) -> int:
        """Connections that are open, those of plain requests among them."""
        return len(self._server.server_state.connections) if self._server else 0

    async def start(self) -> int:
        """Listen; returns the port. Raises SettingsError when the address cannot be had."""
        listener = _listen(self._settings.web.host, self._settings.web.port)
        self.port = listener.getsockname()[1]
        self._server = _Server(self._config())
        self._serving = asyncio.create_task(self._server.serve([listener]), name="web-server")
        await self._server.ready.wait()
        log_event(logger, logging.INFO, "page served", url=self.url)
        return self.port

    async def stop(self) -> None:
        """Close every connection, and listen no more."""
        if self._server is None or self._serving is None:
            return
        self._server.should_exit = True
        await self._serving
        await asyncio.gather(*self._server.server_state.tasks, return_exceptions=True)
        for connection in list(self._server.server_state.connections):
            connection.transport.abort()
        await asyncio.sleep(0)  # for the ends of those to be taken note of

    def _config(self) -> uvicorn.Config:
        tls = self._tls
        return uvicorn.Config(
            self._app,
            http=WebProtocol,
            ws=TalkProtocol,
            ws_max_size=self._settings.limits.max_converse_message_bytes,
            ws_ping_interval=PING_EVERY_S,
            ws_ping_timeout=PONG_WITHIN_S,
            # Audio in base64 is hardly compressed, and each connection would need its own tables.
            ws_per_message_deflate=False,
            lifespan="off",
            # Its lines go where ours go. It would log addresses with all that is in them.
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=_STOP_WITHIN_S,
            ssl_context_factory=(lambda config, default: tls.context) if tls else None,
        )


class _Server(uvicorn.Server):
    """Leaves signals to who owns the process, and tells when it serves."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.ready.set()


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.create_server(address[:2], family=family, backlog=128)
    except OSError as error:
        raise SettingsError(f"web.host, web.port: cannot listen at {host}:{port}: {error.strerror or error}") from error
    bound_buffers(listener)
    listener.setblocking(False)
    return listener
