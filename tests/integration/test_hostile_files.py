"""Audio files that lie: read or refused, in bounded time and memory, and never with the process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import grpc
import pytest
import pytest_asyncio

from taste.v1 import taste_pb2
from taste_grpc.engine import EngineSettings, LocalEngine
from tests.checkpoints import TINY
from tests.support.contract import check_tokenized, model_work
from tests.support.details import read_failure
from tests.support.hostile_files import HOSTILE, RARE, clip
from tests.support.live_server import Live, live_server

ROOT = Path(__file__).parents[2]
_MAX_GROWTH_KIB = 150 << 10  # ten times the largest file


def test_every_file_is_decoded_in_bounded_memory() -> None:
    """In a process of their own, which a decoder may bring down, and which is ended when it does not get ready."""
    run = subprocess.run(
        [sys.executable, "-m", "tests.support.hostile_files"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    # the decoder of MP3 writes about what it finds, to stderr; nothing else may write to stdout
    result = json.loads(run.stdout)
    assert result["outcomes"] == dict.fromkeys(RARE, "read") | dict.fromkeys(HOSTILE, "audio.data")
    assert result["grown_kib"] < _MAX_GROWTH_KIB


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def live():
    async with live_server(LocalEngine(EngineSettings(model=TINY, device="cpu", threads=1))) as live:
        yield live


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("name", HOSTILE)
async def test_files_that_lie_are_refused(name: str, live: Live):
    before = model_work(live.engine)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await live.stub.Tokenize(taste_pb2.TokenizeRequest(audio=clip(HOSTILE[name]), text="hi"))
    failure = read_failure(refused.value)
    assert (failure.code, failure.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["audio.data"])
    assert model_work(live.engine) == before
    await live.stub.GetModelInfo(taste_pb2.GetModelInfoRequest())


@pytest.mark.asyncio(loop_scope="module")
async def test_files_that_are_merely_rare_are_heard(live: Live):
    for name in ("PCM_24 WAV", "FLAC of millions of blocks", "Opus of several streams", "MP3 before much noise"):
        answer = await live.stub.Tokenize(taste_pb2.TokenizeRequest(audio=clip(RARE[name]), text="hi"))
        check_tokenized(answer, live.engine.info)
