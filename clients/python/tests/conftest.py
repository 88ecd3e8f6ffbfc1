from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from both_clients import BlockingClient, LoopThread, MakeClient
from fake_server import FakeServicer, start_server

from taste_grpc_client import TasteClient


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
