"""Who may listen in, and who calls: TLS and bearer tokens."""

from __future__ import annotations

import ipaddress
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import grpc

PemSource: TypeAlias = "str | os.PathLike[str] | bytes"
"""A PEM file: its path, or its contents as bytes."""

_BEGIN = b"-----BEGIN "


@dataclass(frozen=True)
class Tls:
    """How to know the server, and be known to it. Each file is a path, or the contents of a PEM file as bytes.

    Attributes:
        ca_file: authorities that may have signed the server's certificate; None takes the ones gRPC ships.
        cert_file: the client's own certificate, for servers that ask for one.
        key_file: the private key of `cert_file`, not encrypted.
        server_name: the name the server's certificate is for, when that is not the host of the target.
    """

    ca_file: PemSource | None = None
    cert_file: PemSource | None = None
    key_file: PemSource | None = field(default=None, repr=False)
    server_name: str | None = None

    def __post_init__(self) -> None:
        if (self.cert_file is None) != (self.key_file is None):
            raise ValueError("tls: cert_file and key_file go together; only one of them was given")

    def credentials(self) -> grpc.ChannelCredentials:
        """What gRPC opens a channel with. Reads the files.

        Raises:
            OSError: a file cannot be read.
            ValueError: a file is no PEM file.
        """
        return grpc.ssl_channel_credentials(
            root_certificates=_read_pem("ca_file", self.ca_file),
            private_key=_read_pem("key_file", self.key_file),
            certificate_chain=_read_pem("cert_file", self.cert_file),
        )


def _read_pem(name: str, source: PemSource | None) -> bytes | None:
    if source is None:
        return None
    data = source if isinstance(source, bytes) else Path(source).read_bytes()
    if _BEGIN not in data:
        where = "the bytes given" if isinstance(source, bytes) else os.fspath(source)
        raise ValueError(f"tls.{name}: {where}: no PEM file")
    return data


def token_metadata(token: str) -> tuple[str, str]:
    """The metadata entry that carries a bearer token.

    Raises:
        ValueError: it is empty, or has characters a header cannot carry. The message does not tell which token.
    """
    # Checked here, because what gRPC says about metadata it cannot send contains that metadata.
    if not token or not all("!" <= character <= "~" for character in token):
        raise ValueError("token: printable ASCII characters without blanks were expected")
    return ("authorization", f"Bearer {token}")


def is_local(target: str) -> bool:
    """Whether what is sent to `target` stays on this machine: a loopback address, `localhost`, or a Unix socket."""
    scheme, separator, rest = target.partition(":")
    if separator and scheme in ("unix", "unix-abstract"):
        return True
    if separator and scheme in ("ipv4", "ipv6"):
        return all(_is_loopback(_host(address)) for address in rest.removeprefix("///").split(","))
    # `dns://authority/name` asks a name server of the caller's choice, which may call anything localhost.
    name = target.removeprefix("dns:///") if target.startswith("dns:///") else target.removeprefix("dns:")
    return "/" not in name and _is_loopback(_host(name))


def _host(address: str) -> str:
    if address.startswith("["):
        return address[1:].partition("]")[0]
    # More than one colon: an IPv6 address without a port.
    return address if address.count(":") > 1 else address.partition(":")[0]


def _is_loopback(host: str) -> bool:
    if host.casefold() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
