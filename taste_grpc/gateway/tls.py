"""TLS for the page: the certificate of the server, read again when its files change."""

from __future__ import annotations

import logging
import ssl

from taste_grpc.errors import SettingsError
from taste_grpc.file_stamp import FileStamp, file_stamps
from taste_grpc.observability import log_event
from taste_grpc.settings import TlsSettings

logger = logging.getLogger(__name__)


class WebTls:
    """Has `context` show the certificate that the files have when a browser connects.

    Files that have become unusable change nothing: the last good certificate stays, and one line is logged for each
    change. With `client_ca_file` a browser needs a certificate too.

    Raises:
        SettingsError: the files are not usable.
    """

    def __init__(self, tls: TlsSettings) -> None:
        self._tls = tls
        self._stamps = self._read_stamps()
        try:
            self.context = self._current = self._load()
        except (OSError, ssl.SSLError) as error:
            raise SettingsError(f"tls: the files cannot be used for the page: {_why(error)}") from error
        self.context.sni_callback = self._use_current

    def _use_current(self, connection: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
        """Called in each handshake, on the event loop."""
        stamps = self._read_stamps()
        if stamps != self._stamps:
            self._stamps = stamps
            try:
                self._current = self._load()
            except (OSError, ssl.SSLError) as error:
                log_event(logger, logging.ERROR, "changed certificate not taken by the page", why=_why(error))
            else:
                log_event(logger, logging.INFO, "certificate of the page read again", file=self._tls.cert_file)
        connection.context = self._current

    def _load(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self._tls.cert_file, self._tls.key_file, password=_no_password)
        if self._tls.client_ca_file is not None:
            context.load_verify_locations(self._tls.client_ca_file)
            context.verify_mode = ssl.CERT_REQUIRED
        return context

    def _read_stamps(self) -> tuple[FileStamp | None, ...]:
        return file_stamps(self._tls.cert_file, self._tls.key_file, self._tls.client_ca_file)


def _no_password() -> str:
    raise ssl.SSLError("the key is encrypted")


def _why(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or getattr(error, "reason", None) or error)
