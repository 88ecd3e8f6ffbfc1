"""Transport security whose files may be replaced while the server runs."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from enum import IntEnum
from typing import Literal

import grpc

from taste_grpc.errors import SettingsError
from taste_grpc.file_stamp import file_stamps
from taste_grpc.observability import log_event
from taste_grpc.server.certificate import NotYetValidError, ServerCertificate, read_certificate
from taste_grpc.settings import TlsSettings

logger = logging.getLogger(__name__)

TlsMode = Literal["off", "on", "mutual"]
"""Plain text; the server has a certificate; clients have one too."""

_SOON = timedelta(days=14)


class _Expiry(IntEnum):
    FAR, SOON, OVER = range(3)


def tls_mode(settings: TlsSettings | None) -> TlsMode:
    """What `settings` ask for."""
    if settings is None:
        return "off"
    return "on" if settings.client_ca_file is None else "mutual"


class ServerTls:
    """The server's certificate, read again before a handshake when one of its files has changed.

    Files that have become unusable change nothing: the last good certificate stays, and one line
    is logged for each change. Connections that are open keep the certificate they began with.

    Args:
        settings: where the files are.
        now: the time, for tests.

    Raises:
        SettingsError: the files are not usable now.
    """

    def __init__(self, settings: TlsSettings, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._settings = settings
        self._now = now
        self._lock = threading.Lock()  # handshakes run on threads of gRPC
        self._stamps = self._stamps_now()
        self._pending_since: datetime | None = None
        self._expiry = _Expiry.FAR
        self.certificate = read_certificate(settings, now())
        self._announce("certificate")

    def credentials(self) -> grpc.ServerCredentials:
        """Credentials of a secure port that follow the files."""
        return grpc.dynamic_ssl_server_credentials(
            _configuration(self.certificate),
            self._changed_configuration,  # type: ignore[arg-type]  # None, for no change, is missing in the stubs
            require_client_authentication=self._settings.client_ca_file is not None,
        )

    def refresh(self) -> bool:
        """Read the files if they have changed. Whether there is a new certificate; on any thread."""
        with self._lock:
            renewed = self._read_if_changed()
            self._watch_expiry()
            return renewed

    def _changed_configuration(self) -> grpc.ServerCertificateConfiguration | None:
        return _configuration(self.certificate) if self.refresh() else None

    def _stamps_now(self) -> object:
        return file_stamps(self._settings.cert_file, self._settings.key_file, self._settings.client_ca_file)

    def _read_if_changed(self) -> bool:
        stamps = self._stamps_now()
        is_due = self._pending_since is not None and self._now() >= self._pending_since
        if stamps == self._stamps and not is_due:
            return False
        self._stamps, self._pending_since = stamps, None
        try:
            certificate = read_certificate(self._settings, self._now())
        except SettingsError as error:
            if isinstance(error, NotYetValidError):
                self._pending_since = error.since
            kept = self.certificate.not_after.isoformat()
            log_event(logger, logging.ERROR, "changed TLS files not taken", why=str(error), kept_until=kept)
            return False
        if certificate == self.certificate:
            return False
        self.certificate = certificate
        self._expiry = _Expiry.FAR
        self._announce("TLS files read again")
        return True

    def _announce(self, event: str) -> None:
        certificate = self.certificate
        log_event(
            logger,
            logging.INFO,
            event,
            subject=certificate.subject,
            hosts=", ".join(certificate.hosts),
            not_after=certificate.not_after.isoformat(),
            client_authorities=certificate.client_authorities,
        )
        if certificate.narrow_key:
            log_event(
                logger,
                logging.WARNING,
                "clients in Python, C++ and others on gRPC's C core cannot verify keys of this kind",
                kind=certificate.narrow_key,
            )
        self._watch_expiry()

    def _watch_expiry(self) -> None:
        """Log once when the certificate is about to expire, and once when it has."""
        remaining = self.certificate.not_after - self._now()
        # Certificates that live for hours are renewed within hours.
        soon = min(_SOON, (self.certificate.not_after - self.certificate.not_before) / 3)
        expiry = _Expiry.OVER if remaining <= timedelta(0) else _Expiry.SOON if remaining <= soon else _Expiry.FAR
        if expiry <= self._expiry:
            return
        self._expiry = expiry
        level = logging.ERROR if expiry is _Expiry.OVER else logging.WARNING
        event = "the certificate has expired" if expiry is _Expiry.OVER else "the certificate expires soon"
        log_event(logger, level, event, file=self._settings.cert_file, not_after=self.certificate.not_after.isoformat())


def _configuration(certificate: ServerCertificate) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration(
        [(certificate.key_pem, certificate.chain_pem)], root_certificates=certificate.client_ca_pem
    )
