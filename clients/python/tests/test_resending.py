"""What was sent before an attempt failed is sent again whole: gRPC's own attempts lose messages now and then."""

from __future__ import annotations

from typing import Any

import pytest
from both_clients import MakeClient
from closing_server import ClosingServer
from fake_server import FakeServicer, Refusals

from taste_grpc_client import Retry, text_segment

TEXTS = ["a", "b" * 100_000, "c", "d", "e"]
SOON = Retry(max_attempts=8, initial_backoff_s=0.02)


def test_refused_speech(client: Any, servicer: FakeServicer) -> None:
    for _ in range(20):
        servicer.attempts.clear()
        servicer.refusals = Refusals(times=2)
        chunks = list(client.detokenize(map(text_segment, TEXTS), speaker=[1.0]))
        assert [chunk.audio[:1] for chunk in chunks] == [b"a", b"b", b"c", b"d", b"e"]
        assert len(servicer.attempts) == 3


@pytest.mark.parametrize("after", [0, 1, 2, 4])
def test_connections_that_are_closed(make_client: MakeClient, after: int) -> None:
    for _ in range(8):
        with ClosingServer(after) as server:
            client = make_client(server.target, retry=SOON)
            assert list(client.detokenize(map(text_segment, TEXTS), speaker=[1.0], timeout_s=30)) == []
            client.close()
        (heard,) = server.heard
        assert heard[0].HasField("config")
        assert [request.segment.text for request in heard[1:]] == TEXTS
