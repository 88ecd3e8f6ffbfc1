"""How both clients connect."""

from __future__ import annotations

DEFAULT_TARGET = "localhost:50051"
"""Where `taste-grpc serve` listens unless told otherwise."""

MAX_MESSAGE_BYTES = 16 * 1024 * 1024
"""The largest message a client accepts; the server's own limit for requests is the same."""

CHANNEL_OPTIONS: tuple[tuple[str, int], ...] = (
    # A short window: the server's audio waits on the server while the reader is slow, so that a cancel or an
    # interruption is not followed by a minute of speech that is under way already.
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", 16384),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
)
"""Options of every channel a client opens."""
