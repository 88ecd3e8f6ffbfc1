"""The web application: the page, its files, and the WebSocket."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect
from websockets.frames import CloseCode

from taste_grpc.errors import UnauthenticatedError
from taste_grpc.gateway.conversations import Authenticate, Conversations, anybody
from taste_grpc.gateway.origins import Origins
from taste_grpc.gateway.protocol import OVERLOADED, error_text, protocol_text
from taste_grpc.gateway.talk import Talk
from taste_grpc.settings import Settings

STATIC = Path(__file__).parent / "static"

HEALTH_PATH = "/healthz"

_BEARER = re.compile(r"bearer +([\x21-\x7e]+) *", re.IGNORECASE)

_HEADERS = {
    # Nothing but our own files, no script or style inside the page, and nobody puts the page into theirs.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; worker-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Permissions-Policy": "microphone=(self), camera=(), geolocation=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}


def make_app(
    conversations: Conversations,
    settings: Settings,
    authenticate: Authenticate = anybody,
    is_serving: Callable[[], bool] = lambda: True,
) -> Starlette:
    """The application.

    It answers `/` (the page), `/static/…`, `/ws` (conversations) and `/healthz` (200, or 503 while not serving).
    Whoever serves it bounds the size of WebSocket messages.

    Args:
        conversations: where conversations are opened.
        settings: `limits` and `web` of them are used.
        authenticate: knows clients by their bearer tokens, which they send as `Authorization: Bearer TOKEN` with the
            request, or, as browsers cannot do that, in `access_token` of `start`. The address is no place for one: it
            ends up in logs.
        is_serving: whether conversations can be opened.
    """
    door = Door(conversations, settings, authenticate)

    async def page(request: Request) -> Response:
        return FileResponse(STATIC / "index.html", media_type="text/html")

    async def health(request: Request) -> Response:
        return PlainTextResponse("ok\n") if is_serving() else PlainTextResponse("not serving\n", 503)

    return Starlette(
        routes=[
            Route("/", page),
            Route(HEALTH_PATH, health),
            WebSocketRoute("/ws", door.enter),
            Mount("/static", StaticFiles(directory=STATIC)),
        ],
        middleware=[Middleware(_Shield, origins=Origins(settings.web.origins))],
    )


class Door:
    """Lets WebSockets in, as many as there may be."""

    def __init__(self, conversations: Conversations, settings: Settings, authenticate: Authenticate) -> None:
        self._conversations = conversations
        self._settings = settings
        self._authenticate = authenticate
        self.inside = 0

    async def enter(self, websocket: WebSocket) -> None:
        """Talk with who comes in, until they are gone."""
        try:
            client = self._known_client(websocket.headers.getlist("authorization"))
        except UnauthenticatedError as error:
            refusal = PlainTextResponse(f"{error}\n", 401, {"WWW-Authenticate": "Bearer"})
            await websocket.send_denial_response(refusal)
            return
        if self.inside >= self._settings.web.max_connections:
            await _turn_away(websocket)
            return
        self.inside += 1
        try:
            await Talk(websocket, self._conversations, self._settings.limits, self._authenticate, client).run()
        finally:
            self.inside -= 1

    def _known_client(self, headers: Sequence[str]) -> str | None:
        """Name of the client that shows its token with the request; None when it shows none, and may do so later."""
        if not headers:
            return None
        match = _BEARER.fullmatch(headers[0]) if len(headers) == 1 else None
        if match is None:
            raise UnauthenticatedError("the authorization header is not of the form `Bearer TOKEN`")
        return self._authenticate(match[1])


async def _turn_away(websocket: WebSocket) -> None:
    """Say that there is no room, in a way that a page can read: of a refused request it learns nothing."""
    with contextlib.suppress(WebSocketDisconnect):
        await websocket.accept()
        await websocket.send_text(protocol_text())
        await websocket.send_text(error_text(OVERLOADED, "all places are taken; try again in a moment"))
        await websocket.close(CloseCode.TRY_AGAIN_LATER)


class _Shield:
    """Keeps strangers' pages out, and tells browsers how to treat ours."""

    def __init__(self, app: ASGIApp, origins: Origins) -> None:
        self._app = app
        self._origins = origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        origin, host = headers.get("origin"), headers.get("host")
        if scope["type"] == "websocket" and not self._origins.admits(origin, host):
            text = "pages from there may not talk to this server; the setting web.origins names those that may\n"
            await WebSocket(scope, receive, send).send_denial_response(PlainTextResponse(text, 403))
        elif scope["type"] == "http":
            await self._answer(scope, receive, _with_headers(send), is_ours=self._origins.owns(host))
        else:
            await self._app(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send, *, is_ours: bool) -> None:
        if is_ours or scope["path"] == HEALTH_PATH:
            await self._app(scope, receive, send)
            return
        text = "this server does not go by that name; if it should, name its origin in the setting web.origins\n"
        await PlainTextResponse(text, 421)(scope, receive, send)


def _with_headers(send: Send) -> Send:
    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message).update(_HEADERS)
        await send(message)

    return send_with_headers
