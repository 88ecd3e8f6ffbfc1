"""The model thread: runs the work of many calls in rounds, and hands what comes of it to the event loop."""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager, suppress
from typing import Any, Generic, Protocol, TypeVar

import torch

from taste_grpc.engine.call_abort import CallAbort
from taste_grpc.engine.scheduler import SLOTS, Scheduler, TurnBudget, Waiting
from taste_grpc.errors import CallAbortedError, TasteError, UnavailableError
from taste_grpc.streaming.work import Emit, Slot, TextSlot, TextStep, Turn, UnitSlot, UnitStep, Want, Work

T = TypeVar("T")

logger = logging.getLogger(__name__)

READ_AHEAD = 4
"""Values a job may be ahead of its reader before it is left out of the rounds, unless it is told otherwise."""

_KINDS = {
    Turn: Waiting.TURN,
    TextStep: Waiting.TEXT_STEP,
    UnitStep: Waiting.UNIT_STEP,
    TextSlot: Waiting.TEXT_SLOT,
    UnitSlot: Waiting.UNIT_SLOT,
    Emit: Waiting.ROOM,
}


class Machine(Protocol):
    """What the jobs of a loop share: networks and caches. Called on the model thread only."""

    def text_steps(self, wants: Sequence[TextStep]) -> Sequence[Any]:
        """One step of the language model for all of `wants`; the answers in their order."""
        ...

    def unit_steps(self, wants: Sequence[UnitStep]) -> Sequence[int]:
        """One step of the speech decoder for all of `wants`; the answers in their order."""
        ...

    def slot(self, want: TextSlot | UnitSlot) -> Slot[Any] | None:
        """A place in a cache; None while none is free. Raises InvalidInputError for more than there can ever be."""
        ...

    def synchronize(self) -> None:
        """Return when everything that was asked of the device is done."""
        ...


class Job(Generic[T]):
    """A piece of work on the model thread, seen from the event loop that asked for it.

    `take` gives what it emits, of which `most_ahead` may wait to be taken; awaiting `result` gives what it returns.
    """

    def __init__(
        self, work: Work[T], abort: CallAbort, most_ahead: int, returned: Callable[[Job[Any], int], None]
    ) -> None:
        self.work = work
        self.abort = abort
        self.most_ahead = most_ahead
        self.want: Want = Turn()
        self.ahead = 0  # emitted and not taken; changed on the model thread only
        self._returned = returned
        self._loop = asyncio.get_running_loop()
        self.result: asyncio.Future[T] = self._loop.create_future()
        self._values: deque[Any] = deque()  # put in on the model thread, taken out on the event loop
        self._lent = 0  # given to the reader, who has not come back
        self._reader_sleeps = False
        self._changed = asyncio.Event()
        # The model thread wakes up to be told of them, so several are taken at once, but not all: it goes on meanwhile.
        self._most_together = max(1, most_ahead // 2)

    async def take(self) -> list[Any]:
        """What the work has emitted: several values where several are there, none once it is done.

        No value waits for others. They count as taken when this is called again. Raises what the work raised.
        """
        if self._lent:
            self._returned(self, self._lent)
            self._lent = 0
        values = self._values
        while not values:
            if self.result.done():
                self.result.result()
                return []
            self._changed.clear()
            self._reader_sleeps = True
            if not values:  # else one came before it was known that somebody sleeps
                await self._changed.wait()
            self._reader_sleeps = False
        batch = [values.popleft() for _ in range(min(len(values), self._most_together))]
        self._lent = len(batch)
        return batch

    def forget_result(self) -> None:
        """Once nobody asks any more: an error holds the frames of those who asked, and they hold this job."""
        self.result = self._loop.create_future()

    def deliver(self, value: Any) -> None:
        """Model thread: hand out a value."""
        self.ahead += 1
        self._values.append(value)
        if self._reader_sleeps:
            self._reader_sleeps = False
            self._post(self._changed.set)

    def settle(self, result: T | None, error: BaseException | None) -> None:
        """Model thread: the work has ended."""
        if isinstance(error, TasteError):
            error.__traceback__ = None  # its frames hold this job, which holds the error
        self._post(self._finish, result, error)

    def _post(self, call: Callable[..., None], *arguments: Any) -> None:
        with suppress(RuntimeError):  # the event loop is gone, and with it everybody who could ask
            self._loop.call_soon_threadsafe(call, *arguments)

    def _finish(self, result: T, error: BaseException | None) -> None:
        if not self.result.done():
            if error is None:
                self.result.set_result(result)
            else:
                self.result.set_exception(error)
                self.result.exception()  # whoever gave the call up does not ask
        self._changed.set()


class ModelLoop:
    """One thread, and on it one loop over the jobs of all calls.

    A round is one step of the language model for every job that waits for one, one step of the speech decoder
    likewise, and turns of other jobs for about as long as that took. Jobs whose readers are slow are left out until
    they are read on.
    """

    def __init__(self, name: str = "taste-model", clock: Callable[[], float] = time.perf_counter) -> None:
        self._scheduler: Scheduler[Job[Any]] = Scheduler()
        self._budget = TurnBudget(clock)
        self._commands: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._machine: Machine | None = None
        self._stopping = False
        self._closed = False
        self._closing = threading.Lock()  # no job is put behind the last command
        self._doubtful = False  # something went wrong that nobody foresaw: the device may be lost
        self.failure: Future[None] = Future()
        """Done once the thread has failed."""
        self.rounds = 0
        self._thread = threading.Thread(target=self._main, name=name, daemon=True)
        self._thread.start()

    def attach(self, machine: Machine) -> None:
        """What steps run on; before the first job that wants one."""
        self._machine = machine

    # --- on the event loop ------------------------------------------------------------------------------

    async def run(self, work: Callable[[], T], abort: CallAbort | None = None) -> T:
        """The result of `work`, done in one turn."""
        return await self.do(_once(work), abort or CallAbort())

    async def do(self, work: Work[T], abort: CallAbort) -> T:
        """The result of `work`, which emits nothing. A cancel is done when nothing of the work is left running."""
        job = self.submit(work, abort)
        try:
            return await asyncio.shield(job.result)
        except asyncio.CancelledError:
            await self.give_up(job)
            raise
        finally:
            del job  # an error holds this frame, and the job holds the error

    @asynccontextmanager
    async def emitting(self, work: Work[T], abort: CallAbort, most_ahead: int = READ_AHEAD) -> AsyncIterator[Job[T]]:
        """`work` under way, at most `most_ahead` values ahead of its reader; on leaving, nothing of it is left."""
        job = self.submit(work, abort, most_ahead)
        try:
            yield job
        finally:
            if not job.result.done():
                await self.give_up(job)
            job.forget_result()

    def submit(self, work: Work[T], abort: CallAbort, most_ahead: int = READ_AHEAD) -> Job[T]:
        """Begin `work`. Whoever does so sees it to its end, or gives it up. Raises UnavailableError once closed."""
        job: Job[T] = Job(work, abort, most_ahead, self._returned)
        with self._closing:
            if not self._closed:
                self._commands.put(lambda: self._scheduler.put(job, Waiting.TURN))
                return job
        work.close()
        raise UnavailableError("the engine has stopped")

    async def give_up(self, job: Job[Any]) -> None:
        """End `job` at its next check; returns when it holds nothing any more, even if it is cancelled meanwhile."""
        job.abort.set()
        self._commands.put(lambda: self._close(job))
        cancelled: asyncio.CancelledError | None = None
        while not job.result.done():
            try:
                await asyncio.wait([job.result])
            except asyncio.CancelledError as error:
                cancelled = error
        if cancelled is not None:
            raise cancelled

    def close(self) -> None:
        """Let the jobs that are under way fail with UnavailableError, and end the thread. Blocks."""
        with self._closing:
            self._closed = True
            self._commands.put(self._stop)
        self._thread.join()

    def _returned(self, job: Job[Any], count: int) -> None:
        self._commands.put(lambda: self._read(job, count))

    # --- on the model thread ----------------------------------------------------------------------------

    def _main(self) -> None:
        with torch.inference_mode():
            try:
                while not self._stopping:
                    self._obey()
                    self._fill_slots()
                    worked = self._round()
                    self._check_device()
                    if not worked and not self._stopping:
                        self._commands.get()()
            except BaseException:
                # of a device, say: whatever is left cannot be trusted
                logger.critical("the model thread failed; its calls fail, and no more are taken", exc_info=True)
                with self._closing:
                    self._closed = True
                self.failure.set_result(None)
            self._obey()  # what was asked for while the thread was told to stop
            self._stop()

    def _obey(self) -> None:
        while not self._commands.empty():  # nobody else takes them
            self._commands.get_nowait()()

    def _round(self) -> bool:
        """Run one round; whether there was anything to do."""
        steps = self._scheduler.steps()
        if steps:
            with self._budget.step():
                self._step(steps.text, lambda machine, wants: machine.text_steps(wants))
                self._step(steps.units, lambda machine, wants: machine.unit_steps(wants))
        turns = self._turns()
        self.rounds += bool(steps or turns)
        return bool(steps or turns)

    def _check_device(self) -> None:
        """After an error that may be one of the device: raises again when the device is lost, as all else would."""
        if self._doubtful and self._machine is not None:
            self._machine.synchronize()
        self._doubtful = False

    def _turns(self) -> int:
        """Let others have their turns until those who talk have waited long enough; returns how many had one."""
        turns = 0
        while (job := self._scheduler.take(Waiting.TURN)) is not None:
            self._advance(job, None)
            turns += 1
            if not self._scheduler.is_talking:
                break  # nobody waits for a step: listen to commands first
            self._the_machine.synchronize()
            if self._budget.is_spent:
                break
        return turns

    def _step(self, jobs: Sequence[Job[Any]], run: Callable[[Machine, list[Any]], Sequence[Any]]) -> None:
        going = [job for job in jobs if not self._ended(job)]
        if not going:
            return
        try:
            answers = run(self._the_machine, [job.want for job in going])
        except Exception as error:
            for job in going:
                self._end(job, error)
            return
        for job, answer in zip(going, answers, strict=True):
            self._advance(job, answer)

    def _advance(self, job: Job[Any], answer: Any) -> None:
        """Let `job` go on with `answer`, until it waits for something."""
        if self._ended(job):
            return
        job.abort.begin()
        try:
            while True:
                job.want = job.work.send(answer)
                if isinstance(job.want, Emit):
                    job.deliver(job.want.value)
                    answer = None
                    if job.ahead < job.most_ahead:
                        continue
                elif isinstance(job.want, TextSlot | UnitSlot) and not self._scheduler.count(_KINDS[type(job.want)]):
                    answer = self._the_machine.slot(job.want)
                    if answer is not None:
                        continue
                self._scheduler.put(job, _KINDS[type(job.want)])
                return
        except StopIteration as stopped:
            job.settle(stopped.value, None)
        except BaseException as error:
            self._end(job, error)

    def _fill_slots(self) -> None:
        """Give free places to those who have waited longest."""
        for kind in SLOTS:
            while (job := self._scheduler.take(kind)) is not None:
                if self._ended(job):
                    continue
                try:
                    slot = self._the_machine.slot(job.want)  # type: ignore[arg-type]  # it waits for one
                except Exception as error:
                    self._end(job, error)
                    continue
                if slot is None:
                    self._scheduler.put_first(job, kind)
                    break
                self._advance(job, slot)

    def _read(self, job: Job[Any], count: int) -> None:
        job.ahead -= count
        if job.ahead < job.most_ahead and isinstance(job.want, Emit) and self._scheduler.drop(job):
            self._scheduler.put(job, Waiting.TURN)

    def _ended(self, job: Job[Any]) -> bool:
        """End `job` if it was asked to; whether it was."""
        if job.abort.is_set:
            self._end(job, CallAbortedError("the call was cancelled"))
            return True
        return False

    def _end(self, job: Job[Any], error: BaseException) -> None:
        self._doubtful |= not isinstance(error, TasteError)
        try:
            job.work.close()
        except BaseException as failure:
            error = failure
        job.settle(None, error)

    def _close(self, job: Job[Any]) -> None:
        if self._scheduler.drop(job):
            self._end(job, CallAbortedError("the call was cancelled"))

    def _stop(self) -> None:
        self._stopping = True
        for kind in Waiting:
            while (job := self._scheduler.take(kind)) is not None:
                self._end(job, UnavailableError("the engine has stopped"))

    @property
    def _the_machine(self) -> Machine:
        assert self._machine is not None, "a job wants a step before attach()"
        return self._machine


def _once(work: Callable[[], T]) -> Work[T]:
    yield from ()  # work in pieces, of which it has one
    return work()
