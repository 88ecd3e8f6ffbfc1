"""Refused calls are made again; attempts are counted on the server."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import grpc
import pytest
from both_clients import MakeClient
from fake_server import FakeServicer, Refusals, start_server
from google.rpc import code_pb2

from taste.v1 import common_pb2
from taste_grpc_client import (
    CallCancelledError,
    InvalidArgumentError,
    MessageTooLargeError,
    OverloadedError,
    Retry,
    UnavailableError,
    text_segment,
)

CLIP = bytes(1_000_000)
LARGE = bytes(16 * 1024 * 1024)
FAST = Retry(initial_backoff_s=0.001, max_backoff_s=0.002)


def tokenize(client: Any, clip: bytes = CLIP) -> str:
    return str(client.tokenize(clip, text="yes", sample_rate_hz=16000).text)


@pytest.mark.parametrize("code", [code_pb2.UNAVAILABLE, code_pb2.RESOURCE_EXHAUSTED])
def test_a_large_request_is_made_again_when_the_server_says(client: Any, servicer: FakeServicer, code: int) -> None:
    servicer.refusals = Refusals(times=2, code=code)
    assert tokenize(client) == "yes"
    assert servicer.attempts == ["Tokenize"] * 3
    assert servicer.received[0].audio.data == CLIP


def test_without_a_wish_of_the_server_the_client_waits_as_it_was_told(
    make_client: MakeClient, target: str, servicer: FakeServicer
) -> None:
    servicer.refusals = Refusals(times=3, wish_ms=None)
    assert tokenize(make_client(target, retry=FAST)) == "yes"
    assert servicer.attempts == ["Tokenize"] * 4


def test_attempts_are_limited_and_the_last_refusal_is_told(client: Any, servicer: FakeServicer) -> None:
    servicer.refusals = Refusals(times=99)
    with pytest.raises(OverloadedError, match="not now") as refused:
        tokenize(client)
    assert servicer.attempts == ["Tokenize"] * 4
    assert (refused.value.retry_after_s, refused.value.reason) == (0.001, "ERROR_REASON_OVERLOADED")


@pytest.mark.parametrize(
    ("retry", "refusals", "attempts"),
    [
        (None, Refusals(times=99), 1),
        (Retry(max_attempts=2), Refusals(times=99), 2),
        (Retry(codes=(grpc.StatusCode.UNAVAILABLE,)), Refusals(times=99), 1),
        (Retry(), Refusals(times=99, wish_ms=-1), 1),
        (Retry(), Refusals(times=99, wish_ms=3_600_001), 1),
        (Retry(), Refusals(times=99, wish_ms=10**14), 1),
        (Retry(), Refusals(times=99, code=code_pb2.INTERNAL), 1),
        (Retry(), Refusals(times=99, code=code_pb2.UNAUTHENTICATED), 1),
    ],
    ids=["none", "two", "other code", "server says never", "much later", "in ages", "fault", "stranger"],
)
def test_what_is_not_tried_again(
    make_client: MakeClient, target: str, servicer: FakeServicer, retry: Retry | None, refusals: Refusals, attempts: int
) -> None:
    servicer.refusals = refusals
    with pytest.raises(Exception, match="not now"):
        tokenize(make_client(target, retry=retry))
    assert servicer.attempts == ["Tokenize"] * attempts


def test_a_stream_is_begun_again_before_its_first_message(client: Any, servicer: FakeServicer) -> None:
    servicer.refusals = Refusals(times=2)
    results = list(client.generate([text_segment("hi")], seed=3))
    assert [result.index for result in results] == [0, 1, 2]
    assert servicer.attempts == ["Generate"] * 3


def test_a_stream_that_has_begun_is_not(client: Any, servicer: FakeServicer) -> None:
    servicer.refusals = Refusals(times=2, after=1)
    stream = client.generate([text_segment("hi")], seed=3)
    assert next(stream).index == 0
    with pytest.raises(OverloadedError, match="not now"):
        next(stream)
    assert list(stream) == []
    assert servicer.attempts == ["Generate"]


def test_segments_that_were_sent_are_sent_again(client: Any, servicer: FakeServicer) -> None:
    servicer.refusals = Refusals(times=2)
    taken = []

    def segments() -> Iterator[common_pb2.Segment]:
        for text in ("a", "b" * 400_000, "c"):
            taken.append(text[0])
            yield text_segment(text)

    chunks = list(client.detokenize(segments(), speaker=[1.0]))
    assert [chunk.audio[:1] for chunk in chunks] == [b"a", b"b", b"c"]
    assert servicer.attempts == ["Detokenize"] * 3
    assert taken == ["a", "b", "c"], "the caller's segments are asked for once"


def test_speech_is_not_begun_again_when_more_was_sent_than_is_kept(
    make_client: MakeClient, target: str, servicer: FakeServicer
) -> None:
    servicer.refusals = Refusals(times=99)
    client = make_client(target, retry=Retry(buffer_bytes=1000))
    with pytest.raises(OverloadedError):
        list(client.detokenize([text_segment("x" * 1000)], speaker=[1.0]))
    assert servicer.attempts == ["Detokenize"]


def test_speech_that_has_begun_is_not_begun_again(client: Any, servicer: FakeServicer) -> None:
    servicer.refusals = Refusals(times=2, after=1)
    stream = client.detokenize([text_segment("a"), text_segment("b")], speaker=[1.0])
    assert next(stream).audio == b"a"
    with pytest.raises(OverloadedError):
        next(stream)
    assert servicer.attempts == ["Detokenize"]


def test_both_calls_of_a_spoken_answer_are_made_again(client: Any, servicer: FakeServicer) -> None:
    servicer.refusals = Refusals(times=2)
    stream = client.speak([text_segment("hi")], speaker=[1.0], seed=3)
    assert [chunk.audio for chunk in stream] == [b"w0", b"w1", b"w2"]
    assert sorted(servicer.attempts) == ["Detokenize"] * 3 + ["Generate"] * 3
    assert [result.index for result in stream.results] == [0, 1, 2]


@pytest.mark.parametrize(("refused", "other"), [("Generate", "Detokenize"), ("Detokenize", "Generate")])
def test_a_spoken_answer_fails_once_one_of_its_calls_has(
    client: Any, servicer: FakeServicer, refused: str, other: str
) -> None:
    servicer.refusals = Refusals(times=99, only=refused)
    stream = client.speak([text_segment("hi")], speaker=[1.0])
    with pytest.raises(OverloadedError, match="not now"):
        list(stream)
    assert servicer.attempts.count(refused) == 4
    assert servicer.attempts.count(other) <= 1
    assert list(stream) == []


def test_cancel_ends_the_wait_for_another_attempt(client: Any, servicer: FakeServicer) -> None:
    servicer.refusals = Refusals(times=99, wish_ms=600_000)
    for stream in (client.generate([text_segment("hi")]), client.speak([text_segment("hi")], speaker=[1.0])):
        canceller = threading.Timer(0.2, stream.cancel)
        canceller.start()
        with pytest.raises(CallCancelledError):
            list(stream)
        canceller.join()
        assert list(stream) == []


def test_a_wait_that_outlasts_the_call_is_not_begun(client: Any, servicer: FakeServicer) -> None:
    servicer.refusals = Refusals(times=99, wish_ms=600_000)
    with pytest.raises(OverloadedError, match="not now"):
        client.tokenize(b"RIFF....WAVE", text="hi", timeout_s=30)
    with pytest.raises(OverloadedError, match="not now"):
        list(client.generate([text_segment("hi")], timeout_s=30))
    assert servicer.attempts == ["Tokenize", "Generate"]


class Arrivals(grpc.ServerInterceptor):
    """Counts calls, also those whose request gRPC refuses before the servicer sees it."""

    def __init__(self) -> None:
        self.count = 0

    def intercept_service(self, continuation: Any, details: Any) -> Any:
        self.count += 1
        return continuation(details)


def test_what_is_too_large_is_sent_once(make_client: MakeClient, servicer: FakeServicer) -> None:
    arrivals = Arrivals()
    with ExitStack() as stack:
        client = make_client(f"127.0.0.1:{start_server(servicer, stack, interceptor=arrivals)}")
        with pytest.raises(MessageTooLargeError, match="larger than max") as refused:
            tokenize(client, LARGE)
        assert isinstance(refused.value, ValueError)
        assert (refused.value.code, refused.value.retry_after_s) == (grpc.StatusCode.RESOURCE_EXHAUSTED, None)
        assert (arrivals.count, servicer.attempts) == (1, [])
        assert tokenize(client, LARGE[:-1000]) == "yes"


def test_an_answer_that_is_too_large_says_so(client: Any) -> None:
    with pytest.raises(MessageTooLargeError, match="larger than max"):
        list(client.detokenize([text_segment("x" * 10_000_000)] * 2 + [text_segment("y" * 16_777_210)], speaker=[1.0]))


def test_other_refusals_are_final(client: Any, servicer: FakeServicer) -> None:
    with pytest.raises(InvalidArgumentError):
        client.tokenize(b"RIFF....WAVE", text="bad")
    assert servicer.attempts == ["Tokenize"]


def test_an_absent_server_is_asked_for_again_and_then_named(make_client: MakeClient) -> None:
    with pytest.raises(UnavailableError, match=r"nothing listens at 127\.0\.0\.1:1; is the server running\?"):
        make_client("127.0.0.1:1", retry=FAST).model_info(timeout_s=30)


@pytest.mark.parametrize(
    ("wrong", "name"),
    [
        ({"max_attempts": 1}, "max_attempts"),
        ({"initial_backoff_s": -0.1}, "initial_backoff_s"),
        ({"max_backoff_s": float("inf")}, "max_backoff_s"),
        ({"backoff_multiplier": float("nan")}, "backoff_multiplier"),
        ({"codes": ()}, "codes"),
        ({"codes": (grpc.StatusCode.INTERNAL,)}, "codes"),
        ({"buffer_bytes": -1}, "buffer_bytes"),
    ],
)
def test_what_cannot_be_is_refused_at_once(wrong: dict[str, Any], name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name}: "):
        Retry(**wrong)
