"""The port at which Prometheus asks for figures."""

from __future__ import annotations

import asyncio
from threading import Thread
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, start_http_server

from taste_grpc.errors import SettingsError


class MetricsPort:
    """Serves a registry over HTTP, on a thread of its own.

    Raises SettingsError when the address cannot be had.
    """

    def __init__(self, registry: CollectorRegistry, host: str, port: int) -> None:
        self._server: WSGIServer
        self._thread: Thread
        try:
            self._server, self._thread = start_http_server(port, host, registry)
        except OSError as error:
            raise SettingsError(f"metrics_port: cannot listen at {host}:{port}: {error.strerror}") from error

    @property
    def port(self) -> int:
        """That is listened at."""
        return self._server.server_port

    async def aclose(self) -> None:
        """Stop serving."""
        await asyncio.to_thread(self._server.shutdown)
        self._server.server_close()
        await asyncio.to_thread(self._thread.join)
