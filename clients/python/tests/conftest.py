from __future__ import annotations

from collections.abc import Iterator
from concurrent import futures

import grpc
import pytest
from echo_server import EchoServicer

from taste.v1 import taste_pb2_grpc


@pytest.fixture
def servicer() -> EchoServicer:
    return EchoServicer()


@pytest.fixture
def target(servicer: EchoServicer) -> Iterator[str]:
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=8))
    taste_pb2_grpc.add_TasteServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None).wait()
