"""uvicorn's connections, with an answer to clients that send what no server can take, or nothing at all."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.exceptions import PayloadTooBig
from websockets.frames import CloseCode, Frame, Opcode

from taste_grpc.dialogue.events import ErrorCode
from taste_grpc.gateway.protocol import error_text

WRITE_BUFFER_BYTES = 16 << 10
"""What may be written and not yet on its way; more makes `send` wait. Audio waits where it can be taken back."""

SOCKET_BUFFER_BYTES = 64 << 10
"""What the system may hold in each direction of a connection. Left to itself that would be minutes of audio."""

REQUEST_WITHIN_S = 10.0
"""Time from connecting to the end of a request's headers."""

LINGER_S = 10.0
"""Time for a client to take what was written last."""

STOP_LINGER_S = 1.0
"""The same when the server stops."""

_LINGER_TLS_S = 1.0
"""The same where a connection has no end of one side that the client could see."""


def bound_buffers(listener: socket.socket) -> None:
    """Let the connections of `listener` hold no more than `SOCKET_BUFFER_BYTES` back."""
    for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
        listener.setsockopt(socket.SOL_SOCKET, option, SOCKET_BUFFER_BYTES)


class WebProtocol(H11Protocol):
    """HTTP on a connection that must not stay open without a request."""

    _waiting: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a request."""
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        """Wait for the rest of a request's headers, no longer than for the whole."""
        super().data_received(data)
        is_upgraded = self.transport.get_protocol() is not self
        is_answered = getattr(self.cycle, "response_complete", True)  # there is none before the first request
        if is_answered and not is_upgraded:
            self._wait()
        else:
            self._wait_no_more()

    def shutdown(self) -> None:
        """End this connection, without waiting for who does not read."""
        super().shutdown()
        self.loop.call_later(STOP_LINGER_S, self.transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        """Nobody is left to wait for."""
        self._wait_no_more()
        super().connection_lost(exc)

    def _wait(self) -> None:
        if self._waiting is None:
            self._waiting = self.loop.call_later(REQUEST_WITHIN_S, self.transport.abort)

    def _wait_no_more(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None


class TalkProtocol(WebSocketsSansIOProtocol):
    """WebSocket on a connection that holds little back, tells what was wrong before it is closed, and gets closed."""

    _is_broken = False
    _cut: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Bound what is held back."""
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=WRITE_BUFFER_BYTES)

    def data_received(self, data: bytes) -> None:
        """Take what has come; after a fault nothing counts any more."""
        if not self._is_broken:
            super().data_received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        """Nobody is left to be cut off."""
        if self._cut is not None:
            self._cut.cancel()
        super().connection_lost(exc)

    def send_receive_event_to_app(self) -> None:
        """Hand a whole message on."""
        if self.curr_msg_data_type == "text" and not _is_utf8(self.frames):
            self.frames = []
            self.conn.fail(CloseCode.INVALID_DATA, "text that is no UTF-8")
            self.handle_parser_exception()
        else:
            super().send_receive_event_to_app()

    def handle_parser_exception(self) -> None:
        """Say what was wrong, close, and read on: a connection closed on unread data takes back what was said."""
        if self._is_broken:
            return
        self._is_broken = True
        closed = self.conn.close_sent
        if closed is None:  # before the handshake was answered
            self.transport.abort()
            return
        if not self.close_sent:
            text = error_text(ErrorCode.PROTOCOL_VIOLATION, self._fault(closed.reason))
            self.transport.write(Frame(Opcode.TEXT, text.encode()).serialize(mask=False))
            self.transport.write(b"".join(self.conn.data_to_send()))
            self.close_sent = True
            self.queue.put_nowait({"type": "websocket.disconnect", "code": closed.code, "reason": closed.reason})
        self._part()

    def _part(self) -> None:
        """End our side; the other side is given time to end its own."""
        linger_s = LINGER_S
        if self.transport.can_write_eof():
            self.transport.write_eof()
        else:
            linger_s = _LINGER_TLS_S
        if self.close_timer is None:
            self.close_timer = self.loop.call_later(linger_s, self.transport.close)
        self._cut_soon()
        self.transport.resume_reading()

    def shutdown(self) -> None:
        """End this connection, without waiting for who does not read."""
        super().shutdown()
        self.loop.call_later(STOP_LINGER_S, self.transport.abort)

    async def send(self, message: Any) -> None:
        """Send for the application, which learns of a fault as if the client had gone."""
        try:
            await super().send(message)
        except RuntimeError:
            if not self._is_broken:
                raise
            raise ClientDisconnected from None
        if message["type"] == "websocket.http.response.body" and self.close_sent:
            # uvicorn would log an error, as if nothing had been answered, for everybody who is refused.
            self.handshake_complete = True

    def keepalive_timeout(self) -> None:
        """Cut off a client that does not answer: it would not read what it is told either."""
        super().keepalive_timeout()
        self.transport.abort()

    async def run_asgi(self) -> None:
        """Run the application; after it the client has some time to read, and is then cut off."""
        await super().run_asgi()
        if not self.disconnected:
            self._cut_soon()

    def _cut_soon(self) -> None:
        if self._cut is None:
            self._cut = self.loop.call_later(LINGER_S, self.transport.abort)

    def _fault(self, reason: str) -> str:
        if isinstance(self.conn.parser_exc, PayloadTooBig):
            return f"the message has more than {self.config.ws_max_size} bytes"
        return f"the message breaks the WebSocket protocol: {reason}" if reason else "the message is broken"


def _is_utf8(frames: list[bytes]) -> bool:
    try:
        b"".join(frames).decode()
    except UnicodeDecodeError:
        return False
    return True
