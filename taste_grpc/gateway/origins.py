"""Which pages may talk to this server.

Browsers let any page open a WebSocket to any server, this machine's own included, and tell the server only where the
page came from. A page elsewhere must not be able to use the server of whoever looks at it. Nor is it enough that the
page seems to come from here: a name that its owner lets point at this machine would pass for that. So only names that
nobody else can own count as this server's own, and those it was told of.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from urllib.parse import SplitResult, urlsplit

_DEFAULT_PORTS = {"http": 80, "https": 443}


class Origins:
    """Knows this server's own names.

    Args:
        configured: origins such as `https://talk.example.com`, beside `localhost` and plain addresses.
    """

    def __init__(self, configured: Iterable[str] = ()) -> None:
        parsed = [_parsed(origin) for origin in configured]
        self._authorities = {_authority(parts, parts.scheme) for parts in parsed if parts}
        self._hostnames = {parts.hostname for parts in parsed if parts}

    def owns(self, host: str | None) -> bool:
        """Whether a request with this `Host` header was meant for this server."""
        parts = _parsed(f"//{host}") if host else None
        return parts is not None and (_is_nobodys(parts.hostname or "") or parts.hostname in self._hostnames)

    def admits(self, origin: str | None, host: str | None) -> bool:
        """Whether a page of `origin` may open a WebSocket that was asked for at `host`.

        Programs that are no browsers send no `Origin`; no page can make them connect.
        """
        if origin is None:
            return True
        parts = _parsed(origin)
        if parts is None or parts.scheme not in _DEFAULT_PORTS:
            return False
        authority = _authority(parts, parts.scheme)
        asked_for = _parsed(f"//{host}") if host else None
        if asked_for is None:
            return False
        is_own = self.owns(host) and authority[1:] == _authority(asked_for, parts.scheme)[1:]
        return is_own or authority in self._authorities


def _parsed(url: str) -> SplitResult | None:
    try:
        parts = urlsplit(url)
        return parts if parts.hostname and (parts.port is None or parts.port > 0) else None
    except ValueError:
        return None


def _authority(parts: SplitResult, scheme: str) -> tuple[str, str, int]:
    return scheme, parts.hostname or "", parts.port or _DEFAULT_PORTS.get(scheme, 0)


def _is_nobodys(hostname: str) -> bool:
    """Whether no stranger can have this name point anywhere: an address, or one that is always this machine."""
    try:
        ipaddress.ip_address(hostname)
    except ValueError:
        return hostname == "localhost" or hostname.endswith(".localhost")
    return True
