"""The server: put together, started, drained, stopped."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from taste.v1 import dialogue_pb2, dialogue_pb2_grpc, taste_pb2, taste_pb2_grpc
from taste_grpc.engine.protocol import Engine, ModelInfo
from taste_grpc.errors import SettingsError, TasteError, UnavailableError
from taste_grpc.observability import log_event
from taste_grpc.server.auth import Authenticator
from taste_grpc.server.dialogue_service import Dialogue, DialogueService
from taste_grpc.server.exposure import exposures
from taste_grpc.server.gate import Gate, GateState
from taste_grpc.server.health import HealthService
from taste_grpc.server.interceptor import CallInterceptor
from taste_grpc.server.metrics_port import MetricsPort
from taste_grpc.server.taste_service import TasteService
from taste_grpc.server.tls import ServerTls, TlsMode, tls_mode
from taste_grpc.server.web_door import WebDoor, WebServer
from taste_grpc.settings import Settings

logger = logging.getLogger(__name__)

TASTE_SERVICE = str(taste_pb2.DESCRIPTOR.services_by_name["TasteService"].full_name)
DIALOGUE_SERVICE = str(dialogue_pb2.DESCRIPTOR.services_by_name["DialogueService"].full_name)
_HEALTH_SERVICE = str(health_pb2.DESCRIPTOR.services_by_name["Health"].full_name)

_HANDSHAKE_MS = 20_000
"""Time for a caller that has connected to agree on TLS and HTTP/2; 120 s unless set."""

_LAST_WORDS_S = 1.0
"""Time for calls that the engine has ended to reach their callers, some of whom may not be reading."""

_COLLECTED_AFTER = 10_000
"""Objects made and not dropped, after which the collector looks at the youngest; otherwise after some hundreds."""

_SETTLE_S = 5.0
"""Time for calls that were cut to run through their `finally`."""

MakeEngine = Callable[[], Engine]
"""Makes an engine that has not been started. May block for seconds (imports): it is called on a thread of its own."""

MakeDialogue = Callable[[Engine], Dialogue]
"""Makes what conversations are held with, on the event loop; it has not been started either."""


MakeWebServer = Callable[[WebDoor, Callable[[str | None], str], Callable[[], bool]], WebServer]
"""Makes what serves conversations over WebSocket, of what opens them, what knows clients by their tokens, and what
tells whether conversations are served."""


class TasteServer:
    """A gRPC server over one engine.

    `start` listens at once: health says NOT_SERVING, and TasteService UNAVAILABLE, until the
    engine has been loaded in the background. All methods are to be called on one event loop.

    Raises:
        SettingsError: the files of `tls` or `tokens_file` are not usable.
    """

    def __init__(
        self,
        settings: Settings,
        make_engine: MakeEngine,
        make_dialogue: MakeDialogue | None = None,
        make_web: MakeWebServer | None = None,
    ) -> None:
        self.settings = settings
        self._tls = ServerTls(settings.tls) if settings.tls else None
        self._authenticator = Authenticator(settings.tokens, settings.tokens_file)
        self._make_engine, self._make_dialogue = make_engine, make_dialogue
        self._engine: Engine | None = None
        self._dialogue: Dialogue | None = None
        self._metrics: MetricsPort | None = None
        self._gate: Gate[Engine] = Gate()
        self._dialogue_gate: Gate[Dialogue] = Gate()
        self._health = HealthService(["", TASTE_SERVICE, DIALOGUE_SERVICE])
        self._taste = TasteService(self._gate, settings.limits, settings.admission.max_wait_ms)
        self._talks = DialogueService(self._dialogue_gate, settings, offered=make_dialogue is not None)
        self._web = self._web_server(make_web) if make_web is not None else None
        self._server = grpc.aio.server(
            interceptors=[CallInterceptor(self._authenticator, settings.limits.max_idle_ms)],
            options=channel_options(settings),
        )
        self._loading: asyncio.Task[ModelInfo] | None = None
        self._watching: asyncio.Task[None] | None = None
        self.port = 0

    @property
    def address(self) -> str:
        """`host:port` that is listened at; after `start`."""
        return _address(self.settings.host, self.port)

    @property
    def tls(self) -> TlsMode:
        """Whether the port is for TLS, and clients need a certificate too."""
        return tls_mode(self.settings.tls)

    @property
    def is_loading(self) -> bool:
        """Whether the engine is being loaded."""
        return self._loading is not None and not self._loading.done()

    async def start(self) -> None:
        """Listen, and begin to load. Raises SettingsError when the address cannot be had."""
        taste_pb2_grpc.add_TasteServiceServicer_to_server(self._taste, self._server)
        dialogue_pb2_grpc.add_DialogueServiceServicer_to_server(self._talks, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        if self.settings.channelz:
            _add_channelz(self._server)
        if self.settings.reflection:
            names = (TASTE_SERVICE, DIALOGUE_SERVICE, _HEALTH_SERVICE, reflection.SERVICE_NAME)
            reflection.enable_server_reflection(names, self._server)
        self._listen()
        await self._server.start()
        try:
            await self._open()
        except BaseException:
            await self._server.stop(grace=None)
            raise
        self._loading = asyncio.create_task(self._load(), name="load-model")

    async def _open(self) -> None:
        """Say where this server is, and serve the page beside it."""
        if self.settings.port_file:
            try:
                _write_whole(self.settings.port_file, f"{self.port}\n")
            except OSError as error:
                raise SettingsError(f"port_file: {self.settings.port_file}: {error.strerror}") from error
        tokens = len(self._authenticator.names)
        log_event(logger, logging.INFO, "listening", address=self.address, tls=self.tls, tokens=tokens)
        for warning in exposures(self.settings.host, self.tls, tokens=self._authenticator.required):
            log_event(logger, logging.WARNING, warning, address=self.address)
        if self._web is not None:
            await self._web.start()
            for warning in exposures(self.settings.web.host, self.tls, tokens=self._authenticator.required):
                log_event(logger, logging.WARNING, warning, address=self.settings.web.host)

    def _listen(self) -> None:
        wanted = _address(self.settings.host, self.settings.port)
        try:
            if self._tls is None:
                self.port = self._server.add_insecure_port(wanted)
            else:
                self.port = self._server.add_secure_port(wanted, self._tls.credentials())
        except RuntimeError as error:
            raise SettingsError(f"host, port: cannot listen at {wanted}: is the port taken?") from error

    def _web_server(self, make: MakeWebServer) -> WebServer:
        gate = self._dialogue_gate
        door = WebDoor(gate, lambda: self._talks.failure)
        return make(door, self._authenticator.client_of_token, lambda: gate.state is GateState.SERVING)

    async def loaded(self) -> ModelInfo:
        """Wait until the engine serves. Raises what loading it raised, CheckpointError above all."""
        if self._loading is None:
            raise RuntimeError("the server has not been started")
        return await asyncio.shield(self._loading)

    async def _load(self) -> ModelInfo:
        log_event(logger, logging.INFO, "loading model", model=self.settings.model)
        engine = await _on_daemon_thread(self._make_engine)
        await engine.start()
        self._engine = engine
        await self._load_dialogue(engine)
        self._gate.open(engine)
        self._health.set(("", TASTE_SERVICE), serving=self._gate.state is GateState.SERVING)
        self._watching = asyncio.create_task(self._watch(engine), name="watch-engine")
        info = engine.info
        log_event(logger, logging.INFO, "serving", model=info.model_id, device=info.device, dtype=info.dtype)
        if info.random_parts:
            log_event(
                logger,
                logging.WARNING,
                "parts of this model have learned nothing: what they make is noise",
                random_parts=", ".join(info.random_parts),
            )
        return info

    async def _load_dialogue(self, engine: Engine) -> None:
        """Offer conversations; when they cannot be had, everything else still serves, and callers are told why."""
        if self._make_dialogue is None:
            return
        dialogue = self._dialogue = self._make_dialogue(engine)
        if self.settings.metrics_port is not None:
            self._metrics = MetricsPort(dialogue.metrics.registry, self.settings.host, self.settings.metrics_port)
            log_event(logger, logging.INFO, "metrics", port=self._metrics.port)
        try:
            await dialogue.start()
        except TasteError as error:
            self._talks.failure = f"conversations cannot be had: {error}"
            log_event(logger, logging.ERROR, "conversations cannot be had", reason=str(error))
            await dialogue.aclose()
            return
        self._dialogue_gate.open(dialogue)
        self._health.set((DIALOGUE_SERVICE,), serving=self._dialogue_gate.state is GateState.SERVING)
        log_event(logger, logging.INFO, "conversing", parts=", ".join(dialogue.parts))

    async def _watch(self, engine: Engine) -> None:
        await engine.failed()
        self._health.set(("", TASTE_SERVICE), serving=False)
        self._gate.drain()

    async def failed(self) -> None:
        """Return once the engine has failed; health says so by then. After `loaded`; cancelled by `stop`."""
        if self._watching is None:
            raise RuntimeError("the server has not loaded")
        await asyncio.shield(self._watching)

    async def stop(self, hurry: asyncio.Event | None = None) -> None:
        """Drain, then stop: no new calls, running ones go on until they end, the grace is over, or `hurry` is set."""
        self._health.set(("", TASTE_SERVICE, DIALOGUE_SERVICE), serving=False)
        self._gate.drain()
        self._dialogue_gate.drain()
        log_event(logger, logging.INFO, "draining", active_calls=self._active)
        if self._dialogue is not None and self._dialogue_gate.active:
            await self._dialogue.conversations.leave(self.settings.drain_grace_s)
        await _first_of(self.settings.drain_grace_s, self._idle(), hurry.wait() if hurry else None)
        if self._active:
            log_event(logger, logging.WARNING, "cutting calls that did not end in time", active_calls=self._active)
        await self._end_work()
        if self._web is not None:
            await self._web.stop()
        if self._watching is not None:
            self._watching.cancel()
        await self._server.stop(grace=0)
        await _first_of(_SETTLE_S, self._idle())
        self._taste.close()
        self._talks.close()
        if self._metrics is not None:
            await self._metrics.aclose()
        log_event(logger, logging.INFO, "stopped")

    @property
    def _active(self) -> int:
        return self._gate.active + self._dialogue_gate.active

    async def _idle(self) -> None:
        await self._gate.idle()
        await self._dialogue_gate.idle()

    async def _end_work(self) -> None:
        """End what calls work with, and so the calls."""
        if self._loading is not None and not self._loading.done():
            self._loading.cancel()
            await asyncio.wait([self._loading], timeout=_SETTLE_S)
        if self._dialogue is not None:
            await self._dialogue.aclose()
        if self._engine is not None:
            # Before the connections, as calls that it ends are told why; those that gRPC cuts off are told nothing.
            await self._engine.drain(0)
            await _first_of(_LAST_WORDS_S, self._idle())


def channel_options(settings: Settings) -> list[tuple[str, int]]:
    """Options of the server's connections."""
    return [
        # A short window: audio waits here, where it can be stopped, rather than on its way to a slow reader.
        ("grpc.http2.bdp_probe", 0),
        ("grpc.http2.lookahead_bytes", 16_384),
        ("grpc.max_receive_message_length", settings.limits.max_request_bytes),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_concurrent_streams", settings.max_concurrent_streams),
        ("grpc.max_metadata_size", settings.max_metadata_bytes),
        ("grpc.absolute_max_metadata_size", settings.max_metadata_bytes),
        # A caller that connects and says nothing does not stay.
        ("grpc.server_handshake_timeout_ms", _HANDSHAKE_MS),
        # A caller that vanished without a word is noticed.
        ("grpc.keepalive_time_ms", round(1000 * settings.keepalive_s)),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
        # A port that somebody else has is an error, not shared.
        ("grpc.so_reuseport", 0),
        ("grpc.enable_channelz", int(settings.channelz)),
    ]


async def run_server(
    settings: Settings,
    make_engine: MakeEngine,
    make_dialogue: MakeDialogue | None = None,
    make_web: MakeWebServer | None = None,
    *,
    lifeline_fd: int | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT, then drain; a second signal cuts the grace short.

    `lifeline_fd` is the reading end of a pipe: when its other end is closed, because the process that
    holds it is gone, the server stops too.

    Owns the process: when it is told to stop while the model is being loaded, which nothing
    can interrupt, it ends the process with status 0.

    Raises:
        SettingsError: the address cannot be had.
        CheckpointError: the model cannot be loaded.
        UnavailableError: the engine failed while it served.
    """
    stop, hurry = asyncio.Event(), asyncio.Event()

    def on_signal() -> None:
        (hurry if stop.is_set() else stop).set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    if lifeline_fd is not None:
        _watch_end(lifeline_fd, stop)
    server = TasteServer(settings, make_engine, make_dialogue, make_web)
    await server.start()
    await _first_of(None, server.loaded(), stop.wait())
    if stop.is_set() and server.is_loading:
        log_event(logger, logging.INFO, "stopped while loading")
        logging.shutdown()
        os._exit(0)
    try:
        await server.loaded()
        calm_collector()
        await _first_of(None, server.failed(), stop.wait())
        if not stop.is_set():
            hurry.set()  # nothing that is under way can come to its end
            await server.failed()
            raise UnavailableError("the engine failed; the log has the cause")
    finally:
        await server.stop(hurry)


def calm_collector() -> None:
    """Let the garbage collector hold up calls less, in a process that has made what it will keep.

    No collection goes through that again, and collections come less often: a stream of messages makes much garbage, of
    which next to nothing is in cycles.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_COLLECTED_AFTER, 20, 20)


def _watch_end(fd: int, ended: asyncio.Event) -> None:
    """Set `ended` when the other end of a pipe is closed."""
    loop = asyncio.get_running_loop()

    def read() -> None:
        if not os.read(fd, 4096):
            loop.remove_reader(fd)
            ended.set()

    loop.add_reader(fd, read)


async def _first_of(timeout_s: float | None, *awaitables: object) -> None:
    """Return when the first of `awaitables` is done (None among them are left out) or the time is over."""
    tasks = [asyncio.ensure_future(item) for item in awaitables if item is not None]  # type: ignore[call-overload]
    try:
        await asyncio.wait(tasks, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _on_daemon_thread(make: MakeEngine) -> Engine:
    """The result of `make`, run on a thread that does not keep the process alive."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Engine] = loop.create_future()

    def settle(result: Engine | None, error: BaseException | None) -> None:
        if future.cancelled():
            return
        if error is not None:
            future.set_exception(error)
        elif result is not None:
            future.set_result(result)

    def run() -> None:
        result, error = None, None
        try:
            result = make()
        except Exception as caught:
            error = caught
        if not loop.is_closed():
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=run, name="make-engine", daemon=True).start()
    return await future


def _add_channelz(server: grpc.aio.Server) -> None:
    try:
        from grpc_channelz.v1 import channelz
    except ImportError as error:
        raise SettingsError("channelz: the package grpcio-channelz is not installed") from error
    channelz.add_channelz_servicer(server)


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _write_whole(path: Path, text: str) -> None:
    """A reader sees the whole file or none."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    scratch.write_text(text)
    scratch.replace(path)
