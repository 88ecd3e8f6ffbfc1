"""What gRPC's words about a failed connection mean."""

from __future__ import annotations

import re
import socket
from contextlib import suppress
from dataclasses import dataclass

import grpc

_VERIFY = re.compile(r"certificate_verify_failed: ([^:]*)", re.IGNORECASE)
_LOOPBACK_S = 0.1


@dataclass(frozen=True, slots=True)
class Hint:
    """A sentence that helps, maybe an empty one; `about_tls` when that is what the two sides disagree on."""

    text: str = ""
    about_tls: bool = False


def hint(code: grpc.StatusCode, details: str, target: str, *, tls: bool) -> Hint:
    """What may be wrong. `tls`: whether the client speaks TLS."""
    if code is grpc.StatusCode.DEADLINE_EXCEEDED and "Deadline Exceeded" in details:
        return Hint("the call took longer than its timeout_s")
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return Hint(f"what answers at {target} does not offer this method")
    if code is not grpc.StatusCode.UNAVAILABLE:
        return Hint()
    words = details.lower()
    return _of_handshake(details, words, target, tls) or _of_address(words, target, tls) or Hint()


def _of_handshake(details: str, words: str, target: str, tls: bool) -> Hint | None:
    if found := _VERIFY.search(details):
        why = found[1].strip()
        return Hint(f"the certificate of {target} is not accepted: {why}; Tls(ca_file=...) names authorities", True)
    if "hostname verification" in words:
        return Hint(f"the certificate of {target} is for another name; Tls(server_name=...) says which", True)
    if "wrong_version_number" in words:
        return Hint(f"{target} does not speak TLS", True)
    if "security handshaker" in words:
        return Hint("the files of `tls` cannot be used", True)
    if "failed to connect" in words and ("socket closed" in words or "connection reset" in words):
        # Not only TLS makes a server do so.
        wish = "a client certificate, Tls(cert_file=..., key_file=...)" if tls else "TLS, tls=True or Tls(...)"
        return Hint(f"{target} hung up at once; perhaps it wants {wish}")
    return None


def _of_address(words: str, target: str, tls: bool) -> Hint | None:
    if "connection refused" in words and _is_listened_at(target):
        if tls:
            return Hint(f"the handshake with {target} failed; 127.0.0.1 or [::1] in place of localhost tells why")
        return Hint(f"{target} hung up at once; perhaps it wants TLS, tls=True or Tls(...)")
    if "connection refused" in words or "no such file or directory" in words:
        return Hint(f"nothing listens at {target}; is the server running?")
    if "errors resolving" in words or "name resolution" in words:
        return Hint(f"the host of {target} is not known")
    return None


def _is_listened_at(target: str) -> bool:
    """Whether a `localhost:port` takes connections. gRPC tells about one of its two addresses, maybe the other one."""
    host, _, port = target.removeprefix("dns:").removeprefix("///").rpartition(":")
    if host.casefold() != "localhost" or not port.isdecimal():
        return False
    for address in ("127.0.0.1", "::1"):
        with suppress(OSError, OverflowError), socket.create_connection((address, int(port)), _LOOPBACK_S):
            return True
    return False
