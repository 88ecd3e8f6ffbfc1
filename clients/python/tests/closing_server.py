"""Just enough of HTTP/2 to close a connection in the middle of a call that the server says it has not seen."""

from __future__ import annotations

import socket
import struct
import threading
from collections import defaultdict
from typing import BinaryIO, Self

from taste.v1.taste_pb2 import DetokenizeRequest

_DATA, _HEADERS, _SETTINGS, _PING, _GOAWAY, _WINDOW_UPDATE = 0, 1, 4, 6, 7, 8
_END_STREAM = _ACK = 1
_END_HEADERS = 4
_PREFACE_BYTES = 24
_WINDOW = 1 << 30


def _frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def _header(name: bytes, value: bytes) -> bytes:
    return b"\x00" + bytes([len(name)]) + name + bytes([len(value)]) + value


_GREETING = _frame(_SETTINGS, 0, 0, struct.pack(">HI", 4, _WINDOW)) + _frame(
    _WINDOW_UPDATE, 0, 0, struct.pack(">I", _WINDOW - 65_535 - 1)
)
# :status 200, and a gRPC status of OK, which is all of the answer.
_OK = b"\x88" + _header(b"content-type", b"application/grpc") + _header(b"grpc-status", b"0")


class ClosingServer:
    """The first connection is told to go away after `after` pieces of data; the next ones hear a call to its end.

    Attributes:
        heard: the requests of calls that were heard to the end.
    """

    def __init__(self, after: int) -> None:
        self.heard: list[list[DetokenizeRequest]] = []
        self._after = after
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self._socket.getsockname()[1]}"

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(self, *error: object) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._threads[0].join(10)
        for connection in self._open:
            connection.close()
        for thread in self._threads:
            thread.join(10)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            self._open.append(connection)
            self._threads.append(threading.Thread(target=self._serve, args=(connection, len(self._open) == 1)))
            self._threads[-1].start()

    def _serve(self, connection: socket.socket, closes: bool) -> None:
        try:
            with connection, connection.makefile("rb") as received:
                received.read(_PREFACE_BYTES)
                connection.sendall(_GREETING)
                self._serve_frames(connection, received, closes)
        except OSError:
            return

    def _serve_frames(self, connection: socket.socket, received: BinaryIO, closes: bool) -> None:
        data: defaultdict[int, bytes] = defaultdict(bytes)
        pieces, leaves = 0, False
        while len(head := received.read(9)) == 9:
            kind, flags, stream = head[3], head[4], int.from_bytes(head[5:], "big")
            payload = received.read(int.from_bytes(head[:3], "big"))
            if kind in (_SETTINGS, _PING) and not flags & _ACK:
                connection.sendall(_frame(kind, _ACK, 0, payload if kind == _PING else b""))
            if kind == _DATA:
                data[stream] += payload
                pieces += 1
            if kind not in (_HEADERS, _DATA) or leaves:
                continue
            if closes and pieces >= self._after:
                connection.sendall(_frame(_GOAWAY, 0, 0, bytes(8)))  # nothing was seen, no error
                leaves = True
            elif not closes and flags & _END_STREAM:
                self.heard.append(_messages(data[stream]))
                connection.sendall(_frame(_HEADERS, _END_STREAM | _END_HEADERS, stream, _OK))


def _messages(data: bytes) -> list[DetokenizeRequest]:
    found = []
    while data:
        size = int.from_bytes(data[1:5], "big")
        found.append(DetokenizeRequest.FromString(data[5 : 5 + size]))
        data = data[5 + size :]
    return found
