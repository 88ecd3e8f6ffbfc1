"""Certificates of tests."""

from __future__ import annotations

import datetime
from dataclasses import dataclass

import grpc
import trustme

from taste_grpc_client import Tls

_LAST_YEAR = datetime.datetime(2021, 1, 1, tzinfo=datetime.UTC)
_LONG_AGO = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)


@dataclass(frozen=True)
class Identity:
    """A certificate and its key, in PEM."""

    cert: bytes
    key: bytes


class Authority:
    """Issues certificates."""

    def __init__(self) -> None:
        self._ca = trustme.CA()
        self.pem = self._ca.cert_pem.bytes()

    def issue(self, *names: str, expired: bool = False) -> Identity:
        times = {"not_before": _LONG_AGO, "not_after": _LAST_YEAR} if expired else {}
        issued = self._ca.issue_cert(*names, **times)
        return Identity(b"".join(blob.bytes() for blob in issued.cert_chain_pems), issued.private_key_pem.bytes())

    def server(self, identity: Identity, *, clients: Authority | None = None) -> grpc.ServerCredentials:
        return grpc.ssl_server_credentials(
            [(identity.key, identity.cert)],
            root_certificates=clients.pem if clients else None,
            require_client_auth=clients is not None,
        )

    def trusted(self, identity: Identity | None = None, server_name: str | None = None) -> Tls:
        """How a client trusts this authority, and says who it is."""
        pair = (identity.cert, identity.key) if identity else (None, None)
        return Tls(self.pem, *pair, server_name)
