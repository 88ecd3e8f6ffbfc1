"""The TLS files: what is accepted, what is refused and how, what follows when they change."""

from __future__ import annotations

import datetime
import logging
import traceback

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from taste_grpc.errors import SettingsError
from taste_grpc.server.certificate import read_certificate
from taste_grpc.server.tls import ServerTls, tls_mode
from taste_grpc.settings import TlsSettings
from tests.support.certificates import Authority, Identity, ServerFiles, replace
from tests.support.log_lines import events, lines

DAY = datetime.timedelta(days=1)
NOW = datetime.datetime(2030, 6, 1, 12, tzinfo=datetime.UTC)


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture
def files(authority, tmp_path) -> ServerFiles:
    return ServerFiles(tmp_path, authority.issue("localhost"), authority.pem)


class Clock:
    def __init__(self, now: datetime.datetime = NOW) -> None:
        self.now = now

    def __call__(self) -> datetime.datetime:
        return self.now


def issue(authority: Authority, days: float, *names: str, age_days: float = 0) -> Identity:
    begin = NOW - age_days * DAY
    return authority.issue(*(names or ("localhost",)), not_before=begin, not_after=begin + days * DAY)


def self_signed(key) -> Identity:
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(7).not_valid_before(NOW - DAY).not_valid_after(NOW + 365 * DAY)
    certificate = builder.sign(key, None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256())
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return Identity(certificate.public_bytes(Encoding.PEM), private)


def encrypted(identity: Identity) -> bytes:
    key = load_pem_private_key(identity.key, None)
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret"))


def test_modes(files):
    assert tls_mode(None) == "off"
    assert tls_mode(TlsSettings(**files.settings)) == "mutual"
    assert tls_mode(TlsSettings(**{**files.settings, "client_ca_file": None})) == "on"


def test_what_is_read(authority, tmp_path):
    files = ServerFiles(tmp_path, issue(authority, 90, "taste.example.org", "10.0.0.7"), authority.pem * 2)
    certificate = read_certificate(TlsSettings(**files.settings), NOW)
    assert certificate.hosts == ("taste.example.org", "10.0.0.7")
    assert "trustme" in certificate.subject
    assert (certificate.not_before, certificate.not_after) == (NOW, NOW + 90 * DAY)
    assert (certificate.client_authorities, certificate.narrow_key) == (2, "")
    assert certificate.chain_pem == files.cert.read_bytes()
    assert b"PRIVATE" in certificate.key_pem
    assert "PRIVATE" not in repr(certificate)
    assert "BEGIN" not in repr(certificate)


def broken(name: str, files: ServerFiles, authority: Authority) -> None:
    """Break the files in the way of that name."""
    other = authority.issue("localhost")
    ways = {
        "no certificate": lambda: files.cert.unlink(),
        "no key": lambda: files.key.unlink(),
        "no authorities": lambda: files.client_ca.unlink(),
        "a directory": lambda: (files.cert.unlink(), files.cert.mkdir()),
        "an empty certificate": lambda: replace(files.cert, ""),
        "a damaged certificate": lambda: replace(files.cert, files.cert.read_bytes().replace(b"MII", b"MIJ")),
        "half a certificate": lambda: replace(files.cert, files.cert.read_bytes()[:300]),
        "the key as certificate": lambda: replace(files.cert, files.key.read_bytes()),
        "the certificate as key": lambda: replace(files.key, files.cert.read_bytes()),
        "an empty key": lambda: replace(files.key, ""),
        "an encrypted key": lambda: replace(files.key, encrypted(other)),
        "another key": lambda: replace(files.key, other.key),
        "expired": lambda: files.install(authority.expired("localhost")),
        "not yet valid": lambda: files.install(issue(authority, 500, age_days=-400)),
        "authorities that are none": lambda: replace(files.client_ca, "nothing\n"),
        "expired authorities": lambda: replace(files.client_ca, authority.expired("x").certificate),
        "a weak key": lambda: files.install(self_signed(rsa.generate_private_key(65537, 1024))),
        "a curve nobody knows": lambda: files.install(self_signed(ec.generate_private_key(ec.SECP256K1()))),
        "a DSA key": lambda: files.install(self_signed(dsa.generate_private_key(2048))),
    }
    ways[name]()


REFUSALS = {
    "no certificate": ("tls.cert_file", "server.pem", "No such file"),
    "no key": ("tls.key_file", "server.key", "No such file"),
    "no authorities": ("tls.client_ca_file", "clients.pem", "No such file"),
    "a directory": ("tls.cert_file", "server.pem", "Is a directory"),
    "an empty certificate": ("tls.cert_file", "server.pem", "no certificate"),
    "a damaged certificate": ("tls.cert_file", "server.pem", "no certificate in PEM form, or a damaged one"),
    "half a certificate": ("tls.cert_file", "server.pem", "no certificate"),
    "the key as certificate": ("tls.cert_file", "server.pem", "no certificate"),
    "the certificate as key": ("tls.key_file", "server.key", "no private key"),
    "an empty key": ("tls.key_file", "server.key", "no private key"),
    "an encrypted key": ("tls.key_file", "server.key", "encrypted"),
    "another key": ("tls.key_file", "server.key", "not the key of the certificate in"),
    "expired": ("tls.cert_file", "server.pem", "expired at 2021-01-01 00:00 UTC"),
    "not yet valid": ("tls.cert_file", "server.pem", "valid from 2031-07-06 12:00 UTC only"),
    "authorities that are none": ("tls.client_ca_file", "clients.pem", "no certificate"),
    "expired authorities": ("tls.client_ca_file", "clients.pem", "expired at 2021-01-01"),
    "a weak key": ("tls.key_file", "server.key", "2,048 bits"),
    "a curve nobody knows": ("tls.key_file", "server.key", "P-256"),
    "a DSA key": ("tls.key_file", "server.key", "P-256"),
}


@pytest.mark.parametrize("way", REFUSALS)
def test_a_file_that_is_not_usable(way, files, authority, caplog):
    """One line that names the setting and the file; a running server keeps what it has, and logs that line once."""
    caplog.set_level(logging.DEBUG)
    files.install(issue(authority, 365))
    clock = Clock()
    tls = ServerTls(TlsSettings(**files.settings), clock)
    before = tls.certificate
    caplog.clear()

    broken(way, files, authority)
    with pytest.raises(SettingsError) as refused:
        read_certificate(TlsSettings(**files.settings), NOW)
    message = str(refused.value)
    setting, file, problem = REFUSALS[way]
    assert message.startswith(f"{setting}: ")
    assert file in message
    assert problem in message
    assert "\n" not in message

    assert [tls.refresh() for _ in range(3)] == [False] * 3
    assert tls.certificate is before
    (line,) = events(caplog)
    assert (line["level"], line["event"], line["why"]) == ("ERROR", "changed TLS files not taken", message)
    shown = "\n".join(lines(caplog)) + "".join(traceback.format_exception(refused.value))
    assert "PRIVATE" not in shown
    assert not any(key_line in shown for key_line in before.key_pem.decode().splitlines()[1:-1])

    if files.cert.is_dir():
        files.cert.rmdir()
    replace(files.client_ca, authority.pem)
    files.install(issue(authority, 300))
    assert tls.refresh(), "once the files are good again, they are taken"
    assert tls.certificate.not_after == NOW + 300 * DAY


@pytest.mark.parametrize(
    ("make_key", "kind"),
    [
        (lambda: rsa.generate_private_key(65537, 2048), ""),
        (lambda: ec.generate_private_key(ec.SECP256R1()), ""),
        (lambda: ec.generate_private_key(ec.SECP384R1()), ""),
        (lambda: ec.generate_private_key(ec.SECP521R1()), "P-521"),
        (ed25519.Ed25519PrivateKey.generate, "Ed25519"),
    ],
)
def test_keys_that_some_clients_cannot_verify_are_warned_of(make_key, kind, tmp_path, caplog):
    files = ServerFiles(tmp_path, self_signed(make_key()))
    ServerTls(TlsSettings(**files.settings), Clock())
    assert [line["kind"] for line in events(caplog, above=logging.INFO)] == ([kind] if kind else [])


def test_a_new_certificate_is_taken_and_logged_once(files, authority, caplog):
    caplog.set_level(logging.DEBUG)
    files.install(issue(authority, 90))
    tls = ServerTls(TlsSettings(**files.settings), Clock())
    assert not tls.refresh()
    files.install(issue(authority, 80, "other.example.org"))
    assert [tls.refresh() for _ in range(3)] == [True, False, False]
    first, second = events(caplog)
    assert (first["event"], first["hosts"], first["client_authorities"]) == ("certificate", "localhost", 1)
    assert (second["event"], second["hosts"]) == ("TLS files read again", "other.example.org")
    assert second["not_after"] == (NOW + 80 * DAY).isoformat()
    replace(files.client_ca, authority.pem * 2)
    assert tls.refresh()
    assert events(caplog)[-1]["client_authorities"] == 2


def test_files_written_again_with_what_they_had_change_nothing(files, caplog):
    tls = ServerTls(TlsSettings(**files.settings))
    replace(files.cert, files.cert.read_bytes())
    caplog.clear()
    assert not tls.refresh()
    assert lines(caplog) == []


def test_a_key_that_comes_after_its_certificate(files, authority, caplog):
    """Between the two moments the old pair stays."""
    files.install(issue(authority, 90))
    tls = ServerTls(TlsSettings(**files.settings), Clock())
    before, new = tls.certificate, issue(authority, 80)
    replace(files.cert, new.certificate)
    assert not tls.refresh()
    assert tls.certificate is before
    replace(files.key, new.key)
    assert tls.refresh()
    assert tls.certificate.key_pem == new.key
    assert len(events(caplog, above=logging.INFO)) == 1


def test_links_are_followed(authority, tmp_path):
    """The way Kubernetes replaces the files of a secret: each is a link through a link, which is exchanged."""
    for number in (1, 2):
        (tmp_path / f"v{number}").mkdir()
        ServerFiles(tmp_path / f"v{number}", issue(authority, 90 - number))
    (tmp_path / "data").symlink_to("v1")
    cert, key = (tmp_path / name for name in ("server.pem", "server.key"))
    for path in (cert, key):
        path.symlink_to(f"data/{path.name}")
    tls = ServerTls(TlsSettings(cert_file=cert, key_file=key), Clock())
    (tmp_path / "next").symlink_to("v2")
    (tmp_path / "next").replace(tmp_path / "data")
    assert tls.refresh()
    assert tls.certificate.not_after == NOW + 88 * DAY


def test_a_certificate_of_tomorrow_is_taken_tomorrow(files, authority, caplog):
    clock = Clock()
    files.install(issue(authority, 90))
    tls = ServerTls(TlsSettings(**files.settings), clock)
    files.install(issue(authority, 90, age_days=-1))
    assert not tls.refresh()
    clock.now += DAY / 2
    assert not tls.refresh()
    assert len(events(caplog, above=logging.INFO)) == 1
    clock.now += DAY
    assert tls.refresh(), "though the files have not changed since"
    assert tls.certificate.not_after == NOW + 91 * DAY


@pytest.mark.parametrize(("days", "soon_at_days"), [(365, 351), (90, 76), (1, 2 / 3)])
def test_the_end_of_a_certificate_is_announced(days, soon_at_days, files, authority, caplog):
    clock = Clock()
    files.install(issue(authority, days))
    tls = ServerTls(TlsSettings(**files.settings), clock)
    minute = DAY / 1440
    for moment, expected in (
        (soon_at_days * DAY - minute, []),
        (soon_at_days * DAY + minute, [("WARNING", "the certificate expires soon")]),
        (days * DAY - minute, []),
        (days * DAY + minute, [("ERROR", "the certificate has expired")]),
        (days * DAY + 2 * minute, []),
    ):
        clock.now = NOW + moment
        caplog.clear()
        tls.refresh()
        tls.refresh()
        assert [(line["level"], line["event"]) for line in events(caplog)] == expected
    files.install(issue(authority, 2 * days))
    tls.refresh()
    clock.now = NOW + 2 * days * DAY
    tls.refresh()
    assert events(caplog)[-1]["event"] == "the certificate has expired", "it begins anew with the next one"


def test_a_certificate_that_expires_soon_is_warned_of_at_the_start(files, authority, caplog):
    files.install(issue(authority, 90, age_days=80))
    ServerTls(TlsSettings(**files.settings), Clock())
    (line,) = events(caplog, above=logging.INFO)
    assert (line["event"], line["not_after"]) == ("the certificate expires soon", (NOW + 10 * DAY).isoformat())
