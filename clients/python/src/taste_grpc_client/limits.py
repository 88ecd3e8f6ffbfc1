"""What a server accepts unless its settings say otherwise; GetModelInfo tells."""

from __future__ import annotations

MAX_MESSAGE_BYTES = 16 * 1024 * 1024
"""The largest message a client accepts; the server's own limit for requests is the same."""
