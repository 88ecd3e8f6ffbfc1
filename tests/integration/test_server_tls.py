"""TLS over the wire: who can connect, what the others see, files that change, and what the log says of it all."""

from __future__ import annotations

import asyncio
import datetime
import json
import logging
import os
import re
import signal
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from taste.v1 import taste_pb2, taste_pb2_grpc
from taste_grpc.errors import SettingsError
from taste_grpc.server import TasteServer
from taste_grpc.settings import load_settings
from tests.checkpoints import TINY
from tests.support import messages
from tests.support.certificates import LOCAL, Authority, Identity, ServerFiles, replace
from tests.support.details import read_failure
from tests.support.live_server import live_server, until
from tests.support.log_lines import events, lines
from tests.support.recording_engine import RecordingEngine

TOKEN, WRONG = "alice-0123456789", "stranger-0123456"
HUNG_UP = re.compile("Socket closed|Connection reset|Broken pipe")


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture(scope="module")
def others() -> Authority:
    return Authority()


@pytest.fixture(autouse=True)
def _log_everything(caplog):
    caplog.set_level(logging.INFO)


def mutual(tmp_path, authority: Authority) -> ServerFiles:
    return ServerFiles(tmp_path, authority.issue("localhost"), authority.pem)


async def info(channel: grpc.aio.Channel, **more) -> str:
    stub = taste_pb2_grpc.TasteServiceStub(channel)
    return (await stub.GetModelInfo(taste_pb2.GetModelInfoRequest(), timeout=20, **more)).model_id


async def refusal(channel: grpc.aio.Channel, **more) -> grpc.aio.AioRpcError:
    async with channel:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await info(channel, **more)
    return refused.value


async def shown_certificate(port: int, authority: Authority) -> bytes:
    """What the server shows who connects now."""
    context = ssl.create_default_context(cadata=authority.pem.decode())
    context.set_alpn_protocols(["h2"])
    _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname="localhost")
    try:
        return writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    finally:
        writer.close()


def since_listening(caplog) -> list[str]:
    """What was logged once the server listened, without what it says of its model."""
    logged = lines(caplog)
    start = next(index for index, line in enumerate(logged) if " listening " in line)
    model = (" loading model ", " serving ", " parts of this model ")
    return [line for line in logged[start + 1 :] if not any(words in line for words in model)]


async def test_tls_from_files(authority, tmp_path, caplog):
    files = ServerFiles(tmp_path, authority.issue("localhost"))
    async with live_server(RecordingEngine(), tls=files.settings) as live:
        assert live.server.tls == "on"
        async with authority.channel(live.server.port) as channel:
            assert await info(channel) == "recording"
            stub = taste_pb2_grpc.TasteServiceStub(channel)
            call = stub.Detokenize(iter(messages.detokenize_requests(3)))
            assert len([response async for response in call]) == 3
            health = health_pb2_grpc.HealthStub(channel)
            answer = await health.Check(health_pb2.HealthCheckRequest())
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        certificate, listening = events(caplog, "certificate", "listening")
    assert listening["tls"] == "on"
    assert certificate["hosts"] == "localhost"
    assert datetime.datetime.fromisoformat(certificate["not_after"]) > datetime.datetime.now(datetime.UTC)
    assert [line["client"] for line in events(caplog, "call") if "client" in line] == []
    assert "PRIVATE KEY" not in "\n".join(lines(caplog))


async def test_mutual_tls_names_the_client_in_the_log(authority, tmp_path, caplog):
    files = mutual(tmp_path, authority)
    async with live_server(RecordingEngine(), tls=files.settings, host="0.0.0.0") as live:
        assert live.server.tls == "mutual"
        for client in (authority.issue("alice@example.org"), authority.issue("bob.example.org", common_name="Bob")):
            async with authority.channel(live.server.port, client) as channel:
                assert await info(channel) == "recording"
    assert events(caplog, "listening")[0]["tls"] == "mutual"
    assert [line["client"] for line in events(caplog, "call")] == ["alice@example.org", "bob.example.org"]
    assert not [line for line in events(caplog, above=logging.INFO) if "address" in line], "who gets in is known"


async def test_tokens_go_with_tls(authority, tmp_path, caplog):
    """With both, the token's holder is who calls."""
    files = mutual(tmp_path, authority)
    client = authority.issue("host.example.org")
    async with live_server(RecordingEngine(), tls=files.settings, tokens={"alice": TOKEN}) as live:
        async with authority.channel(live.server.port, client) as channel:
            assert await info(channel, metadata=(("authorization", f"Bearer {TOKEN}"),)) == "recording"
        refused = await refusal(
            authority.channel(live.server.port, client), metadata=(("authorization", f"Bearer {WRONG}"),)
        )
    assert read_failure(refused).code is grpc.StatusCode.UNAUTHENTICATED
    assert [line["client"] for line in events(caplog, "call")] == ["alice", "host.example.org"]
    assert WRONG not in "\n".join(lines(caplog))


REFUSED_BY_CLIENTS = {
    "plain text to a TLS port": (
        lambda port, authority, others: grpc.aio.insecure_channel(f"localhost:{port}", LOCAL),
        HUNG_UP,
    ),
    "an authority the client does not know": (
        lambda port, authority, others: others.channel(port),
        re.compile("CERTIFICATE_VERIFY_FAILED"),
    ),
    "another name": (
        lambda port, authority, others: grpc.aio.secure_channel(
            f"127.0.0.1:{port}", grpc.ssl_channel_credentials(authority.pem), LOCAL
        ),
        re.compile("Hostname Verification Check failed"),
    ),
}


@pytest.mark.parametrize("how", REFUSED_BY_CLIENTS)
async def test_connections_that_come_to_nothing(how, authority, others, tmp_path, caplog):
    connect, reason = REFUSED_BY_CLIENTS[how]
    files = ServerFiles(tmp_path, authority.issue("localhost"))
    async with live_server(RecordingEngine(), tls=files.settings) as live:
        refused = await refusal(connect(live.server.port, authority, others))
        assert refused.code() is grpc.StatusCode.UNAVAILABLE
        assert reason.search(refused.details())
        assert since_listening(caplog) == []
        async with authority.channel(live.server.port) as channel:
            assert await info(channel) == "recording"


async def test_tls_to_a_plain_text_port(authority, caplog):
    async with live_server(RecordingEngine()) as live:
        refused = await refusal(authority.channel(live.server.port))
        assert refused.code() is grpc.StatusCode.UNAVAILABLE
        assert "WRONG_VERSION_NUMBER" in refused.details()
        assert since_listening(caplog) == []
        assert await info(live.channel) == "recording"


@pytest.mark.parametrize("who", ["nobody", "expired", "unknown"])
async def test_clients_without_a_good_certificate(who, authority, others, tmp_path, caplog):
    """gRPC's core hangs up without saying why."""
    clients = {"nobody": None, "expired": authority.expired("a@b"), "unknown": others.issue("a@b")}
    files = mutual(tmp_path, authority)
    async with live_server(RecordingEngine(), tls=files.settings) as live:
        refused = await refusal(authority.channel(live.server.port, clients[who]))
        assert refused.code() is grpc.StatusCode.UNAVAILABLE
        assert HUNG_UP.search(refused.details())
        assert since_listening(caplog) == []
        assert live.engine.events == {"start": 1}
        async with authority.channel(live.server.port, authority.issue("a@b")) as channel:
            assert await info(channel) == "recording"


async def test_a_certificate_that_expires_while_the_server_runs(authority, tmp_path, caplog):
    now = datetime.datetime.now(datetime.UTC)
    end = now.replace(microsecond=0) + datetime.timedelta(seconds=3)
    files = ServerFiles(tmp_path, authority.issue("localhost", not_before=now - datetime.timedelta(1), not_after=end))
    async with live_server(RecordingEngine(), tls=files.settings) as live:
        async with authority.channel(live.server.port) as channel:
            assert await info(channel) == "recording"
            await until(lambda: datetime.datetime.now(datetime.UTC) > end + datetime.timedelta(seconds=1))
            assert await info(channel) == "recording", "a connection that is there stays"
        for _ in range(2):
            refused = await refusal(authority.channel(live.server.port))
            assert refused.code() is grpc.StatusCode.UNAVAILABLE
            assert "certificate has expired" in refused.details()
        warned = [(line["level"], line["event"]) for line in events(caplog, above=logging.INFO) if "file" in line]
        assert warned == [("WARNING", "the certificate expires soon"), ("ERROR", "the certificate has expired")]
        files.install(authority.issue("localhost"))
        async with authority.channel(live.server.port) as channel:
            assert await info(channel) == "recording"


async def test_a_new_certificate_is_shown_without_a_restart(authority, tmp_path, caplog):
    first, second = authority.issue("localhost"), authority.issue("localhost")
    files = ServerFiles(tmp_path, first)
    engine = RecordingEngine()
    async with live_server(engine, tls=files.settings) as live, authority.channel(live.server.port) as channel:
        assert await shown_certificate(live.server.port, authority) == first.der
        engine.held.clear()
        call = taste_pb2_grpc.TasteServiceStub(channel).Generate(messages.generate_request())
        running = asyncio.ensure_future(call.read())
        await until(lambda: engine.events["generate"] == 1)
        files.install(second)
        assert await shown_certificate(live.server.port, authority) == second.der
        engine.held.set()
        assert (await running).index == 0, "calls under way are not disturbed"
        assert await shown_certificate(live.server.port, authority) == second.der
    renewed = events(caplog, "TLS files read again")
    assert [line["hosts"] for line in renewed] == ["localhost"]


async def test_a_broken_change_keeps_the_certificate(authority, tmp_path, caplog):
    first, second = authority.issue("localhost"), authority.issue("localhost")
    files = ServerFiles(tmp_path, first)
    async with live_server(RecordingEngine(), tls=files.settings) as live:
        for break_it in (lambda: replace(files.cert, "nonsense"), files.key.unlink):
            break_it()
            for _ in range(3):
                assert await shown_certificate(live.server.port, authority) == first.der
        files.install(second)
        assert await shown_certificate(live.server.port, authority) == second.der
        assert [line["why"] for line in events(caplog, "changed TLS files not taken")] == [
            f"tls.cert_file: {files.cert}: holds no certificate in PEM form, or a damaged one",
            f"tls.key_file: {files.key}: No such file or directory",
        ], "one line for each change"


async def test_authorities_of_clients_change_without_a_restart(authority, others, tmp_path):
    files = mutual(tmp_path, authority)
    ours, theirs = authority.issue("a@b"), others.issue("c@d")
    async with live_server(RecordingEngine(), tls=files.settings) as live:

        async def gets_in(client: Identity) -> None:
            async with authority.channel(live.server.port, client) as channel:
                assert await info(channel) == "recording"

        async def stays_out(client: Identity) -> None:
            assert HUNG_UP.search((await refusal(authority.channel(live.server.port, client))).details())

        await gets_in(ours)
        await stays_out(theirs)
        replace(files.client_ca, authority.pem + others.pem)
        await gets_in(ours)
        await gets_in(theirs)
        replace(files.client_ca, others.pem)
        await stays_out(ours)
        await gets_in(theirs)


async def test_many_handshakes_while_files_change(authority, tmp_path):
    """Handshakes run on several threads; each sees one whole pair."""
    identities = [authority.issue("localhost") for _ in range(4)]
    files = ServerFiles(tmp_path, identities[0])
    seen = set()
    async with live_server(RecordingEngine(), tls=files.settings) as live:
        for identity in identities[1:]:
            before = asyncio.gather(*(shown_certificate(live.server.port, authority) for _ in range(20)))
            files.install(identity)
            seen |= set(await before)
            assert await shown_certificate(live.server.port, authority) == identity.der
    assert seen <= {identity.der for identity in identities}


def test_files_that_are_no_good_stop_the_start(authority, tmp_path):
    files = ServerFiles(tmp_path, authority.issue("localhost"))
    replace(files.key, authority.issue("localhost").key)
    with pytest.raises(SettingsError, match=rf"^tls\.key_file: {files.key}: is not the key of"):
        TasteServer(load_settings({"tls": files.settings}), RecordingEngine)
    with pytest.raises(SettingsError, match=r"^tokens_file: .*nowhere\.toml: No such file"):
        TasteServer(load_settings({"tokens_file": tmp_path / "nowhere.toml"}), RecordingEngine)


@contextmanager
def serve_command(authority: Authority, folder: Path, **environment: str) -> Iterator[subprocess.Popen]:
    """`taste-grpc serve` with all that protects it; its log, with what gRPC's core writes there, is the file `log`."""
    files = mutual(folder, authority)
    config = folder / "taste.toml"
    config.write_text(
        f'log_format = "json"\nmodel = "{TINY}"\nport = 0\nport_file = "{folder / "port"}"\n'
        f'tokens = {{alice = "{TOKEN}"}}\n[tls]\n'
        + "".join(f'{name} = "{path}"\n' for name, path in files.settings.items())
    )
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("TASTE_", "GRPC_"))}
    command = [sys.executable, "-c", "from taste_grpc.cli import main; main()", "serve", "--config", str(config)]
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(
            command, env={**inherited, "OMP_NUM_THREADS": "1", **environment}, stderr=log, stdout=log
        )
    try:
        yield server
    finally:
        server.kill()
        server.wait()


async def port_of(folder: Path) -> int:
    await until((folder / "port").exists, 60)
    return int((folder / "port").read_text())


def uninvited(port: int, authority: Authority, others: Authority) -> dict[str, grpc.aio.Channel]:
    """Channels that come to nothing, by what gRPC's core says of them on the server's side."""
    return {
        "WRONG_VERSION_NUMBER": grpc.aio.insecure_channel(f"localhost:{port}", LOCAL),
        "PEER_DID_NOT_RETURN_A_CERTIFICATE": authority.channel(port),
        "certificate has expired": authority.channel(port, authority.expired("a@b")),
        "unable to get local issuer certificate": authority.channel(port, others.issue("a@b")),
    }


async def test_the_log_of_a_server_under_refusals_has_who_and_why_and_nothing_else(authority, others, tmp_path):
    """Of the command itself: nothing of Python's or of gRPC's core either."""
    client = authority.issue("host.example.org")
    with serve_command(authority, tmp_path) as process:
        port = await port_of(tmp_path)
        for channel in (*uninvited(port, authority, others).values(), others.channel(port, client)):
            assert (await refusal(channel)).code() is grpc.StatusCode.UNAVAILABLE
        _, plain = await asyncio.open_connection("127.0.0.1", port)
        plain.write(b"GET / HTTP/1.1\r\n\r\n")
        plain.close()
        for entries in ([], [WRONG], [f"Bearer {WRONG}"], [f"Bearer {TOKEN}"] * 2):
            metadata = tuple(("authorization", entry) for entry in entries)
            refused = read_failure(await refusal(authority.channel(port, client), metadata=metadata))
            assert refused.code is grpc.StatusCode.UNAUTHENTICATED
        async with authority.channel(port, client) as channel:
            health = health_pb2_grpc.HealthStub(channel)
            await health.Check(health_pb2.HealthCheckRequest())  # no token, and no line in the log
            loading = False
            try:
                await info(channel, metadata=(("authorization", f"Bearer {TOKEN}"),))
            except grpc.aio.AioRpcError as error:
                loading = read_failure(error).reason == "ERROR_REASON_NOT_SERVING"
        await until(lambda: (tmp_path / "log").read_text().count('"event": "call"') == 5)  # written after the answer
        process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(process.wait, 60) == 0

    text = (tmp_path / "log").read_text()
    log = [json.loads(line) for line in text.splitlines()]  # a line that is not ours would be no JSON
    calls = [line for line in log if line["event"] == "call"]
    assert [(line["client"], line["code"], line.get("why")) for line in calls] == [
        *(
            ("host.example.org", "UNAUTHENTICATED", why)
            for why in (
                "the call carries no token; send metadata `authorization: Bearer TOKEN`",
                "the authorization entry is not of the form `Bearer TOKEN`",
                "the token is not known here",
                "the call carries 2 authorization entries; send one",
            )
        ),
        ("alice", "UNAVAILABLE" if loading else "OK", None),
    ]
    assert all(line["peer"].startswith("ipv") for line in calls)
    assert {line["event"] for line in log if line["event"] != "call"} <= {
        "certificate",
        "listening",
        "loading model",
        "serving",
        "parts of this model have learned nothing: what they make is noise",
        "draining",
        "stopped",
        "stopped while loading",
    }
    assert TOKEN not in text
    assert WRONG not in text


async def test_why_handshakes_fail_is_told_by_the_core_when_it_is_asked(authority, others, tmp_path):
    with serve_command(authority, tmp_path, GRPC_VERBOSITY="INFO"):
        port = await port_of(tmp_path)
        channels = uninvited(port, authority, others)
        for channel in channels.values():
            assert (await refusal(channel)).code() is grpc.StatusCode.UNAVAILABLE

        def told() -> set[str]:
            failures = [line for line in (tmp_path / "log").read_text().splitlines() if "Handshake failed" in line]
            return {reason for reason in channels for line in failures if reason in line}

        await until(lambda: told() == set(channels))
