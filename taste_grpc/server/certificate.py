"""The certificate a server shows, with its key and the authorities of its clients: read from PEM files and checked."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from taste_grpc.errors import SettingsError
from taste_grpc.settings import TlsSettings

_MIN_RSA_BITS = 2_048
_UNREADABLE = (ValueError, UnsupportedAlgorithm, x509.InvalidVersion)


class NotYetValidError(SettingsError):
    """The certificate becomes valid later, at `since`."""

    def __init__(self, message: str, since: datetime) -> None:
        super().__init__(message)
        self.since = since


@dataclass(frozen=True, slots=True)
class ServerCertificate:
    """What a server shows its clients, and whom of them it believes.

    Attributes:
        key_pem: private key.
        chain_pem: the server's certificate and those that lead from it to its authority.
        client_ca_pem: authorities of clients; None when clients need no certificate.
        client_authorities: how many they are.
        subject: whom the certificate names, RFC 4514.
        hosts: the names and addresses it is good for.
        not_before, not_after: from when to when it is valid.
        narrow_key: kind of its key when some clients cannot verify that kind; empty otherwise.
    """

    key_pem: bytes = field(repr=False)
    chain_pem: bytes = field(repr=False)
    client_ca_pem: bytes | None = field(repr=False)
    client_authorities: int
    subject: str
    hosts: tuple[str, ...]
    not_before: datetime
    not_after: datetime
    narrow_key: str


def read_certificate(settings: TlsSettings, now: datetime) -> ServerCertificate:
    """The files of `settings`, as they are now.

    Raises:
        SettingsError: a file is not there, cannot be read or is not what it should be; the certificate and
            the key do not belong together; a certificate has expired. One line with the setting and the file.
        NotYetValidError: all is well but the time.
    """
    chain_pem = _content("tls.cert_file", settings.cert_file)
    key_pem = _content("tls.key_file", settings.key_file)
    leaf = _certificates("tls.cert_file", settings.cert_file, chain_pem)[0]
    narrow_key = _check_key(settings, leaf, key_pem)
    client_ca_pem, client_authorities = None, 0
    if settings.client_ca_file is not None:
        client_ca_pem = _content("tls.client_ca_file", settings.client_ca_file)
        client_authorities = _check_authorities(settings.client_ca_file, client_ca_pem, now)
    not_before, not_after = leaf.not_valid_before_utc, leaf.not_valid_after_utc
    if not_after <= now:
        raise _unusable("tls.cert_file", settings.cert_file, f"the certificate expired at {_minute(not_after)}")
    if not_before > now:
        message = f"tls.cert_file: {settings.cert_file}: the certificate is valid from {_minute(not_before)} only"
        raise NotYetValidError(message, not_before)
    return ServerCertificate(
        key_pem=key_pem,
        chain_pem=chain_pem,
        client_ca_pem=client_ca_pem,
        client_authorities=client_authorities,
        subject=leaf.subject.rfc4514_string(),
        hosts=_hosts(leaf),
        not_before=not_before,
        not_after=not_after,
        narrow_key=narrow_key,
    )


def _unusable(setting: str, path: Path, problem: str) -> SettingsError:
    return SettingsError(f"{setting}: {path}: {problem}")


def _content(setting: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise _unusable(setting, path, error.strerror or type(error).__name__) from None


def _certificates(setting: str, path: Path, pem: bytes) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(pem)
    except _UNREADABLE:
        raise _unusable(setting, path, "holds no certificate in PEM form, or a damaged one") from None


def _check_key(settings: TlsSettings, leaf: x509.Certificate, pem: bytes) -> str:
    """Check that the key is of a usable kind, and the certificate's. Returns its kind when few clients know it."""
    try:
        key = load_pem_private_key(pem, password=None)
    except TypeError:
        problem = "the key is encrypted; `openssl pkey -in FILE -out FILE` removes the password"
        raise _unusable("tls.key_file", settings.key_file, problem) from None
    except _UNREADABLE:
        problem = "holds no private key in PEM form, or a damaged one"
        raise _unusable("tls.key_file", settings.key_file, problem) from None
    try:
        public = leaf.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    except _UNREADABLE:
        raise _unusable("tls.cert_file", settings.cert_file, "the kind of its key is not supported") from None
    if key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) != public:
        raise _unusable("tls.key_file", settings.key_file, f"is not the key of the certificate in {settings.cert_file}")
    if isinstance(key, rsa.RSAPrivateKey) and key.key_size >= _MIN_RSA_BITS:
        return ""
    if isinstance(key, ec.EllipticCurvePrivateKey):
        if isinstance(key.curve, ec.SECP256R1 | ec.SECP384R1):
            return ""
        if isinstance(key.curve, ec.SECP521R1):
            return "P-521"
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return "Ed25519"
    problem = f"clients accept no such key; RSA with {_MIN_RSA_BITS:,} bits or more, P-256 and P-384 work everywhere"
    raise _unusable("tls.key_file", settings.key_file, problem)


def _check_authorities(path: Path, pem: bytes, now: datetime) -> int:
    """How many authorities there are."""
    authorities = _certificates("tls.client_ca_file", path, pem)
    last = max(authority.not_valid_after_utc for authority in authorities)
    if last <= now:
        raise _unusable("tls.client_ca_file", path, f"the last of its certificates expired at {_minute(last)}")
    return len(authorities)


def _hosts(leaf: x509.Certificate) -> tuple[str, ...]:
    try:
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return ()
    addresses = (str(address) for address in names.get_values_for_type(x509.IPAddress))
    return (*names.get_values_for_type(x509.DNSName), *addresses)


def _minute(time: datetime) -> str:
    return time.astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")
