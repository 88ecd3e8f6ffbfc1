"""`taste-grpc serve --web` as a process: the page, its health, and its end."""

from __future__ import annotations

import asyncio
import json
import signal
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlsplit

from websockets.asyncio.client import connect

from tests.support.command_line import SERVE_DIALOGUE, SERVE_TINY, run, serving


def fetch(url: str, path: str) -> tuple[int, str]:
    connection = HTTPConnection(urlsplit(url).netloc, timeout=30)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


async def test_the_page_is_there_at_once_and_conversations_end_with_the_server(tmp_path: Path) -> None:
    flags = (
        "--web",
        "--web-port",
        "0",
        "--set",
        "drain_grace_s=5",
        "--set",
        f"stream.resume_dir={tmp_path / 'resume'}",
    )
    with serving(tmp_path / "log", *SERVE_DIALOGUE, *flags) as server:
        url = (await asyncio.to_thread(server.wait_for, "page served", 100))["url"]
        status, page = await asyncio.to_thread(fetch, url, "/")
        assert (status, "<title>" in page) == (200, True)
        assert await asyncio.to_thread(fetch, url, "/healthz") == (503, "not serving\n")
        await asyncio.to_thread(server.wait_for, "serving", 100)
        assert await asyncio.to_thread(fetch, url, "/healthz") == (200, "ok\n")
        async with connect(f"ws://{urlsplit(url).netloc}/ws") as talk:
            await talk.send('{"type":"start","sample_rate":16000}')
            assert [json.loads(await talk.recv())["type"] for _ in range(2)] == ["protocol", "started"]
            server.process.send_signal(signal.SIGTERM)
            going = json.loads(await talk.recv())
            assert (going["type"], bool(going["resume_token"])) == ("going_away", True)
            await talk.wait_closed()
            assert talk.close_code == 1012
        assert (await asyncio.to_thread(server.wait_for, "draining", 60))["active_calls"] == 1
        assert await asyncio.to_thread(server.process.wait, 60) == 0


def test_a_page_without_conversations_is_refused_in_one_line(tmp_path: Path) -> None:
    done = run("serve", *SERVE_TINY, "--web", "--web-port", "0", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == ("taste-grpc: web.enabled: there are no conversations to serve with dialogue = false\n")


def test_a_port_of_the_page_that_cannot_be_had_is_one_line(tmp_path: Path) -> None:
    flags = ("--web", "--set", "web.host=10.255.255.1", "--port", "0")
    done = run("serve", *SERVE_DIALOGUE, *flags, cwd=tmp_path)
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("taste-grpc: ")]
    assert "web.host, web.port: cannot listen at 10.255.255.1:8080" in line
    assert "Traceback" not in done.stderr
