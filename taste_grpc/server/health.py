"""`grpc.health.v1`: whether the server, and each service, takes calls."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

_Status = health_pb2.HealthCheckResponse


class HealthService(health_pb2_grpc.HealthServicer):
    """Check and Watch over the names given; all NOT_SERVING at first.

    A watcher that does not read holds up nobody: changes are awaited, not delivered, and a
    watcher that falls behind sees the latest status only.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._statuses: dict[str, Any] = dict.fromkeys(names, _Status.NOT_SERVING)
        self._changed = asyncio.Event()

    def set(self, names: Iterable[str], *, serving: bool) -> None:
        """Change the status of services. To be called on the event loop."""
        for name in names:
            self._statuses[name] = _Status.SERVING if serving else _Status.NOT_SERVING
        self._changed.set()
        self._changed = asyncio.Event()

    async def Check(self, request: Any, context: Any) -> Any:
        """Status of one service now; NOT_FOUND for names that are none."""
        if request.service not in self._statuses:
            await context.abort(grpc.StatusCode.NOT_FOUND, "there is no such service")
        return _Status(status=self._statuses[request.service])

    async def Watch(self, request: Any, context: Any) -> None:
        """Status of one service now and at each change, until the caller ends the call."""
        last = None
        while True:
            changed = self._changed
            status = self._statuses.get(request.service, _Status.SERVICE_UNKNOWN)
            if status != last:
                await context.write(_Status(status=status))
                last = status
            if self._changed is changed:
                await changed.wait()
