"""What only the blocking client can do, or get wrong."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator

import grpc
import pytest
from fake_server import FakeServicer

from taste.v1 import common_pb2
from taste_grpc_client import (
    CallCancelledError,
    Conversation,
    ConversationEndedError,
    ConversationError,
    TasteClient,
    text_segment,
)


@pytest.fixture
def client(target: str) -> Iterator[TasteClient]:
    with TasteClient(target) as opened:
        yield opened


def test_generated_segments_can_be_spoken_while_they_come(client: TasteClient) -> None:
    segments = (text_segment(result.segment.tokens.text) for result in client.generate([text_segment("x")], seed=3))
    assert [chunk.audio for chunk in client.detokenize(segments, speaker=[1.0])] == [b"w0", b"w1", b"w2"]


def test_dropping_a_stream_ends_its_call(client: TasteClient, servicer: FakeServicer) -> None:
    release = threading.Event()

    def segments() -> Iterator[common_pb2.Segment]:
        yield text_segment("one")
        release.wait(30)

    next(client.generate([text_segment("hi")]))
    gc.collect()
    assert servicer.ended["Generate"].wait(10)
    next(client.detokenize(segments(), speaker=[1.0]))
    gc.collect()
    assert servicer.ended["Detokenize"].wait(10)
    release.set()


def test_dropping_spoken_answers_ends_both_calls(client: TasteClient, servicer: FakeServicer) -> None:
    next(client.speak([text_segment("hi")], speaker=[1.0]))
    gc.collect()
    assert servicer.ended["Generate"].wait(10)
    assert servicer.ended["Detokenize"].wait(10)


def test_another_thread_may_cancel(client: TasteClient) -> None:
    release = threading.Event()

    def segments() -> Iterator[common_pb2.Segment]:
        yield text_segment("one")
        release.wait(30)

    stream = client.detokenize(segments(), speaker=[1.0])
    next(stream)
    thread = threading.Thread(target=stream.cancel)
    thread.start()
    with pytest.raises(CallCancelledError):
        next(stream)
    thread.join()
    release.set()


def test_leaving_the_interpreter_reaches_the_reader_too(client: TasteClient) -> None:
    def segments() -> Iterator[common_pb2.Segment]:
        yield text_segment("one")
        sys.exit(3)

    with pytest.raises(SystemExit, match="3"):
        list(client.detokenize(segments(), speaker=[1.0]))


def test_asynchronous_segments_are_refused(client: TasteClient) -> None:
    async def segments() -> AsyncIterator[common_pb2.Segment]:
        yield text_segment("one")

    with pytest.raises(TypeError, match="asynchronous iterable is for AsyncTasteClient"):
        list(client.detokenize(segments(), speaker=[1.0]))  # type: ignore[arg-type]


def test_a_channel_that_was_given_stays_open(target: str) -> None:
    with grpc.insecure_channel(target) as channel:
        for _ in range(2):
            with TasteClient(channel=channel) as client:
                assert client.model_info().vq_dim == 2


@pytest.mark.parametrize("order", ["hello", "deaf", "flood", "fail INTERNAL"])
def test_no_thread_runs_after_a_conversation(target: str, servicer: FakeServicer, order: str) -> None:
    with TasteClient(target) as client, client.converse():
        pass  # what gRPC starts once, and the server's threads
    before = {thread for thread in threading.enumerate() if not thread.name.startswith("ThreadPool")}
    with TasteClient(target, timeout_s=30) as client, client.converse() as talk:
        talk.say(order)
        threads = [threading.Thread(target=work, args=(talk,)) for work in (read, send)]
        for thread in threads:
            thread.start()
        closing = threading.Timer(0.05, talk.close)
        closing.start()
        for thread in [*threads, closing]:
            thread.join(10)
    deadline = time.monotonic() + 10
    while left := {each for each in threading.enumerate() if not each.name.startswith("ThreadPool")} - before:
        assert time.monotonic() < deadline, left
        time.sleep(0.01)


def read(talk: Conversation) -> None:
    try:
        for _ in talk:
            pass
    except (CallCancelledError, ConversationError):
        pass


def send(talk: Conversation) -> None:
    try:
        while True:
            talk.send_audio(bytes(32_000))
    except ConversationEndedError:
        pass


def test_importing_the_client_needs_neither_torch_nor_numpy_nor_the_server() -> None:
    code = (
        "import sys; sys.modules.update(dict.fromkeys(['torch', 'numpy', 'taste_grpc', 'soundfile']));"
        "import taste_grpc_client as c; assert all(hasattr(c, name) for name in c.__all__);"
        "print(len(c.text_segment('x').text))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert (done.stdout.strip(), done.stderr) == ("1", "")
