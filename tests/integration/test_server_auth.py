"""Bearer tokens over the wire: who gets in, what the others are told, and what the log says of both."""

from __future__ import annotations

import asyncio
import logging

import grpc
import pytest
from grpc_channelz.v1 import channelz_pb2, channelz_pb2_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from taste.v1 import dialogue_pb2, dialogue_pb2_grpc, taste_pb2
from tests.support import messages
from tests.support.certificates import replace
from tests.support.details import Failure, read_failure
from tests.support.live_server import Live, live_server, until
from tests.support.log_lines import events, lines
from tests.support.recording_engine import RecordingEngine

ALICE, BOB, STRANGER = "alice-0123456789", "bob-0123456789ab", "stranger-0123456"
SECRETS = (ALICE, BOB, STRANGER)
TOKENS = {"alice": ALICE, "bob": BOB}
UNKNOWN = ("/taste.v1.TasteService/Sing", "/taste.v2.TasteService/Generate", "/nobody/knows", "nonsense")

METHODS = {
    "GetModelInfo": lambda live, **more: live.stub.GetModelInfo(taste_pb2.GetModelInfoRequest(), **more),
    "Tokenize": lambda live, **more: live.stub.Tokenize(messages.tokenize_request(), **more),
    "Generate": lambda live, **more: live.stub.Generate(messages.generate_request(), **more).read(),
    "Detokenize": lambda live, **more: live.stub.Detokenize(iter(messages.detokenize_requests()), **more).read(),
    "Converse": lambda live, **more: (
        dialogue_pb2_grpc.DialogueServiceStub(live.channel)
        .Converse(iter([dialogue_pb2.ConverseRequest()]), **more)
        .read()
    ),
    "Reply": lambda live, **more: (
        dialogue_pb2_grpc.DialogueServiceStub(live.channel).Reply(dialogue_pb2.ReplyRequest(), **more).read()
    ),
    "ServerReflectionInfo": lambda live, **more: (
        reflection_pb2_grpc.ServerReflectionStub(live.channel)
        .ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="*")]), **more)
        .read()
    ),
    "GetServers": lambda live, **more: channelz_pb2_grpc.ChannelzStub(live.channel).GetServers(
        channelz_pb2.GetServersRequest(), **more
    ),
}


def bearer(token: str) -> dict[str, tuple[tuple[str, str], ...]]:
    return {"metadata": (("authorization", f"Bearer {token}"),)}


async def failure(call) -> Failure:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call
    return read_failure(refused.value)


def call_lines(caplog) -> list[dict]:
    return events(caplog, "call")


def no_secret(caplog) -> bool:
    logged = "\n".join(lines(caplog))
    return not any(secret in logged for secret in SECRETS) and "Traceback" not in logged


@pytest.fixture(autouse=True)
def _log_everything(caplog):
    caplog.set_level(logging.DEBUG)


@pytest.mark.parametrize(
    ("entries", "why"),
    [
        ([], "the call carries no token; send metadata `authorization: Bearer TOKEN`"),
        ([f"Bearer {STRANGER}"], "the token is not known here"),
        ([ALICE], "the authorization entry is not of the form `Bearer TOKEN`"),
        ([f"Basic {ALICE}"], "the authorization entry is not of the form `Bearer TOKEN`"),
        ([f"Bearer {STRANGER}", f"Bearer {ALICE}"], "the call carries 2 authorization entries; send one"),
        ([f"Bearer {ALICE}", f"Bearer {ALICE}"], "the call carries 2 authorization entries; send one"),
    ],
    ids=["no token", "wrong token", "no scheme", "another scheme", "two tokens", "twice the token"],
)
@pytest.mark.parametrize("method", METHODS)
async def test_strangers_are_refused_on_every_method(method, entries, why, caplog):
    metadata = tuple(("authorization", entry) for entry in entries)
    async with live_server(RecordingEngine(), tokens=TOKENS, channelz=True) as live:
        refused = await failure(METHODS[method](live, metadata=metadata))
        assert (refused.code, refused.message) == (grpc.StatusCode.UNAUTHENTICATED, why)
        assert (refused.reason, refused.domain) == ("ERROR_REASON_UNAUTHENTICATED", "taste-grpc")
        assert live.engine.requests == []
        await until(lambda: bool(call_lines(caplog)))  # it is written after the answer
        (line,) = call_lines(caplog)
        assert line["level"] == "INFO"
        assert (line["code"], line["why"], line["request_id"]) == ("UNAUTHENTICATED", why, refused.request_id)
        assert line["method"].endswith(f"/{method}")
        assert line["peer"].startswith("ipv4:127.0.0.1:")
        assert "client" not in line
    assert no_secret(caplog)


@pytest.mark.parametrize("method", METHODS)
async def test_holders_of_tokens_get_in_and_the_log_names_them(method, caplog):
    async with live_server(RecordingEngine(), tokens=TOKENS, channelz=True) as live:
        for token in (ALICE, BOB):
            if method in ("Converse", "Reply"):
                refused = await failure(METHODS[method](live, **bearer(token)))
                assert refused.code is grpc.StatusCode.UNIMPLEMENTED
            else:
                await METHODS[method](live, **bearer(token))
    if method != "GetServers":  # no coroutine: gRPC's own code, which logs nothing
        assert [line["client"] for line in call_lines(caplog)] == ["alice", "bob"]
    assert no_secret(caplog)


async def test_health_asks_for_no_token_even_when_a_wrong_one_comes():
    async with live_server(RecordingEngine(), tokens=TOKENS) as live:
        stub = health_pb2_grpc.HealthStub(live.channel)
        for more in ({}, bearer(STRANGER), bearer(ALICE)):
            answer = await stub.Check(health_pb2.HealthCheckRequest(), **more)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
            watched = await stub.Watch(health_pb2.HealthCheckRequest(), **more).read()
            assert watched.status == health_pb2.HealthCheckResponse.SERVING


async def test_strangers_cannot_tell_which_methods_there_are(caplog):
    """Nor which of what can be switched off is on."""

    async def told(live: Live, method: str) -> tuple:
        refused = await failure(live.channel.unary_unary(method)(b"", **bearer(STRANGER)))
        return refused.code, refused.message, refused.reason, refused.trailer_bytes

    known = "/taste.v1.TasteService/GetModelInfo"
    reflection = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
    async with live_server(RecordingEngine(), tokens=TOKENS, reflection=False) as live:
        answers = {await told(live, method) for method in (known, *UNKNOWN, reflection)}
    async with live_server(RecordingEngine(), tokens=TOKENS) as live:
        answers |= {await told(live, reflection)}
        assert len(answers) == 1
        friend = await failure(live.channel.unary_unary(UNKNOWN[0])(b"", **bearer(ALICE)))
        assert friend.code is grpc.StatusCode.UNIMPLEMENTED
    assert [line["method"] for line in call_lines(caplog)] == [
        known,
        *UNKNOWN[:3],
        "(no method's name)",
        reflection,
        reflection,
    ]


async def test_the_token_is_asked_for_before_the_request_is_read():
    async with live_server(RecordingEngine(), tokens=TOKENS, limits={"max_request_bytes": 1 << 20}) as live:
        call = live.channel.unary_unary("/taste.v1.TasteService/Tokenize")
        for request in (b"no message", b"\xff" * 3_000_000, messages.tokenize_request("\0").SerializeToString()):
            refused = await failure(call(request))
            assert (refused.code, refused.fields) == (grpc.StatusCode.UNAUTHENTICATED, [])
        too_much = await failure(call(b"\xff" * 3_000_000, **bearer(ALICE)))
        assert too_much.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        never_sent = live.stub.Detokenize()
        assert (await failure(never_sent.read())).code is grpc.StatusCode.UNAUTHENTICATED


async def test_a_caller_that_is_still_writing_is_told_why():
    async with live_server(RecordingEngine(), tokens=TOKENS) as live:
        for _ in range(20):
            refused = await failure(live.stub.Detokenize(iter(messages.detokenize_requests(50))).read())
            assert refused.code is grpc.StatusCode.UNAUTHENTICATED


async def test_refusals_hurt_nobody_else(caplog):
    engine = RecordingEngine()
    engine.held.clear()
    async with live_server(engine, tokens=TOKENS) as live:
        call = live.stub.Generate(messages.generate_request(), **bearer(ALICE))
        running = asyncio.ensure_future(call.read())
        await until(lambda: engine.events["generate"] == 1)
        refusals = await asyncio.gather(
            *(failure(METHODS[method](live)) for method in ("Tokenize", "Generate", "Detokenize") for _ in range(30))
        )
        assert {refused.code for refused in refusals} == {grpc.StatusCode.UNAUTHENTICATED}
        assert len({refused.request_id for refused in refusals}) == 90
        engine.held.set()
        assert (await running).index == 0
        assert [(await call.read()).index for _ in range(4)] == [1, 2, 3, 4]
        assert engine.events["generate:begin"] == 1
    assert engine.running == 0
    assert no_secret(caplog)


async def test_tokens_may_be_given_and_taken_away_while_the_server_runs(tmp_path, caplog):
    file = tmp_path / "tokens.toml"
    replace(file, f'bob = "{BOB}"\n')
    engine = RecordingEngine()
    async with live_server(engine, tokens={"alice": ALICE}, tokens_file=file) as live:
        engine.held.clear()
        call = live.stub.Generate(messages.generate_request(), **bearer(BOB))
        running = asyncio.ensure_future(call.read())
        await until(lambda: engine.events["generate"] == 1)
        replace(file, f'carol = "{STRANGER}"\n')
        assert (await failure(METHODS["GetModelInfo"](live, **bearer(BOB)))).code is grpc.StatusCode.UNAUTHENTICATED
        await METHODS["GetModelInfo"](live, **bearer(STRANGER))
        await METHODS["GetModelInfo"](live, **bearer(ALICE))
        engine.held.set()
        assert (await running).index == 0, "a call that got in goes on"
        replace(file, f'carol = "{STRANGER}')
        await METHODS["GetModelInfo"](live, **bearer(STRANGER))
        await METHODS["GetModelInfo"](live, **bearer(STRANGER))
    assert [line["holders"] for line in events(caplog, "tokens read again")] == ["alice, carol"]
    (broken,) = events(caplog, "changed tokens not taken")
    assert f"tokens_file: {file}: is no TOML" in broken["why"]
    assert no_secret(caplog)


@pytest.mark.parametrize("tokens", [{}, TOKENS])
async def test_the_start_says_how_the_door_stands(tokens, caplog):
    async with live_server(RecordingEngine(), tokens=tokens):
        (listening,) = events(caplog, "listening")
    assert (listening["tls"], listening["tokens"]) == ("off", len(tokens))
    assert not [line for line in events(caplog, above=logging.INFO) if "address" in line]
    caplog.clear()
    async with live_server(RecordingEngine(), tokens=tokens, host="0.0.0.0"):
        (warned,) = [line for line in events(caplog, above=logging.INFO) if "address" in line]
    assert warned["event"].startswith("tokens travel in plain text" if tokens else "whoever reaches this address")


async def test_without_tokens_a_token_is_no_matter(caplog):
    async with live_server(RecordingEngine()) as live:
        await METHODS["Generate"](live, **bearer(STRANGER))
        await METHODS["Generate"](live, metadata=(("authorization", "a"), ("authorization", "b")))
    assert [line.get("client") for line in call_lines(caplog)] == [None, None]
    assert no_secret(caplog)
