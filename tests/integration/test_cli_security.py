"""Commands and a server that asks for TLS, certificates and tokens."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from taste_grpc.own_server import ServerProcess
from tests.support.certificates import Authority, ServerFiles
from tests.support.command_line import SERVE_TINY, here, run, write_recording

TOKEN = "alice-0123456789"
STRANGER = "stranger-0123456789"


@dataclass(frozen=True)
class Guarded:
    """A server that lets in who has a token and, when it is mutual, a certificate."""

    address: str
    authority: Authority
    folder: Path

    @property
    def reach(self) -> tuple[str, ...]:
        """Options that get as far as the server."""
        return ("--server", self.address, "--tls-ca", str(self.folder / "ca.pem"))


@contextmanager
def guarded(folder: Path, *, mutual: bool) -> Iterator[Guarded]:
    authority = Authority()
    files = ServerFiles(folder, authority.issue("localhost"), authority.pem if mutual else None)
    (folder / "ca.pem").write_bytes(authority.pem)
    (folder / "tokens.toml").write_text(f'alice = "{TOKEN}"\n')
    flags = [*SERVE_TINY, "--tls-cert", str(files.cert), "--tls-key", str(files.key)]
    flags += ["--tokens-file", str(folder / "tokens.toml"), *(["--tls-client-ca", str(files.client_ca)] * mutual)]
    server = ServerProcess(flags)
    try:
        port = server.wait_for("listening", 60)["address"].rpartition(":")[2]
        server.wait_for("serving", 100)
        yield Guarded(f"localhost:{port}", authority, folder)
    finally:
        assert server.stop() == 0


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    with guarded(tmp_path_factory.mktemp("tls"), mutual=False) as server:
        yield server


@pytest.fixture(scope="module")
def mutual(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    with guarded(tmp_path_factory.mktemp("mtls"), mutual=True) as server:
        yield server


def test_each_way_to_give_a_token_gets_in(server: Guarded, tmp_path: Path):
    secret = tmp_path / "token"
    secret.write_text(f"{TOKEN}\n")
    for options, environment in (
        (("--token", TOKEN), {}),
        (("--token-file", str(secret)), {}),
        ((), {"TASTE_CLIENT_TOKEN": TOKEN}),
        (("--token", TOKEN), {"TASTE_CLIENT_TOKEN": STRANGER}),
        (("--token-file", str(secret)), {"TASTE_CLIENT_TOKEN": STRANGER}),
    ):
        done = here("info", *server.reach, *options, "--json", **environment)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["model_id"] == "taste-tiny"


@pytest.mark.parametrize("options", [(), ("--token", STRANGER)], ids=["no token", "wrong token"])
def test_strangers_are_told_so(server: Guarded, options: tuple[str, ...]):
    done = here("info", *server.reach, *options)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("taste-grpc: UNAUTHENTICATED: ")
    assert STRANGER not in done.stderr
    told = json.loads(here("info", *server.reach, *options, "--json").stderr)["error"]
    assert (told["code"], told["reason"]) == ("UNAUTHENTICATED", "ERROR_REASON_UNAUTHENTICATED")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((), "perhaps it wants TLS, --tls or --tls-ca ("),  # plain text to a TLS port
        (("--tls",), "; --tls-ca names authorities"),  # an authority the system does not know
        (("--tls-ca", "{ca}", "--tls-server-name", "elsewhere"), "; --tls-server-name says which"),
    ],
)
def test_a_connection_that_cannot_be_trusted_is_not_made(server: Guarded, options: tuple[str, ...], words: str):
    filled = [option.format(ca=server.folder / "ca.pem") for option in options]
    # one address: of two, the error tells of the one that failed last
    address = server.address.replace("localhost", "127.0.0.1")
    done = here("info", "--server", address, *filled, "--token", TOKEN)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("taste-grpc: UNAVAILABLE: ")
    assert words in done.stderr
    assert "Tls(" not in done.stderr
    assert TOKEN not in done.stderr


def test_a_client_shows_its_certificate(mutual: Guarded, tmp_path: Path):
    for name, authority in (("known", mutual.authority), ("unknown", Authority())):
        identity = authority.issue(f"{name}@example.org")
        (tmp_path / f"{name}.pem").write_bytes(identity.certificate)
        (tmp_path / f"{name}.key").write_bytes(identity.key)
    shown = {
        name: ("--tls-cert", tmp_path / f"{name}.pem", "--tls-key", tmp_path / f"{name}.key")
        for name in ("known", "unknown")
    }
    for options, status in ((shown["known"], 0), (shown["unknown"], 1), ((), 1)):
        done = here("info", *mutual.reach, *options, "--token", TOKEN)
        assert done.returncode == status, done.stderr
        assert bool(done.stderr) == bool(status)
        assert "Tls(" not in done.stderr


def test_all_commands_work_with_tls_and_token(mutual: Guarded, tmp_path: Path):
    identity = mutual.authority.issue("me@example.org")
    (tmp_path / "me.pem").write_bytes(identity.certificate)
    (tmp_path / "me.key").write_bytes(identity.key)
    reach = (*mutual.reach, "--tls-cert", "me.pem", "--tls-key", "me.key")
    write_recording(tmp_path / "q.wav")
    for arguments in (
        ("tokenize", "q.wav", "--text", "how are you", "-o", "q.taste.json"),
        ("generate", "--from", "q.taste.json", "--extra-words", "3", "-o", "a.taste.json"),
        ("detokenize", "a.taste.json", "-o", "a.wav"),
        ("talk", "q.wav", "--text", "how are you", "--extra-words", "3", "-o", "b.wav"),
        ("info",),
    ):
        done = run(*arguments, *reach, cwd=tmp_path, TASTE_CLIENT_TOKEN=TOKEN)
        assert done.returncode == 0, done.stderr
    assert min((tmp_path / name).stat().st_size for name in ("a.wav", "b.wav")) > 44


def test_a_server_of_ones_own_is_private_whatever_the_settings_say(tmp_path: Path):
    """It needs neither the token nor the certificate that a server is to ask for here."""
    settings = {"TASTE_TLS__CERT_FILE": "c.pem", "TASTE_TLS__KEY_FILE": "k.pem", "TASTE_TOKENS_FILE": "t.toml"}
    config = tmp_path / "taste.toml"
    config.write_text(f'host = "0.0.0.0"\nport = 1\ntokens = {{alice = "{TOKEN}"}}\n')
    arguments = ("info", *SERVE_TINY[:2], "--json")
    done = run(*arguments, **settings, TASTE_CONFIG=str(config), TASTE_THREADS="1")
    assert done.returncode == 0, done.stderr
