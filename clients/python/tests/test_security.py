"""TLS and tokens."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest
from both_clients import MakeClient
from certificates import Authority
from fake_server import FakeServicer, start_server

from taste_grpc_client import Retry, TasteClient, TasteClientError, Tls, TlsError, UnavailableError, text_segment
from taste_grpc_client.security import is_local

TOKEN = "s3cret-Token~0+/=!"
NO_WAIT = Retry(max_attempts=2, initial_backoff_s=0.001)


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture
def serve(servicer: FakeServicer) -> Iterator[Callable[..., str]]:
    """Starts a server with these credentials; returns its target, by name."""
    with ExitStack() as stack:

        def start(credentials: grpc.ServerCredentials | None = None) -> str:
            return f"localhost:{start_server(servicer, stack, credentials=credentials)}"

        yield start


def sent_tokens(servicer: FakeServicer) -> list[Any]:
    return [metadata.get("authorization") for metadata in servicer.metadata]


def call_all(client: Any) -> None:
    client.model_info()
    client.tokenize(b"RIFF....WAVE", text="yes")
    list(client.generate([text_segment("hi")], seed=1))
    list(client.detokenize([text_segment("a")], speaker=[1.0]))
    list(client.speak([text_segment("hi")], speaker=[1.0], seed=1))


def test_every_call_carries_the_token(make_client: MakeClient, target: str, servicer: FakeServicer) -> None:
    call_all(make_client(target, token=TOKEN))
    assert sent_tokens(servicer) == [f"Bearer {TOKEN}"] * 6
    servicer.metadata.clear()
    call_all(make_client(target))
    assert sent_tokens(servicer) == [None] * 6


def test_repeated_attempts_carry_it_too(make_client: MakeClient, target: str, servicer: FakeServicer) -> None:
    servicer.refusals.times = 1
    call_all(make_client(target, token=TOKEN))
    assert len(servicer.metadata) == 10
    assert set(sent_tokens(servicer)) == {f"Bearer {TOKEN}"}


@pytest.mark.parametrize(
    ("target", "local"),
    [
        ("localhost", True),
        ("LocalHost:50051", True),
        ("127.0.0.1:50051", True),
        ("127.8.9.1", True),
        ("[::1]:50051", True),
        ("::1", True),
        ("dns:localhost:50051", True),
        ("dns:///127.0.0.1:50051", True),
        ("ipv4:127.0.0.1:50051", True),
        ("ipv4:///127.0.0.1:50051", True),
        ("ipv6:[::1]:50051", True),
        ("unix:/run/taste.sock", True),
        ("unix:///run/taste.sock", True),
        ("unix-abstract:taste", True),
        ("example.org:50051", False),
        ("localhost.example.org:50051", False),
        ("127.0.0.1.example.org", False),
        ("localhost@example.org", False),
        ("0.0.0.0:50051", False),
        ("10.0.0.1:50051", False),
        ("[fe80::1]:50051", False),
        ("dns://8.8.8.8/localhost:50051", False),
        ("dns:///example.org", False),
        ("ipv4:127.0.0.1:1,10.0.0.1:1", False),
        ("https://localhost", False),
        ("xds:///localhost", False),
        ("vsock:1:1", False),
        ("unixy:/run/taste.sock", False),
        ("", False),
    ],
)
def test_a_token_does_not_leave_the_machine_in_plain_text(make_client: MakeClient, target: str, local: bool) -> None:
    assert is_local(target) is local
    if local:
        return
    with pytest.raises(ValueError, match=r"token: it would travel to .* in plain text") as refused:
        make_client(target, token=TOKEN)
    assert TOKEN not in str(refused.value)


def test_it_does_when_that_is_wanted_or_encrypted(make_client: MakeClient) -> None:
    make_client("example.org:50051", token=TOKEN, allow_plaintext_token=True)
    make_client("example.org:50051", token=TOKEN, tls=True)
    make_client("example.org:50051")


def test_a_given_channel_may_be_plain_text(target: str, servicer: FakeServicer) -> None:
    with grpc.insecure_channel(target) as channel:
        with pytest.raises(ValueError, match="token: a given channel may be plain text"):
            TasteClient(channel=channel, token=TOKEN)
        with pytest.raises(ValueError, match="tls: a channel was given"):
            TasteClient(channel=channel, tls=True)
        TasteClient(channel=channel, token=TOKEN, allow_plaintext_token=True).model_info()
    assert sent_tokens(servicer) == [f"Bearer {TOKEN}"]


@pytest.mark.parametrize("token", ["", "two words", "line\n", "tab\t", "nul\0", "ümlaut", " padded "])
def test_what_no_header_can_carry_is_refused_without_showing_it(make_client: MakeClient, token: str) -> None:
    with pytest.raises(ValueError, match=r"^token: printable ASCII characters without blanks were expected$"):
        make_client("localhost:1", token=token)


def test_the_token_is_never_shown(make_client: MakeClient, target: str, caplog: pytest.LogCaptureFixture) -> None:
    shown = []
    with caplog.at_level(logging.DEBUG):
        client = make_client(target, token=TOKEN, retry=None)
        shown += [repr(client), str(client)]
        for fails in (
            lambda: client.tokenize(b"RIFF....WAVE", text="bad"),
            lambda: list(client.detokenize([text_segment("bad")], speaker=[1.0])),
            lambda: list(client.speak([text_segment("hi")], speaker=[1.0], conversation_format="fails")),
            lambda: make_client("localhost:1", token=TOKEN, retry=None).model_info(),
        ):
            with pytest.raises(TasteClientError) as failed:
                fails()
            shown += [str(failed.value), repr(failed.value), repr(vars(failed.value))]
            assert failed.value.__cause__ is None
            assert failed.value.__suppress_context__ or failed.value.__context__ is None
    shown += [record.getMessage() for record in caplog.records]
    assert len(shown) > 10
    assert not [text for text in shown if TOKEN in text]


def test_a_key_is_not_shown() -> None:
    assert "PRIVATE" not in repr(Tls(cert_file=b"-----BEGIN CERTIFICATE-----", key_file=b"-----BEGIN PRIVATE KEY-----"))


@pytest.mark.parametrize("from_files", [True, False])
def test_tls_with_and_without_a_certificate_of_the_client(
    make_client: MakeClient, serve: Callable[..., str], authority: Authority, tmp_path: Path, from_files: bool
) -> None:
    server, own = authority.issue("localhost"), authority.issue("client")
    blobs = {"ca_file": authority.pem, "cert_file": own.cert, "key_file": own.key}
    files: dict[str, Any] = dict(blobs)
    if from_files:
        for name, blob in blobs.items():
            (tmp_path / name).write_bytes(blob)
        files = {"ca_file": str(tmp_path / "ca_file"), **{name: tmp_path / name for name in ("cert_file", "key_file")}}
    open_to_all = serve(authority.server(server))
    call_all(make_client(open_to_all, tls=Tls(files["ca_file"]), token=TOKEN))
    known_only = serve(authority.server(server, clients=authority))
    call_all(make_client(known_only, tls=Tls(**files)))


def test_a_server_may_have_another_name(
    make_client: MakeClient, serve: Callable[..., str], authority: Authority
) -> None:
    target = serve(authority.server(authority.issue("speech.example.org")))
    assert make_client(target, tls=authority.trusted(server_name="speech.example.org")).model_info().vq_dim == 2
    with pytest.raises(TlsError, match=rf"the certificate of {target} is for another name; Tls\(server_name"):
        make_client(target, tls=authority.trusted()).model_info()


def test_certificates_that_are_not_accepted(
    make_client: MakeClient, serve: Callable[..., str], authority: Authority
) -> None:
    valid = serve(authority.server(authority.issue("localhost")))
    with pytest.raises(TlsError, match="is not accepted: unable to get local issuer certificate"):
        make_client(valid, tls=Authority().trusted()).model_info()
    with pytest.raises(TlsError, match=r"is not accepted: .*issuer"):
        make_client(valid, tls=True).model_info()
    expired = serve(authority.server(authority.issue("localhost", expired=True)))
    with pytest.raises(TlsError, match="is not accepted: certificate has expired"):
        make_client(expired, tls=authority.trusted()).model_info()


def test_one_side_without_tls(
    make_client: MakeClient, serve: Callable[..., str], authority: Authority, servicer: FakeServicer
) -> None:
    with pytest.raises(TlsError, match=r"localhost:.* does not speak TLS"):
        make_client(serve(), tls=authority.trusted(), token=TOKEN).model_info()
    encrypted = serve(authority.server(authority.issue("localhost")))
    with pytest.raises(UnavailableError, match="hung up at once; perhaps it wants TLS"):
        make_client(encrypted, retry=NO_WAIT).model_info()
    known_only = serve(authority.server(authority.issue("localhost"), clients=authority))
    with pytest.raises(UnavailableError, match="perhaps it wants a client certificate"):
        make_client(known_only, tls=authority.trusted(), retry=NO_WAIT).model_info()
    assert servicer.attempts == []


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("127.0.0.1:1", "nothing listens at 127.0.0.1:1; is the server running?"),
        ("unix:/nowhere/taste.sock", "nothing listens at unix:/nowhere/taste.sock"),
        ("nowhere.invalid:50051", "the host of nowhere.invalid:50051 is not known"),
    ],
)
def test_servers_that_are_not_there(make_client: MakeClient, target: str, words: str) -> None:
    with pytest.raises(UnavailableError) as absent:
        make_client(target, retry=None).model_info(timeout_s=30)
    assert words in absent.value.message


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        TasteClient(tls=Tls(tmp_path / "absent.pem"))
    (tmp_path / "empty.pem").touch()
    with pytest.raises(ValueError, match=r"tls\.ca_file: .*empty\.pem: no PEM file"):
        TasteClient(tls=Tls(tmp_path / "empty.pem"))
    with pytest.raises(ValueError, match=r"tls\.key_file: the bytes given: no PEM file"):
        TasteClient(tls=Tls(cert_file=b"-----BEGIN CERTIFICATE-----", key_file=b"key"))
    with pytest.raises(ValueError, match="cert_file and key_file go together"):
        Tls(cert_file="client.pem")
    broken = Tls(b"-----BEGIN CERTIFICATE-----\nnonsense\n-----END CERTIFICATE-----\n")
    with TasteClient("localhost:1", tls=broken, retry=None) as client, pytest.raises(UnavailableError):
        client.model_info()


def test_a_proxy_is_not_asked_for_this_machine(
    make_client: MakeClient, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "https_proxy", "grpc_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert make_client(target, retry=None).model_info().vq_dim == 2
