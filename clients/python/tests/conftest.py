from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import ExitStack
from typing import Any

import grpc
import pytest
from both_clients import BlockingClient, LoopThread
from fake_server import FakeServicer

from taste.v1 import taste_pb2_grpc
from taste_grpc_client import TasteClient

MakeClient = Callable[..., Any]


def start_server(
    servicer: FakeServicer,
    stack: ExitStack,
    *,
    credentials: grpc.ServerCredentials | None = None,
    interceptor: grpc.ServerInterceptor | None = None,
) -> int:
    """Port of a server that runs until `stack` is closed."""
    pool = stack.enter_context(futures.ThreadPoolExecutor(max_workers=8))
    # The limit of the real one.
    interceptors = [interceptor] if interceptor else []
    server = grpc.server(pool, interceptors=interceptors, options=[("grpc.max_receive_message_length", 16 << 20)])
    taste_pb2_grpc.add_TasteServiceServicer_to_server(servicer, server)
    where = "127.0.0.1:0"
    port = server.add_secure_port(where, credentials) if credentials else server.add_insecure_port(where)
    server.start()
    stack.callback(lambda: server.stop(None).wait())
    stack.callback(servicer.hold.set)
    return port


@pytest.fixture
def servicer() -> FakeServicer:
    return FakeServicer()


@pytest.fixture
def target(servicer: FakeServicer) -> Iterator[str]:
    with ExitStack() as stack:
        yield f"127.0.0.1:{start_server(servicer, stack)}"


@pytest.fixture(scope="session")
def loop_thread() -> Iterator[LoopThread]:
    thread = LoopThread()
    yield thread
    thread.close()


@pytest.fixture(params=["threads", "asyncio"])
def make_client(request: pytest.FixtureRequest) -> Iterator[MakeClient]:
    """Makes clients of either kind, with one face; they are closed at the end."""
    with ExitStack() as stack:

        def make(target: str, **options: Any) -> Any:
            if request.param == "threads":
                return stack.enter_context(TasteClient(target, **options))
            client = BlockingClient(request.getfixturevalue("loop_thread"), target, **options)
            stack.callback(client.close)
            return client

        yield make


@pytest.fixture
def client(make_client: MakeClient, target: str) -> Any:
    return make_client(target)
