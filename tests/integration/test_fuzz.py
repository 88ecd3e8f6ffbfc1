"""Made-up requests over the wire: whatever comes, the server answers as the contract says, and goes on.

2,000 of them, the same in every run; FUZZ_EXAMPLES asks for more, of another kind each time (`make fuzz`).
"""

from __future__ import annotations

import asyncio
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest
from google.protobuf.message import DecodeError, Message
from grpc_health.v1 import health_pb2, health_pb2_grpc
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from torch import Tensor

from taste.v1 import taste_pb2
from taste_grpc.engine import EngineSettings, LocalEngine
from tests.checkpoints import WEIGHTS, edit_tensors, write_chat_checkpoint
from tests.support import contract, fuzzing, messages
from tests.support.details import read_failure
from tests.support.field_paths import check_field_path
from tests.support.live_server import until
from tests.support.served import Served, served

ASKED = os.environ.get("FUZZ_EXAMPLES")
EXAMPLES = int(ASKED or 2000)
HANGS_S = 60
"""No call takes this long."""
LIMITS = {
    "max_length": 3,
    "max_extra_words": 4,
    "max_text_tokens": 64,
    "max_text_bytes": 256,
    "max_audio_ms": 1_000,
    "min_reference_ms": 50,
    "max_request_audio_ms": 1_500,
    "max_segments": 8,
    "max_request_bytes": 1 << 20,
}

SHARES = {"Tokenize": 0.15, "Generate": 0.45, "Detokenize": 0.15, "bytes": 0.25}
SPOILT = {"Tokenize": (0, 1, 2, 3, 4, 4), "Generate": (0, 1, 1, 2, 3), "Detokenize": (0, 1, 2, 3, 4, 4)}
"""How often something is done to a good request, by method: what is answered costs more than what is refused."""

pytestmark = pytest.mark.timeout(180 + EXAMPLES // 5)


def examples(share: float) -> settings:
    """Settings of a test that sends `share` of all requests."""
    return settings(
        max_examples=max(1, round(EXAMPLES * share)),
        derandomize=ASKED is None,
        database=None,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
        print_blob=True,
    )


@dataclass
class Target:
    """The server under fire; `endings` counts how calls of each method ended, `refused` the fields that were named."""

    served: Served
    channel: grpc.Channel
    inventor: fuzzing.Inventor
    endings: Counter[tuple[str, str]] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)

    @property
    def spoiler(self) -> fuzzing.Spoiler:
        info = self.inventor.info
        limits = (value for value in LIMITS.values() if value < 10_000)
        return fuzzing.Spoiler((info.vq_dim, info.codebook_size, info.text_vocab_size, *limits))

    @property
    def engine(self) -> LocalEngine:
        return self.served.live.engine

    def call(self, method: str, requests: Sequence[bytes]) -> tuple[list[Message], grpc.RpcError | None]:
        """The answers, and the error that the call ended with if it did."""
        path, answer = f"/taste.v1.TasteService/{method}", ANSWERS[method]
        answers: list[Message] = []
        try:
            if method == "Detokenize":
                stub = self.channel.stream_stream(path, response_deserializer=answer.FromString)
                answers.extend(stub(iter(requests), timeout=HANGS_S))
            elif method == "Generate":
                stub = self.channel.unary_stream(path, response_deserializer=answer.FromString)
                answers.extend(stub(requests[0], timeout=HANGS_S))
            else:
                stub = self.channel.unary_unary(path, response_deserializer=answer.FromString)
                answers.append(stub(requests[0], timeout=HANGS_S))
        except grpc.RpcError as error:
            return answers, error
        return answers, None


ANSWERS: dict[str, Any] = {
    "GetModelInfo": taste_pb2.GetModelInfoResponse,
    "Tokenize": taste_pb2.TokenizeResponse,
    "Generate": taste_pb2.StreamingResult,
    "Detokenize": taste_pb2.DetokenizeResponse,
}
REQUESTS: dict[str, Any] = {
    "GetModelInfo": taste_pb2.GetModelInfoRequest,
    "Tokenize": taste_pb2.TokenizeRequest,
    "Generate": taste_pb2.GenerateRequest,
    "Detokenize": taste_pb2.DetokenizeRequest,
}


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    checkpoint = write_chat_checkpoint(tmp_path_factory.mktemp("fuzz") / "taste-chat")
    edit_tensors(checkpoint / WEIGHTS, _say_little)

    def engine() -> LocalEngine:
        return LocalEngine(
            EngineSettings(checkpoint, device="cpu", threads=1, max_text_tokens=LIMITS["max_text_tokens"])
        )

    with served(engine, limits=LIMITS) as server, grpc.insecure_channel(server.address) as channel:
        info = server.live.engine.info
        target = Target(server, channel, fuzzing.Inventor(info, (b"",), LIMITS["min_reference_ms"]))
        spoken, error = target.call("Detokenize", [one.SerializeToString() for one in _two_words(info)])
        assert error is None
        states = tuple(one.resume_state for one in spoken)
        target.inventor = fuzzing.Inventor(info, states, LIMITS["min_reference_ms"])
        tasks = server.run(_task_count())
        yield target
        print(
            f"{EXAMPLES} requests:",
            *(f"{' '.join(ending)} {n}" for ending, n in sorted(target.endings.items())),
            sep="\n  ",
        )
        server.run(_settled(tasks))


def _say_little(tensors: dict[str, Tensor]) -> None:
    """Let speech end as early as the length rule allows: most of what it costs is its length."""
    tensors["speech_decoder.llm_decoder.bias"][-1] += 99


def _two_words(info: Any) -> list[taste_pb2.DetokenizeRequest]:
    config = taste_pb2.DetokenizeRequest(config=messages.config(info.speaker_embedding_dim))
    word = taste_pb2.DetokenizeRequest(segment=messages.word_segment(("hi",), info.vq_dim))
    return [config, word, word]


async def _task_count() -> int:
    return len(asyncio.all_tasks())


async def _settled(tasks: int) -> None:
    """Wait until there are no more tasks than there were."""
    await until(lambda: len(asyncio.all_tasks()) <= tasks)


def check(target: Target, method: str, requests: Sequence[bytes]) -> None:
    """Send the requests, and hold what comes back against the contract."""
    answers, error = target.call(method, requests)
    code = grpc.StatusCode.OK if error is None else error.code()
    event(f"{method}: {code.name}")
    target.endings[method, code.name] += 1
    sent = parsed(method, requests)
    check_answers(target, method, sent, answers, complete=error is None)
    if error is not None:
        target.refused[check_refusal(error, requests, sent)] += 1
    check_at_rest(target)


def parsed(method: str, requests: Sequence[bytes]) -> list[Message]:
    """Those of the requests that are messages."""
    sent = []
    for data in requests:
        with suppress(DecodeError):
            sent.append(REQUESTS[method].FromString(data))
    return sent


def check_answers(target: Target, method: str, sent: list[Message], answers: list[Any], *, complete: bool) -> None:
    info = target.engine.info
    if method == "Generate":
        (contract.check_answer if complete else contract.check_results)(answers, info)
        assert sum(len(answer.segment.tokens.text_ids) for answer in answers) <= LIMITS["max_length"]
    elif method == "Detokenize" and complete:
        contract.check_speech(answers, segments=len(sent) - 1)
    elif method == "Detokenize":
        contract.check_chunks(answers)
    elif method == "Tokenize" and complete:
        contract.check_tokenized(answers[0], info)


def check_refusal(error: grpc.RpcError, requests: Sequence[bytes], sent: list[Message]) -> str:
    """Returns the path of the field that is named, without indices; empty where there is none to name."""
    failure = read_failure(error)
    if failure.code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        assert max(map(len, requests)) > LIMITS["max_request_bytes"], failure
        return ""
    assert failure.code in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION), failure
    assert failure.request_id
    assert failure.trailer_bytes < 8192
    if failure.code is grpc.StatusCode.FAILED_PRECONDITION:
        assert failure.reason == "ERROR_REASON_MODEL_LACKS_CAPABILITY"
        return ""
    assert failure.reason == "ERROR_REASON_INVALID_FIELD"
    (path,) = failure.fields
    assert failure.descriptions[0]
    if path or len(sent) == len(requests):  # there is no field to blame for what is no message
        check_field_path(path, sent or [taste_pb2.DetokenizeRequest()])
    return re.sub(r"\[\d+\]", "[]", path)


def check_at_rest(target: Target) -> None:
    """Nothing of a call is left, and the server serves."""
    server = target.served.live.server
    target.served.run(server._gate.idle())
    stats = target.engine.stats()
    assert (stats.active_calls, stats.waiting_calls, server._gate.active) == (0, 0, 0)
    health = health_pb2_grpc.HealthStub(target.channel).Check(health_pb2.HealthCheckRequest(), timeout=HANGS_S)
    assert health.status == health_pb2.HealthCheckResponse.SERVING


@st.composite
def invented(draw: fuzzing.Draw, target: Target, method: str) -> list[Message]:
    """A good request, mostly with something done to it, or anything at all."""
    if draw(st.integers(0, 9)) == 0:
        count = draw(st.integers(0, 3)) if method == "Detokenize" else 1
        return [target.spoiler.anything(draw, REQUESTS[method].DESCRIPTOR) for _ in range(count)]
    make: Callable[..., Any] = getattr(target.inventor, method.lower())
    made = make(draw)
    requests: list[Message] = made if isinstance(made, list) else [made]
    for _ in range(draw(st.sampled_from(SPOILT[method]))):
        target.spoiler.spoil(draw, draw(st.sampled_from(requests)))
    return requests


@st.composite
def scrambled(draw: fuzzing.Draw, target: Target) -> tuple[str, list[bytes]]:
    """A method, and requests of which one is not what it was."""
    method = draw(st.sampled_from(sorted(REQUESTS)))
    if method == "GetModelInfo":
        return method, [fuzzing.scramble(draw, b"")]
    sent = [message.SerializeToString() for message in draw(invented(target, method))] or [b""]
    index = draw(st.integers(0, len(sent) - 1))
    sent[index] = fuzzing.scramble(draw, sent[index])
    return method, sent


@pytest.mark.parametrize("method", ["Tokenize", "Generate", "Detokenize"])
def test_messages_nobody_meant(method: str, target: Target) -> None:
    @examples(SHARES[method])
    @given(st.data())
    def send(data: st.DataObject) -> None:
        check(target, method, [message.SerializeToString() for message in data.draw(invented(target, method))])

    send()


@examples(SHARES["bytes"])
@given(st.data())
def test_bytes_nobody_meant(target: Target, data: st.DataObject) -> None:
    check(target, *data.draw(scrambled(target)))


def test_a_good_share_of_them_was_answered(target: Target) -> None:
    """Else the tests above would say little."""
    if EXAMPLES < 2000 or not target.endings:
        pytest.skip("too few requests were sent")
    for method in ("Tokenize", "Generate", "Detokenize"):
        total = sum(count for (called, _), count in target.endings.items() if called == method)
        assert target.endings[method, "OK"] > 0.05 * total, target.endings
        assert target.endings[method, "INVALID_ARGUMENT"] > 0.2 * total, target.endings
    assert len(target.refused) > 50, target.refused
