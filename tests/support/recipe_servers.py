"""The servers that recipes talk to, in a process of their own: `with recipe_servers() as servers`."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trustme

from taste_grpc.speech import sample_recordings
from tests.support.recipes import ROOT, server_of

PLAIN, CHAT, SECURE, LOADING, NARROW = 50051, 50052, 50443, 50054, 50055
"""What pages call the ports: taste-tiny; a TASTE model that knows conversations; with TLS and tokens; that never has
done loading; that speaks for one caller at a time. The first alone has DialogueService, with all that belongs to it."""
WEB, METRICS = 8080, 9090
"""What pages call the ports of its page, and of its figures."""

_NAMES = {"plain": PLAIN, "chat": CHAT}

TOKEN = "correct-horse-battery-staple"


@dataclass(frozen=True)
class RecipeServers:
    """Where the servers listen (`ports`, by the port of the pages), and what is needed to talk to them."""

    ports: dict[int, int]
    folder: Path

    def ports_of(self, page: Path) -> dict[int, int]:
        """Where what `page` calls port N really listens."""
        name = server_of(page)
        return {**self.ports, PLAIN: self.ports[_NAMES[name or "plain"]]}

    def furnish(self, scratch: Path) -> None:
        """Put what pages name into the directory they run in."""
        (scratch / "out").mkdir()
        shutil.copyfile(sample_recordings()["beckett"], scratch / "out" / "question.wav")
        for name in ("protos", "tests"):
            (scratch / name).symlink_to(ROOT / name)
        for name in ("ca.pem", "server.log"):
            (scratch / name).symlink_to(self.folder / name)


@contextmanager
def recipe_servers() -> Iterator[RecipeServers]:
    """Start the servers, wait until they serve, and stop them at the end."""
    with tempfile.TemporaryDirectory(prefix="taste-recipe-servers-") as name:
        folder = Path(name)
        _write_certificates(folder)
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.recipe_servers", name],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            if not line:
                raise RuntimeError(f"the servers ended with status {process.wait()}")
            yield RecipeServers({int(said): live for said, live in json.loads(line).items()}, folder)
        finally:
            process.stdin.close()
            process.wait(30)
            process.stdout.close()


def _write_certificates(folder: Path) -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost", "127.0.0.1")
    authority.cert_pem.write_to_path(folder / "ca.pem")
    certificate.cert_chain_pems[0].write_to_path(folder / "server.pem")
    certificate.private_key_pem.write_to_path(folder / "server.key")


class _Started:
    """An engine that several servers share: it is started and stopped elsewhere."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    async def start(self) -> None:
        """It is."""

    async def drain(self, grace_s: float) -> None:
        """Not here."""


async def serve(folder: Path) -> None:
    """Serve until stdin is closed; the ports are printed as one line of JSON."""
    from taste_grpc.dialogue.local import LocalDialogue
    from taste_grpc.engine import EngineSettings, LocalEngine
    from taste_grpc.gateway import Gateway
    from taste_grpc.observability import configure_logging
    from taste_grpc.server import TasteServer
    from taste_grpc.settings import AdmissionSettings, MethodAdmission, load_settings
    from tests.checkpoints import TINY, write_chat_checkpoint

    chat_folder = write_chat_checkpoint(folder / "taste-chat")
    configure_logging("info", "text", (folder / "server.log").open("a", buffering=1, encoding="utf-8"))
    one_speaks = AdmissionSettings(detokenize=MethodAdmission(active=1, waiting=0))
    engines = [
        LocalEngine(EngineSettings(TINY, "cpu", "float32", 1)),
        LocalEngine(EngineSettings(chat_folder, "cpu", "float32", 1, admission=one_speaks)),
    ]
    for engine in engines:
        await engine.start()
    tiny, chat = (_Started(engine) for engine in engines)
    forever = threading.Event()

    def server(make_engine: Any, **flags: Any) -> TasteServer:
        return TasteServer(load_settings({"port": 0, "drain_grace_s": 0, **flags}), make_engine)

    def talking_server() -> TasteServer:
        return TasteServer(
            talking,
            lambda: tiny,
            lambda engine: LocalDialogue(talking, engine),
            lambda door, authenticate, is_serving: Gateway(door, talking, authenticate, is_serving),
        )

    more_ports = {WEB: _free_port(), METRICS: _free_port()}
    talking = load_settings(
        {
            "port": 0,
            "drain_grace_s": 0,
            "metrics_port": more_ports[METRICS],
            "web": {"enabled": True, "port": more_ports[WEB]},
            "stream": {"log_latency": False, "resume_dir": folder / "resume"},
        }
    )
    tls = {"cert_file": folder / "server.pem", "key_file": folder / "server.key"}
    servers = {
        PLAIN: talking_server(),
        CHAT: server(lambda: chat),
        SECURE: server(lambda: tiny, tls=tls, tokens={"alice": TOKEN}),
        LOADING: server(lambda: forever.wait()),
        NARROW: server(lambda: chat),
    }
    for number, one in servers.items():
        await one.start()
        if number != LOADING:
            await one.loaded()
    ports = {**{number: one.port for number, one in servers.items()}, **more_ports}
    print(json.dumps(ports), flush=True)
    await asyncio.to_thread(sys.stdin.read)
    for one in servers.values():
        await one.stop()
    for engine in engines:
        await engine.drain(0)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1])))
