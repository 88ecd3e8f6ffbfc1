"""Who gets in to the web server, who does not, and who is shown out."""

from __future__ import annotations

import asyncio
import http.client
import logging
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidMessage, InvalidStatus

from taste_grpc.errors import SettingsError, UnauthenticatedError
from taste_grpc.gateway import gateway, talk, wire
from tests.support.certificates import Authority, ServerFiles
from tests.support.live_gateway import Client, LiveGateway, live_gateway
from tests.support.live_server import until
from tests.support.log_lines import events
from tests.support.scripted_conversations import tone

pytestmark = pytest.mark.asyncio(loop_scope="module")

START = {"type": "start", "sample_rate": 16_000}
TOKEN = "alice-0123456789"


def authenticate(token: str | None) -> str:
    if token != TOKEN:
        raise UnauthenticatedError("the token is not known here" if token else "the call carries no token")
    return "alice"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def live() -> AsyncIterator[LiveGateway]:
    async with live_gateway() as found:
        yield found


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def locked() -> AsyncIterator[LiveGateway]:
    async with live_gateway(gateway={"authenticate": authenticate}) as found:
        yield found


async def fetch(
    live: LiveGateway, path: str, method: str = "GET", **headers: str
) -> tuple[int, http.client.HTTPMessage, bytes]:
    def call() -> tuple[int, http.client.HTTPMessage, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", live.gateway.port, timeout=20)
        try:
            connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
            response = connection.getresponse()
            return response.status, response.headers, response.read()
        finally:
            connection.close()

    return await asyncio.to_thread(call)


async def test_the_page_and_its_files(live: LiveGateway) -> None:
    status, headers, body = await fetch(live, "/")
    assert status == 200
    assert headers["content-type"].startswith("text/html")
    assert b"<title>TASTE" in body
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "http" not in policy, "nothing comes from elsewhere"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert "server" not in headers
    for name, kind in {"app.js": "text/javascript", "style.css": "text/css", "icon.svg": "image/svg+xml"}.items():
        status, headers, body = await fetch(live, f"/static/{name}")
        assert (status, headers["content-type"].split(";")[0]) == (200, kind)
        assert body
        assert headers["cache-control"] == "no-cache"
        assert (await fetch(live, f"/static/{name}", if_none_match=headers["etag"]))[0] == 304


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404),
        ("GET", "/static/", 404),
        ("GET", "/static/../app.py", 404),
        ("GET", "/static/%2e%2e/app.py", 404),
        ("GET", "/static/..%2fapp.py", 404),
        ("GET", "/static//etc/passwd", 404),
        ("GET", "/static/%00", 404),
        ("POST", "/", 405),
        ("DELETE", "/static/app.js", 405),
        ("GET", "/ws", 404),
    ],
)
async def test_there_is_nothing_else(live: LiveGateway, method: str, path: str, status: int) -> None:
    assert (await fetch(live, path, method))[0] == status


async def test_health_follows_the_server() -> None:
    serving = True
    async with live_gateway(gateway={"is_serving": lambda: serving}) as live:
        assert (await fetch(live, "/healthz", host="probe.example"))[::2] == (200, b"ok\n")
        serving = False
        assert (await fetch(live, "/healthz"))[::2] == (503, b"not serving\n")


async def test_a_name_that_is_not_ours_gets_no_page(live: LiveGateway) -> None:
    status, _, body = await fetch(live, "/", host="evil.example")
    assert status == 421
    assert b"web.origins" in body
    assert (await fetch(live, "/static/app.js", host="evil.example"))[0] == 421
    async with live_gateway(web={"port": 0, "origins": ["https://talk.example.com"]}) as named:
        assert (await fetch(named, "/", host="talk.example.com"))[0] == 200


async def test_pages_from_elsewhere_cannot_talk(live: LiveGateway, caplog: pytest.LogCaptureFixture) -> None:
    opened = len(live.conversations.opened)
    for origin, host in (
        ("https://evil.example", f"localhost:{live.gateway.port}"),
        ("http://localhost:1", f"localhost:{live.gateway.port}"),
        ("null", f"localhost:{live.gateway.port}"),
        ("http://evil.example", "evil.example"),
    ):
        with pytest.raises(InvalidStatus) as refused:
            async with connect(f"ws://{host}/ws", origin=origin, host="127.0.0.1", port=live.gateway.port):
                pass
        assert refused.value.response.status_code == 403
        assert b"web.origins" in refused.value.response.body
    assert len(live.conversations.opened) == opened
    await until(lambda: live.gateway.connections == 0)
    assert [record for record in caplog.records if record.levelno > logging.INFO] == [], "strangers fill no log"


async def test_the_page_itself_can(live: LiveGateway) -> None:
    async with live.client(origin=f"http://{live.address}") as client:
        await client.send(START)
        assert (await client.next())["type"] == "started"


async def test_a_token_with_the_request(locked: LiveGateway, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        async with locked.client(additional_headers={"Authorization": f"Bearer {TOKEN}"}) as client:
            await client.send(START)
            assert (await client.next())["type"] == "started"
        await until(lambda: bool(events(caplog, "web conversation ended")))
    assert [event["client"] for event in events(caplog, "web conversation ended")] == ["alice"]


@pytest.mark.parametrize("value", ["Bearer stranger-0123456", f"Basic {TOKEN}", "Bearer", "Bearer a b"])
async def test_a_wrong_token_with_the_request(locked: LiveGateway, value: str) -> None:
    with pytest.raises(InvalidStatus) as refused:
        async with connect(f"ws://{locked.address}/ws", additional_headers={"Authorization": value}):
            pass
    response = refused.value.response
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Bearer"
    assert b"stranger" not in response.body


async def test_a_token_with_start(locked: LiveGateway) -> None:
    async with locked.talking(access_token=TOKEN) as client:
        assert await client.mark() == []


@pytest.mark.parametrize(
    ("token", "complaint"), [({}, "no token"), ({"access_token": "stranger-0123456"}, "not known here")]
)
async def test_no_good_token_with_start(locked: LiveGateway, token: dict[str, str], complaint: str) -> None:
    opened = len(locked.conversations.opened)
    async with locked.client() as client:
        await client.send({**START, **token})
        messages, code = await client.rest()
    (error,) = messages
    assert (error["code"], error["recoverable"]) == ("UNAUTHENTICATED", False)
    assert complaint in error["message"]
    assert code == 1008
    assert len(locked.conversations.opened) == opened


async def test_a_token_in_the_address_is_not_looked_at(locked: LiveGateway) -> None:
    async with connect(f"ws://{locked.address}/ws?access_token={TOKEN}") as connection:
        client = Client(connection)
        await client.send(START)
        messages, code = await client.rest()
    assert ([message.get("code") for message in messages], code) == ([None, "UNAUTHENTICATED"], 1008)


async def test_when_all_places_are_taken_the_next_is_told() -> None:
    async with live_gateway(web={"port": 0, "max_connections": 2}) as live, live.client(), live.client() as second:
        async with live.client() as third:
            messages, code = await third.rest()
        assert [(error["code"], error["recoverable"]) for error in messages] == [("OVERLOADED", False)]
        assert code == 1013
        await second.connection.close()
        await until(lambda: live.gateway.connections == 1)
        async with live.talking():
            pass


async def test_who_never_starts_is_shown_out(live: LiveGateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(talk, "START_WITHIN_S", 0.05)
    async with live.client() as client:
        messages, code = await client.rest()
    assert ([message["type"] for message in messages], code) == (["info"], 1008)


async def test_a_conversation_in_which_nothing_happens_ends() -> None:
    async with live_gateway(limits={"max_idle_ms": 1_500}) as live, live.talking() as client:
        session = live.session
        for _ in range(8):  # longer than it may be idle, and never idle
            await asyncio.sleep(0.25)
            await client.mark()
        messages, code = await client.rest()
        assert ([message["type"] for message in messages], code) == (["info"], 1008)
        assert client.connection.close_reason == "idle"
        await session.closed.wait()


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\nHost: localhost\r\nX: "])
async def test_who_connects_and_asks_for_nothing_is_shown_out(
    live: LiveGateway, monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    monkeypatch.setattr(wire, "REQUEST_WITHIN_S", 0.1)
    reader, writer = await asyncio.open_connection("127.0.0.1", live.gateway.port)
    writer.write(sent)
    async with asyncio.timeout(10):
        assert await reader.read() == b""
    writer.close()
    await writer.wait_closed()


async def test_the_rest_of_a_second_request_is_not_waited_for_either(
    live: LiveGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "REQUEST_WITHIN_S", 0.3)
    reader, writer = await asyncio.open_connection("127.0.0.1", live.gateway.port)
    request = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n"
    writer.write(request + b"\r\n")
    answer = await reader.readuntil(b"ok\n")
    assert answer.startswith(b"HTTP/1.1 200")
    writer.write(request)
    async with asyncio.timeout(4):  # before the server is tired of idle connections
        assert await reader.read() == b""
    writer.close()
    await writer.wait_closed()


async def test_a_client_that_answers_no_ping_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway, "PING_EVERY_S", 0.1)
    monkeypatch.setattr(gateway, "PONG_WITHIN_S", 0.2)
    async with live_gateway() as live, live.talking() as client:
        session = live.session
        client.connection.transport.pause_reading()
        session.emit(*(tone(0, seq, 1_000, 16_000) for seq in range(600)))
        await session.closed.wait()
        await until(lambda: live.gateway.connections == 0)
        client.connection.transport.abort()


async def test_who_does_not_read_how_it_ended_is_cut_off(live: LiveGateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "LINGER_S", 0.2)
    async with live.talking() as client:
        client.connection.transport.pause_reading()
        live.session.emit(tone(0, 0, 1_000, 16_000))
        live.session.end()
        await until(lambda: live.gateway.connections == 0)
        client.connection.transport.abort()


async def test_stopping_ends_what_is_under_way_and_frees_the_port() -> None:
    async with live_gateway() as live:
        port = live.gateway.port
        async with live.talking() as client:
            await live.gateway.stop()
            messages, code = await client.rest()
            assert (messages, code) == ([], 1012)
            assert live.session.closed.is_set()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", port)


async def test_stopping_waits_for_nobody_who_does_not_read(caplog: pytest.LogCaptureFixture) -> None:
    async with live_gateway() as live, live.talking() as client:
        client.connection.transport.pause_reading()
        live.session.emit(*(tone(0, seq, 1_000, 16_000) for seq in range(600)))
        async with asyncio.timeout(10):
            await live.gateway.stop()
        assert live.session.closed.is_set()
        assert live.gateway.connections == 0
        client.connection.transport.abort()


async def test_a_port_that_is_taken_is_one_clear_sentence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SettingsError, match=rf"web\.host, web\.port: cannot listen at 127\.0\.0\.1:{port}: "):
            async with live_gateway(web={"port": port}):
                pass
    with pytest.raises(SettingsError, match=r"cannot listen at no\.such\.host\.invalid"):
        async with live_gateway(web={"port": 0, "host": "no.such.host.invalid"}):
            pass


async def test_the_page_is_served_on_ipv6_too() -> None:
    async with live_gateway(web={"port": 0, "host": "::1"}) as live:
        assert live.gateway.url == f"http://[::1]:{live.gateway.port}/"
        async with connect(live.gateway.url.replace("http", "ws") + "ws") as connection:
            assert await Client(connection).next() == {"type": "protocol", "version": 1}


async def test_under_tls_the_page_has_the_certificate_of_the_server(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    authority = Authority()
    files = ServerFiles(tmp_path, first := authority.issue("localhost"))
    trusting = ssl.create_default_context(cadata=authority.pem.decode())
    async with live_gateway(tls=files.settings) as live:
        url = live.gateway.url.replace("127.0.0.1", "localhost")
        assert url.startswith("https://")

        async def shown() -> bytes:
            async with connect(url.replace("https", "wss") + "ws", ssl=trusting) as connection:
                client = Client(connection)
                await client.send("nonsense")
                messages, code = await client.rest()
                assert ([message["type"] for message in messages], code) == (["protocol", "error"], 1003)
                shown: bytes = connection.transport.get_extra_info("ssl_object").getpeercert(binary_form=True)
                return shown

        assert await shown() == first.der
        files.install(second := authority.issue("localhost"))
        assert await shown() == second.der
        files.cert.write_bytes(b"nonsense")
        with caplog.at_level(logging.INFO):
            assert await shown() == second.der
        assert len(events(caplog, "changed certificate not taken by the page")) == 1


async def test_a_message_that_is_too_long_is_told_under_tls_too(tmp_path: Path) -> None:
    authority = Authority()
    files = ServerFiles(tmp_path, authority.issue("localhost"))
    trusting = ssl.create_default_context(cadata=authority.pem.decode())
    async with live_gateway(tls=files.settings) as live:
        async with connect(f"wss://localhost:{live.gateway.port}/ws", ssl=trusting) as connection:
            client = Client(connection)
            await client.send(b"\x00" * 1_000_000)
            messages, code = await client.rest()
        assert ([message.get("code") for message in messages], code) == ([None, "PROTOCOL_VIOLATION"], 1009)


async def test_with_client_certificates_nobody_else_gets_the_page(tmp_path: Path) -> None:
    authority = Authority()
    files = ServerFiles(tmp_path, authority.issue("localhost"), authority.pem)
    trusting = ssl.create_default_context(cadata=authority.pem.decode())
    async with live_gateway(tls=files.settings) as live:
        url = f"wss://localhost:{live.gateway.port}/ws"
        with pytest.raises((OSError, InvalidMessage)):
            async with connect(url, ssl=trusting):
                pass
        (tmp_path / "mine").mkdir()
        mine = ServerFiles(tmp_path / "mine", authority.issue("me"))
        trusting.load_cert_chain(mine.cert, mine.key)
        async with connect(url, ssl=trusting) as connection:
            assert await Client(connection).next() == {"type": "protocol", "version": 1}


async def test_files_that_cannot_be_used_are_one_clear_sentence(tmp_path: Path) -> None:
    files = ServerFiles(tmp_path, Authority().issue("localhost"))
    files.key.write_text("nonsense")
    with pytest.raises(SettingsError, match="tls: the files cannot be used"):
        async with live_gateway(tls=files.settings):
            pass
