"""Recognisers for many conversations on one event loop."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

from taste_grpc.audio.waveform import Float32Array
from taste_grpc.errors import SpeechError, TasteError
from taste_grpc.speech.recogniser import Recogniser, known_language


@dataclass(order=True)
class _Request:
    rank: tuple[bool, int]  # urgent ones first, each kind in its order
    samples: Float32Array = field(compare=False)
    language: str | None = field(compare=False)
    result: asyncio.Future[str] = field(compare=False)


class _Desk:
    """One recogniser on a thread of its own, where it is made, used and freed."""

    def __init__(self, make: Callable[[], Recogniser], index: int) -> None:
        self._make = make
        self._recogniser: Recogniser | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"recogniser-{index}")

    def load(self) -> Future[None]:
        return self._thread.submit(self._load)

    def transcribe(self, samples: Float32Array, language: str | None) -> Future[str]:
        return self._thread.submit(self._transcribe, samples, language)

    @property
    def recogniser(self) -> Recogniser:
        """Once loaded; its name and languages may be read on any thread."""
        assert self._recogniser is not None, "the recogniser has not been loaded"
        return self._recogniser

    def free(self) -> Future[None]:
        """Once what is under way has ended, free the recogniser and end the thread."""
        freed = self._thread.submit(self._free)
        self._thread.shutdown(wait=False)
        return freed

    def join(self) -> None:
        self._thread.shutdown(wait=True)

    def _load(self) -> None:
        self._recogniser = self._make()

    def _transcribe(self, samples: Float32Array, language: str | None) -> str:
        return self.recogniser.transcribe(samples, language)

    def _free(self) -> None:
        self._recogniser = None


class RecogniserPool:
    """Decodes one request per recogniser at a time; those that wait are taken urgent ones first, then in order.

    Used from one event loop.

    Args:
        make: makes a recogniser; called on the thread that will use it, `size` times.
        size: how many recognisers, and requests decoded at once.
    """

    def __init__(self, make: Callable[[], Recogniser], size: int = 1) -> None:
        if size < 1:
            raise ValueError(f"a pool has at least one recogniser, not {size}")
        self._desks = [_Desk(make, index) for index in range(size)]
        self._free: list[_Desk] = []
        self._requests: list[_Request] = []
        self._count = 0
        self._is_open = False

    @property
    def name(self) -> str:
        """Of its recognisers; after `start`."""
        return self._desks[0].recogniser.name

    def check_language(self, language: str | None) -> None:
        """Raise UnsupportedByModelError unless the recognisers know `language`, a BCP 47 tag; None they do."""
        known_language(self._desks[0].recogniser, language)

    @property
    def busy(self) -> int:
        """Requests that are being decoded, those that nobody waits for any more among them."""
        return len(self._desks) - len(self._free) if self._is_open else 0

    @property
    def waiting(self) -> int:
        """Requests that wait for a recogniser."""
        return sum(not request.result.done() for request in self._requests)

    async def start(self) -> None:
        """Load the recognisers, all at once. What `make` raises is raised here, and the pool is closed."""
        loads = [asyncio.wrap_future(desk.load()) for desk in self._desks]
        try:
            await asyncio.gather(*loads)
        except BaseException:
            await asyncio.gather(*loads, return_exceptions=True)
            await self.aclose()
            raise
        self._free = list(self._desks)
        self._is_open = True

    async def transcribe(self, samples: Float32Array, *, urgent: bool, language: str | None = None) -> str:
        """What is said in `samples` `[T]` float32 at 16 kHz; `Recogniser.transcribe` says the rest.

        When cancelled, a request that waits is never decoded; one that is being decoded finishes on its thread, and
        its result is dropped.

        Raises:
            SpeechError: the recogniser failed, or the pool is not open.
            UnsupportedByModelError: it does not know the language.
        """
        if not self._is_open:
            raise SpeechError("the recognisers are not running")
        result: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._count += 1
        heapq.heappush(self._requests, _Request((not urgent, self._count), samples, language, result))
        self._dispatch()
        return await result

    async def aclose(self) -> None:
        """Let what is being decoded finish, drop what waits, which raises SpeechError, and end the threads."""
        self._is_open = False
        for request in self._requests:
            if not request.result.done():
                request.result.set_exception(SpeechError("the recognisers have been stopped"))
        self._requests.clear()
        desks, self._desks = self._desks, []
        await asyncio.gather(*(asyncio.wrap_future(desk.free()) for desk in desks))
        for desk in desks:
            desk.join()

    def _dispatch(self) -> None:
        while self._requests and self._free:
            request = heapq.heappop(self._requests)
            if request.result.done():  # cancelled while it waited
                continue
            desk = self._free.pop()
            decoding = asyncio.wrap_future(desk.transcribe(request.samples, request.language))
            decoding.add_done_callback(partial(self._decoded, desk, request))

    def _decoded(self, desk: _Desk, request: _Request, decoding: asyncio.Future[str]) -> None:
        error = decoding.exception()
        if not request.result.done():
            if error is None:
                request.result.set_result(decoding.result())
            elif isinstance(error, TasteError):
                request.result.set_exception(error)
            else:
                failed = SpeechError(f"the recogniser failed: {type(error).__name__}: {error}")
                failed.__cause__ = error
                request.result.set_exception(failed)
        self._free.append(desk)
        if self._is_open:
            self._dispatch()
