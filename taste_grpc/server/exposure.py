"""Whether strangers can reach a server, and what they could do or read there."""

from __future__ import annotations

import ipaddress

from taste_grpc.server.tls import TlsMode


def exposures(host: str, mode: TlsMode, *, tokens: bool) -> list[str]:
    """What whoever starts a server that listens at `host` should know; nothing to say about loopback addresses."""
    if is_loopback(host):
        return []
    warnings = []
    if mode == "off" and tokens:
        warnings.append("tokens travel in plain text to an address that others can reach: set tls.cert_file")
    if mode != "mutual" and not tokens:
        warnings.append("whoever reaches this address may call: set tokens, tokens_file or tls.client_ca_file")
    return warnings


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`. Names other than `localhost` count as reachable."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.rstrip(".").lower() == "localhost"
