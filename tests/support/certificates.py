"""Certificates of tests, as files."""

from __future__ import annotations

import datetime
import os
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import trustme

LONG_AGO = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
LAST_YEAR = datetime.datetime(2021, 1, 1, tzinfo=datetime.UTC)
LOCAL = [("grpc.use_local_subchannel_pool", 1)]
"""Each channel has a connection of its own."""


@dataclass(frozen=True)
class Identity:
    """A certificate and its key."""

    certificate: bytes
    key: bytes

    @property
    def der(self) -> bytes:
        return ssl.PEM_cert_to_DER_cert(self.certificate.decode().split("-----END", 1)[0] + "-----END CERTIFICATE-----")


class Authority:
    """Issues certificates."""

    def __init__(self) -> None:
        self._ca = trustme.CA()
        self.pem = self._ca.cert_pem.bytes()

    def issue(self, *names: str, **options: Any) -> Identity:
        issued = self._ca.issue_cert(*names, **options)
        return Identity(b"".join(blob.bytes() for blob in issued.cert_chain_pems), issued.private_key_pem.bytes())

    def expired(self, *names: str) -> Identity:
        return self.issue(*names, not_before=LONG_AGO, not_after=LAST_YEAR)

    def channel(self, port: int, client: Identity | None = None) -> grpc.aio.Channel:
        """A channel that trusts this authority."""
        pair = (client.key, client.certificate) if client else (None, None)
        return grpc.aio.secure_channel(f"localhost:{port}", grpc.ssl_channel_credentials(self.pem, *pair), LOCAL)


class ServerFiles:
    """The files a server reads, each replaced in one go."""

    def __init__(self, folder: Path, identity: Identity, client_ca: bytes | None = None) -> None:
        self.cert, self.key, self.client_ca = (folder / name for name in ("server.pem", "server.key", "clients.pem"))
        self._with_clients = client_ca is not None
        self.install(identity)
        if client_ca is not None:
            replace(self.client_ca, client_ca)

    def install(self, identity: Identity) -> None:
        replace(self.key, identity.key)
        replace(self.cert, identity.certificate)

    @property
    def settings(self) -> dict[str, Path]:
        """For the setting `tls`."""
        settings = {"cert_file": self.cert, "key_file": self.key}
        return settings | ({"client_ca_file": self.client_ca} if self._with_clients else {})


def replace(path: Path, content: bytes | str) -> None:
    scratch = path.with_name(f".{path.name}.new")
    scratch.write_bytes(content.encode() if isinstance(content, str) else content)
    os.replace(scratch, path)
