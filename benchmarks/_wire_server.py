"""The two servers that `wire.py` compares, as a process: ours over an engine that computes nothing, and a bare one.

    python benchmarks/_wire_server.py taste|bare

Prints its port, and ends when its stdin does. Both import the same, so that they differ in what they do with a message
and not in what else fills their memory.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from functools import lru_cache
from typing import Any

import grpc

from taste.v1 import taste_pb2, taste_pb2_grpc
from taste_grpc.engine.answering import RESULTS_AHEAD
from taste_grpc.engine.call_abort import CallAbort
from taste_grpc.engine.calls import Calls
from taste_grpc.engine.model_loop import ModelLoop
from taste_grpc.engine.protocol import (
    CompletionReason,
    DetokenizeChunk,
    DetokenizeConfig,
    EngineStats,
    GenerateRequest,
    GenerateResult,
    ModelInfo,
    SegmentInput,
    TokenizeRequest,
    TokenizeResult,
)
from taste_grpc.observability import configure_logging
from taste_grpc.server import TasteServer, calm_collector
from taste_grpc.server.convert import StreamingResults
from taste_grpc.settings import AdmissionSettings, LimitSettings, MethodAdmission, load_settings
from taste_grpc.streaming.work import Emit, Turn, Work

MAX_STREAMS = 64
TIMING_MS = {"queued": 0.25, "decode": 12.5}
ELAPSED_MS = 1_234.5

INFO = ModelInfo(
    model_id="nothing",
    revision="",
    parts_trained={},
    text_vocab_size=128_256,
    asr_vocab_size=51_866,
    vq_dim=4,
    codebook_size=512,
    speaker_embedding_dim=192,
    input_sample_rate_hz=16_000,
    output_sample_rate_hz=22_050,
    speech_unit_rate_hz=50,
    special_tokens={},
    conversation_formats=("completion",),
    device="none",
    dtype="none",
    asr="",
)


@lru_cache(1)
def results(count: int) -> list[GenerateResult]:
    """Of one word each, as most are; the last, like the others, brings one too."""
    made = []
    for index in range(count):
        last = index == count - 1
        reason: CompletionReason = "finished" if last else "continuing"
        codes = ((17, 301, 42, 508),)
        made.append(GenerateResult(last, reason, " hello", (24_748,), (index,), codes, index, ("hello",), TIMING_MS))
    return made


class IdleEngine:
    """Answers Generate with `max_length` results, which go the way that those of a model go; offers nothing else."""

    def __init__(self, streams: int = MAX_STREAMS) -> None:
        self._loop = ModelLoop("idle-model")
        self._calls = Calls(AdmissionSettings(generate=MethodAdmission(active=streams, waiting=streams)))

    @property
    def info(self) -> ModelInfo:
        """Of no model."""
        return INFO

    async def start(self) -> None:
        """There is nothing to load."""

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[GenerateResult]:
        """The way of LocalEngine.generate, but for listening, the model, and making words of ids."""
        async with self._calls.enter("generate") as abort:
            work = _emitting(results(request.max_length), abort)
            async with self._loop.emitting(work, abort, RESULTS_AHEAD) as job:
                while batch := await job.take():
                    for made in batch:
                        yield made

    async def tokenize(self, request: TokenizeRequest) -> TokenizeResult:
        """Not offered."""
        raise NotImplementedError

    def detokenize(
        self, config: DetokenizeConfig, segments: AsyncIterator[SegmentInput]
    ) -> AsyncGenerator[DetokenizeChunk]:
        """Not offered."""
        raise NotImplementedError

    def stats(self) -> EngineStats:
        """Of the calls."""
        calls = self._calls
        return EngineStats(calls.active, calls.waiting, calls.completed, calls.cancelled, calls.failed, 0, 0, 0)

    async def failed(self) -> None:
        """Never."""
        await asyncio.Event().wait()

    async def drain(self, grace_s: float) -> None:
        """Let calls end, and the thread."""
        await self._calls.drain(grace_s)
        await asyncio.to_thread(self._loop.close)


def _emitting(made: Sequence[GenerateResult], abort: CallAbort) -> Work[None]:
    yield Turn()
    for each in made:
        abort()
        yield Emit(each)


class BareService(taste_pb2_grpc.TasteServiceServicer):
    """Sends messages of the same content."""

    async def GetModelInfo(self, request: Any, context: Any) -> Any:
        """Not offered."""
        raise NotImplementedError

    async def Tokenize(self, request: Any, context: Any) -> Any:
        """Not offered."""
        raise NotImplementedError

    def Detokenize(self, request_iterator: Any, context: Any) -> AsyncIterator[Any]:
        """Not offered."""
        raise NotImplementedError

    async def Generate(
        self, request: taste_pb2.GenerateRequest, context: Any
    ) -> AsyncGenerator[taste_pb2.StreamingResult]:
        """`max_length` messages, all made beforehand."""
        for message in messages(request.max_length):
            yield message


@lru_cache(1)
def messages(count: int) -> list[taste_pb2.StreamingResult]:
    """What our server makes of the results."""
    limit = LimitSettings().max_text_bytes
    return [StreamingResults(limit).message(each, ELAPSED_MS) for each in results(count)]


async def serve_taste() -> tuple[TasteServer, int]:
    """Our server, and its port."""
    server = TasteServer(load_settings({"port": 0, "host": "127.0.0.1"}), IdleEngine)
    await server.start()
    await server.loaded()
    return server, server.port


async def serve_bare() -> tuple[grpc.aio.Server, int]:
    """The bare server with gRPC's own settings, and its port."""
    server = grpc.aio.server()
    taste_pb2_grpc.add_TasteServiceServicer_to_server(BareService(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    return server, port


async def main(side: str) -> None:
    """Serve until stdin ends."""
    configure_logging("info", "json")
    taste, bare = None, None
    if side == "taste":
        taste, port = await serve_taste()
    else:
        bare, port = await serve_bare()
    calm_collector()  # as `taste-grpc serve` does once it has loaded
    print(port, flush=True)
    await asyncio.to_thread(sys.stdin.read)
    if taste is not None:
        await taste.stop()
    if bare is not None:
        await bare.stop(0)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
