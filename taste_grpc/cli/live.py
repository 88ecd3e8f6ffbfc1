"""`taste-grpc talk --live`: a conversation by voice, from a microphone or a recording."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Iterable, Iterator
from contextlib import aclosing, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from taste_grpc.cli.connection import Endpoint, as_options
from taste_grpc.cli.failure import INTERRUPTED, CommandError
from taste_grpc.cli.live_audio import Listening, RecordingAudio
from taste_grpc.cli.live_ending import Ending, Step
from taste_grpc.cli.live_player import ClockPlayer, Player
from taste_grpc.cli.live_screen import Screen, screen_for
from taste_grpc.cli.live_sound import Loudspeaker, Microphone, has_loudspeaker
from taste_grpc.cli.live_view import ConversationView
from taste_grpc_client import (
    AsyncConversation,
    AsyncTasteClient,
    CallCancelledError,
    ConversationEndedError,
    ConversationEvent,
    ConversationOptions,
    Interrupted,
    Phase,
    PhaseChanged,
    SpeechChunk,
    SpeechComplete,
    TasteClientError,
    WavWriter,
)

_ACK_S = 0.1
_FAREWELL_S = 5.0
"""How long the server may take to end a conversation that was interrupted."""
_CREDIT_MS = 30_000
"""Audio that may wait for the loudspeaker."""


@dataclass(frozen=True)
class LiveSettings:
    """How to converse; None takes the server's settings.

    Attributes:
        turns: how many; None: until the recording has been answered, or Ctrl-C.
        out_dir: folder for the answers' audio.
    """

    system_prompt: str | None
    voice: str | None
    turns: int | None
    barge_in: bool | None
    silence_ms: int | None
    out_dir: Path

    def options(self) -> ConversationOptions:
        """Those that were given."""
        given: ConversationOptions = {}
        if self.barge_in is not None:
            given["barge_in"] = self.barge_in
        if self.silence_ms is not None:
            given["vad_silence_ms"] = self.silence_ms
        return given


def open_audio(recording: Path | None) -> Listening:
    """What is listened to: the recording, or else the microphone. Raises CommandError when there is neither."""
    return Microphone() if recording is None else RecordingAudio(recording)


def run_live(endpoint: Endpoint, listening: Listening, settings: LiveSettings, as_json: bool) -> int:
    """Hold a conversation, and return the exit status.

    Ctrl-C gives up the running turn and ends the conversation; a second one ends the command at once.

    Raises:
        CommandError: a turn has failed, or nothing was answered in a recording.
        TasteClientError: the conversation failed.
    """
    is_recording = isinstance(listening, RecordingAudio)
    with closing(screen_for(as_json, "Ctrl-C ends")) as screen, closing(AnswerFiles(settings.out_dir)) as answers:
        view = ConversationView()
        session = LiveSession(listening, view, screen, answers, settings)
        try:
            asyncio.run(_converse(endpoint, listening, settings, session))
        except TasteClientError:
            if view.turns:
                screen.finish(view, answers.names)
            raise
        screen.finish(view, answers.names)
    if session.was_interrupted:
        return INTERRUPTED if is_recording else 0
    for turn in view.turns:
        if turn.failure is not None:
            raise CommandError(f"turn {turn.number}", f"{turn.failure.code}: {turn.failure.message}")
    if is_recording and not view.totals()["answered"]:
        raise CommandError("FILE", "nothing in it was answered")
    return 0


async def _converse(endpoint: Endpoint, listening: Listening, settings: LiveSettings, session: LiveSession) -> None:
    try:
        client = AsyncTasteClient(endpoint.target, **endpoint.client_arguments)
    except ValueError as error:
        raise as_options(error) from None
    conversation = client.converse(
        sample_rate_hz=listening.sample_rate_hz,
        channels=listening.channels,
        system_prompt=settings.system_prompt,
        voice=settings.voice,
        **settings.options(),
    )
    async with client, conversation as talk:
        with _player(listening, talk) as player:
            await session.run(talk, player)


@contextmanager
def _player(listening: Listening, talk: AsyncConversation) -> Iterator[Player]:
    if isinstance(listening, Microphone) and has_loudspeaker() and talk.started is not None:
        with closing(Loudspeaker(talk.started.sample_rate_hz)) as loudspeaker:
            yield loudspeaker
    else:
        yield ClockPlayer()


class LiveSession:
    """A conversation that is listened to, shown and played at the same time.

    Attributes:
        was_interrupted: whether Ctrl-C ended it.
    """

    def __init__(
        self,
        listening: Listening,
        view: ConversationView,
        screen: Screen,
        answers: AnswerFiles,
        settings: LiveSettings,
    ) -> None:
        self.was_interrupted = False
        self._listening, self._view, self._screen, self._answers = listening, view, screen, answers
        self._turns = settings.turns

    async def run(self, talk: AsyncConversation, player: Player) -> None:
        """Converse until it is over. Raises what the conversation, the recording or the screen fails with."""
        self._talk, self._player, self._began = talk, player, time.monotonic()
        reading, sending = asyncio.create_task(self._read()), asyncio.create_task(self._send())
        helpers = [asyncio.create_task(self._acknowledge()), asyncio.create_task(self._end_on_interrupt(sending))]
        tasks = (reading, sending, *helpers)
        try:
            # The reader ends last; what one of the others fails with ends it.
            while not reading.done():
                running = {task for task in tasks if not task.done()}
                await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                _raise_first_failure(tasks)
            _raise_first_failure(tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _read(self) -> None:
        try:
            async for event in self._talk:
                self._take(event)
        except CallCancelledError:
            if not self.was_interrupted:
                raise

    def _take(self, event: ConversationEvent) -> None:
        self._view.take(event)
        match event:
            case SpeechChunk():
                self._player.play(event)
                self._answers.write(event)
            case SpeechComplete():
                self._answers.close()
            case Interrupted():
                self._player.stop()
                self._answers.close()
            case PhaseChanged(phase=Phase.ERROR):
                self._player.stop()
        self._screen.take(self._view, event, 1000 * (time.monotonic() - self._began))

    async def _send(self) -> None:
        """Send what is heard until the conversation is to end, then say that nothing more will come."""
        ending = Ending()
        try:
            if isinstance(self._player, Loudspeaker):
                await self._talk.credit(_CREDIT_MS)
            async with aclosing(self._listening.pieces()) as pieces:
                async for piece in pieces:
                    await self._talk.send_audio(piece)
                    if await self._is_over(ending):
                        break
            await self._talk.half_close()
        except ConversationEndedError:
            pass  # the reader is told why

    async def _is_over(self, ending: Ending) -> bool:
        is_quiet = self._view.is_quiet and not self._player.unplayed_ms
        if self._turns is not None and is_quiet and sum(turn.is_over for turn in self._view.turns) >= self._turns:
            return True
        step = ending.step(self._listening.silent_ms, is_quiet, self._view.activity, self._view.marks)
        if step is Step.ASK:
            await self._talk.mark(ending.mark)
        return step is Step.END

    async def _acknowledge(self) -> None:
        """Tell how far the answers were played."""
        try:
            while True:
                for turn, played_ms in self._player.progress():
                    await self._talk.ack(turn, played_ms)
                await asyncio.sleep(_ACK_S)
        except (ConversationEndedError, ValueError):
            pass  # nothing can be told any more

    async def _end_on_interrupt(self, sending: asyncio.Task[None]) -> None:
        """Give up the running turn and end the conversation when Ctrl-C is pressed."""
        with _first_interrupt() as interrupted:
            await interrupted.wait()
        self.was_interrupted = True
        sending.cancel()
        self._player.stop()
        try:
            async with asyncio.timeout(_FAREWELL_S):
                if not self._view.is_quiet:
                    await self._talk.cancel()
                await self._talk.half_close()
                await asyncio.Event().wait()  # until the reader has ended
        except (TimeoutError, ConversationEndedError, ValueError):
            await self._talk.close()


def _raise_first_failure(tasks: Iterable[asyncio.Task[None]]) -> None:
    for task in tasks:
        if task.done() and not task.cancelled():
            task.result()


@contextmanager
def _first_interrupt() -> Iterator[asyncio.Event]:
    """Set by the first Ctrl-C; the second has its usual effect."""
    loop, interrupted = asyncio.get_running_loop(), asyncio.Event()
    loop.add_signal_handler(signal.SIGINT, interrupted.set)
    try:
        yield interrupted
    finally:
        loop.remove_signal_handler(signal.SIGINT)


class AnswerFiles:
    """The answers' audio, a WAV file for each turn: `answer-0.wav` and so on.

    Attributes:
        names: of the files written.
    """

    def __init__(self, folder: Path) -> None:
        self.names: list[str] = []
        self._folder = folder
        self._turn = -1
        self._writer: WavWriter | None = None

    def write(self, chunk: SpeechChunk) -> None:
        """Append to the file of its turn. Raises OSError."""
        if self._writer is None or chunk.turn != self._turn:
            self.close()
            self._folder.mkdir(parents=True, exist_ok=True)
            path = self._folder / f"answer-{chunk.turn}.wav"
            self._turn, self._writer = chunk.turn, WavWriter(path)
            self.names.append(str(path))
        self._writer.write(chunk)

    def close(self) -> None:
        """Complete the file that is open."""
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()
