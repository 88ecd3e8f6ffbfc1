"""The turns of one conversation: who speaks, what is answered, what is remembered."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from taste_grpc.dialogue.answer import Answerer, AnswerError, Question
from taste_grpc.dialogue.delivery import Delivery
from taste_grpc.dialogue.ear import Frame
from taste_grpc.dialogue.events import (
    ErrorCode,
    Failure,
    FinalTranscript,
    Interrupted,
    LlmToken,
    Notice,
    Options,
    PartialTranscript,
    PhaseChanged,
    SpeechComplete,
    VoiceChoice,
)
from taste_grpc.dialogue.memory import Memory
from taste_grpc.dialogue.metrics import DialogueMetrics, TurnTimes
from taste_grpc.dialogue.outbox import Outbox
from taste_grpc.dialogue.phases import Phase, TurnPhases
from taste_grpc.dialogue.pre_roll import PreRoll
from taste_grpc.dialogue.settings import DialogueSettings
from taste_grpc.dialogue.transcription import Transcriber, Transcription
from taste_grpc.dialogue.turn import Turn
from taste_grpc.dialogue.turn_taking import SpeechEnded, TurnTaking, TurnTakingSettings
from taste_grpc.errors import TasteError
from taste_grpc.observability import log_event

logger = logging.getLogger(__name__)

NOTHING_HEARD = "no words were heard"
NOTHING_TO_CANCEL = "there is no turn to cancel"
TYPED_INSTEAD = "the spoken turn was given up for a typed one"
NOT_KEPT = "what was said while the words before were being transcribed was too long to be kept"
MOST_KEPT_MS = 60_000.0
"""Microphone audio that may wait until the words before it are understood."""


def fault_of_the_server(name: str) -> str:
    """What a client is told of a fault that nobody foresaw in the conversation `name`."""
    return f"a fault of the server; its log knows the conversation as {name}"


@dataclass(frozen=True)
class ConversationParts:
    """What conversations work with, all of them the same.

    Attributes:
        transcriber: audio to text.
        answerer: gives the answers.
        metrics: takes in times, errors and notices.
    """

    transcriber: Transcriber
    answerer: Answerer
    metrics: DialogueMetrics


@dataclass(frozen=True)
class Manner:
    """How one conversation is held.

    Attributes:
        system_prompt: instructions to the language model.
        language: BCP 47 tag of the speech; None takes the recogniser's own.
        voice: how answers sound.
        options: what the client asked for.
        settings: those of the server with these options in.
    """

    system_prompt: str
    language: str | None
    voice: VoiceChoice
    options: Options
    settings: DialogueSettings


class Conversation:
    """Goes through turns as the client speaks, types, cancels and listens; tells of it through `outbox`.

    Every method changes the state at once. What takes time (a transcript, an answer) is done by a task of the turn,
    which whatever ends the turn stops. To be used on one event loop.

    Args:
        name: of the conversation, in log lines.
        parts: what it works with.
        manner: how it is held.
        memory: what was said before.
        outbox: takes the events.
        frame_ms: length of the frames that `hear` gets.
        on_idle: called whenever a turn is over.
        on_fault: called with the sentence for the client when something went wrong that nobody foresaw.
        clock: seconds.
    """

    def __init__(
        self,
        name: str,
        parts: ConversationParts,
        manner: Manner,
        memory: Memory,
        outbox: Outbox,
        *,
        frame_ms: float,
        on_idle: Callable[[], None],
        on_fault: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.memory = memory
        self._name, self._parts, self._manner, self._outbox = name, parts, manner, outbox
        self._settings = manner.settings
        self._frame_ms = frame_ms
        self._on_idle, self._on_fault, self._clock = on_idle, on_fault, clock
        self._phases = TurnPhases()
        self._taking = TurnTaking(TurnTakingSettings(silence_ms=self._settings.vad_silence_ms))
        self._pre_roll = PreRoll()
        self._heard_at = clock()  # when audio came in
        self._heard_ms = 0.0  # audio that has come in, also what waits until the turn before is understood
        self._turn: Turn | None = None
        self._credit_ms: int | None = None
        self._input_ended = False
        self._winding_up: set[asyncio.Task[Any]] = set()

    @property
    def phase(self) -> Phase:
        """Where the running turn stands."""
        return self._phases.current

    @property
    def turns(self) -> int:
        """Turns that have ended."""
        return self._phases.turn

    @property
    def is_idle(self) -> bool:
        """Whether no turn is running."""
        return self._turn is None

    # --- what the client does -------------------------------------------------------------------------------

    def hear(self, frames: Sequence[Frame], received_bytes: int) -> None:
        """Take in microphone audio, which came as so many bytes."""
        self._heard_at = self._clock()
        for frame in frames:
            self._heard_ms += self._frame_ms
            self._hear(frame)
        turn = self._turn
        if turn is not None and self.phase is Phase.CAPTURING:
            turn.received_bytes += received_bytes
            if turn.received_bytes > self._settings.max_utterance_bytes:
                self._overrun(turn, f"more than {self._settings.max_utterance_bytes} bytes of audio")

    def stop(self) -> None:
        """The person has finished. Too late for an answer that is being given: a silence was faster."""
        if self._turn is not None and self._is_being_understood(self._turn):
            self._keep(self._turn, None)
        if self.phase is Phase.IDLE:
            if self._taking.run_began_ms is None:
                self._nothing_said()
                return
            self._begin_spoken(self._taking.run_began_ms)
        if self._turn is not None and self.phase is Phase.CAPTURING:
            self._end_speech(self._turn, self._taking.last_voiced_ms)
            self._taking.end()

    def cancel(self) -> None:
        """Give up the running turn; nothing of it is remembered."""
        turn = self._turn
        if turn is None:
            self._notice(NOTHING_TO_CANCEL)
            return
        self._pass_over(turn)
        self._taking.end(until_silence=True)
        self._abandon(turn)
        self._outbox.drop_speech()
        self._failure(turn, ErrorCode.CANCELLED, "the turn was cancelled")
        self._finish(turn, Phase.COMPLETE, "cancelled")

    def say(self, text: str) -> None:
        """A typed turn. It interrupts an answer that is being made, and takes the place of one that is spoken."""
        turn = self._turn
        if turn is not None and turn.question is None:
            self._pass_over(turn)
            self._taking.end(until_silence=True)
            self._abandon(turn)
            self._notice(TYPED_INSTEAD)
            self._finish(turn, Phase.COMPLETE, "cancelled")
        elif turn is not None and turn.is_sent:
            self._complete(turn)
        elif turn is not None:
            self._interrupt(turn)
        turn = self._turn = Turn(self.turns, TurnTimes(self._clock()), question=text)
        self._enter(turn, Phase.THINKING)
        self._set_to_work(turn)

    def acked(self, turn_number: int, played_ms: int) -> None:
        """So much of the answer of a turn was played. Of a turn that is over nobody wants to know."""
        turn = self._turn
        if turn is not None and turn.number == turn_number and turn.delivery is not None:
            turn.delivery.acked(played_ms)

    def grant(self, credit_ms: int) -> None:
        """So much unplayed audio may be sent."""
        self._credit_ms = credit_ms
        if self._turn is not None and self._turn.delivery is not None:
            self._turn.delivery.grant(credit_ms)

    def end_input(self) -> None:
        """Nothing more comes: what is being said is answered, and no answer is waited for while it plays."""
        self._input_ended = True
        if self._turn is None:
            self._on_idle()
        elif self.phase is Phase.CAPTURING:
            self.stop()
        elif self._turn.delivery is not None:
            self._turn.delivery.wait_no_longer()

    # --- how it ends ----------------------------------------------------------------------------------------

    def fail(self, code: ErrorCode, message: str) -> None:
        """End the conversation with an error; nothing of the running turn is remembered."""
        turn, self._turn = self._turn, None
        if turn is not None:
            self._abandon(turn)
            self._outbox.drop_speech()
            self._enter(turn, Phase.ERROR)
            self._measure(turn, "failed")
        self._failure(turn, code, message)

    async def aclose(self) -> None:
        """Give up everything; returns when nothing is left running."""
        if self._turn is not None:
            self._abandon(self._turn)
            self._turn = None
        while self._winding_up:
            await asyncio.wait(self._winding_up)

    # --- listening ------------------------------------------------------------------------------------------

    def _hear(self, frame: Frame) -> None:
        turn = self._turn
        if turn is not None and self._is_being_understood(turn):
            self._keep(turn, frame)
            return
        began_ms = self._taking.now_ms
        change = self._taking.push(frame.is_speech, self._frame_ms)
        if turn is not None and self.phase is Phase.CAPTURING:
            self._capture(turn, frame, change if isinstance(change, SpeechEnded) else None)
            return
        self._pre_roll.append(began_ms, frame, self._taking.run_began_ms)
        if turn is None:
            if self._taking.speaking and self._taking.run_began_ms is not None:
                self._begin_spoken(self._taking.run_began_ms)
        elif self._is_barge_in(turn):
            self._interrupt(turn)
            self._begin_spoken(self._taking.run_began_ms or began_ms)

    def _capture(self, turn: Turn, frame: Frame, ended: SpeechEnded | None) -> None:
        assert turn.transcription is not None, "only a spoken turn is captured"
        turn.transcription.hear(frame.samples, is_speech=frame.is_speech)
        if ended is not None:
            self._end_speech(turn, ended.at_ms)
        elif turn.transcription.recording.ms >= self._settings.max_utterance_ms:
            self._overrun(turn, f"longer than {self._settings.max_utterance_ms} ms")

    def _is_being_understood(self, turn: Turn) -> bool:
        """Whether the transcript is waited for. What is said meanwhile counts afterwards, as what came before has to be
        understood first."""
        return turn.question is None and self.phase is Phase.THINKING

    def _keep(self, turn: Turn, frame: Frame | None) -> None:
        """Put a frame, or a stop, aside until `turn` is understood."""
        turn.meanwhile.append(frame)
        if len(turn.meanwhile) * self._frame_ms > MOST_KEPT_MS:
            self._pass_over(turn, 1)
            if self._taking.run_began_ms is not None:
                self._taking.end(until_silence=True)  # words without their beginning say nothing
                self._notice(NOT_KEPT)

    def _catch_up(self, turn: Turn) -> None:
        """Take in what was said while `turn` was being understood."""
        came, turn.meanwhile = turn.meanwhile, deque()
        for frame in came:
            if frame is not None:
                self._hear(frame)
            elif self._taking.run_began_ms is not None or not self.is_idle:
                self.stop()
        if self._input_ended and self.phase is Phase.CAPTURING:
            self.stop()

    def _pass_over(self, turn: Turn, count: int | None = None) -> None:
        """Of what was said meanwhile, let the oldest `count` frames, or all, go by without a turn."""
        for _ in range(len(turn.meanwhile) if count is None else count):
            frame = turn.meanwhile.popleft()
            if frame is not None:
                self._taking.push(frame.is_speech, self._frame_ms)

    def _is_barge_in(self, turn: Turn) -> bool:
        """Whether the person speaks, and not only makes a noise."""
        settings, taking = self._settings, self._taking
        if not settings.barge_in or taking.run_began_ms is None:
            return False
        return taking.burst_ms >= settings.barge_in_ms

    def _begin_spoken(self, at_ms: float) -> None:
        turn = self._turn = Turn(self.turns, TurnTimes(self._moment(at_ms)))
        self._taking.begin()
        self._enter(turn, Phase.CAPTURING)

        def on_partial(text: str, audio_ms: int) -> None:
            if turn.times.t1 is None:
                turn.times.t1 = self._clock()
            self._outbox.put(PartialTranscript(turn.number, text, audio_ms))

        turn.transcription = Transcription(
            self._parts.transcriber,
            language=self._manner.language,
            interval_ms=self._settings.partial_interval_ms,
            on_partial=on_partial,
            clock=self._clock,
        )
        for frame in self._pre_roll.take():
            turn.transcription.hear(frame.samples, is_speech=frame.is_speech)

    def _end_speech(self, turn: Turn, at_ms: float) -> None:
        turn.times.speech_end = self._moment(at_ms)
        self._enter(turn, Phase.THINKING)
        self._set_to_work(turn)

    def _overrun(self, turn: Turn, how: str) -> None:
        self._failure(turn, ErrorCode.MAX_DURATION_EXCEEDED, f"the turn was {how}; what came until then is answered")
        self._end_speech(turn, self._taking.last_voiced_ms)
        self._taking.end(until_silence=True)

    def _nothing_said(self) -> None:
        turn = self._turn = Turn(self.turns, TurnTimes(self._clock()))
        self._enter(turn, Phase.CAPTURING)
        self._notice(NOTHING_HEARD)
        self._finish(turn, Phase.COMPLETE, "empty")

    # --- answering ------------------------------------------------------------------------------------------

    def _set_to_work(self, turn: Turn) -> None:
        turn.task = asyncio.create_task(self._work(turn), name=f"turn-{turn.number}")

    async def _work(self, turn: Turn) -> None:
        try:
            if turn.question is None:
                turn.question = await self._understand(turn)
            if not turn.question.strip():
                self._notice(NOTHING_HEARD)
                self._finish(turn, Phase.COMPLETE, "empty")
            self._catch_up(turn)
            if self._turn is turn:
                await self._respond(turn)
        except AnswerError as error:
            if self._turn is turn:  # of one that was given up nobody wants to know
                self._failed(turn, error)
                self._catch_up(turn)
        except asyncio.CancelledError:
            if self._turn is turn:  # nobody gave it up: a part has ended under it
                log_event(logger, logging.ERROR, "turn was cut off", session=self._name)
                self._on_fault(fault_of_the_server(self._name))
            raise
        except Exception as error:
            log_event(logger, logging.ERROR, "turn failed", error=error, session=self._name)
            if self._turn is turn:
                self._on_fault(fault_of_the_server(self._name))

    async def _understand(self, turn: Turn) -> str:
        transcription = turn.transcription
        assert transcription is not None, "only a spoken turn has to be understood"
        try:
            async with asyncio.timeout(self._settings.asr_timeout_s):
                text = (await transcription.final()).strip()
        except TasteError as error:
            raise AnswerError(ErrorCode.ASR_FAIL, f"the recogniser failed: {error}") from error
        except TimeoutError:
            message = f"the recogniser took longer than {self._settings.asr_timeout_s:g} s"
            raise AnswerError(ErrorCode.ASR_TIMEOUT, message) from None
        if text:
            turn.times.t2 = self._clock()
            self._outbox.put(FinalTranscript(turn.number, text, round(transcription.recording.ms)))
        return text

    async def _respond(self, turn: Turn) -> None:
        assert turn.question is not None, "a question is needed"
        manner = self._manner
        turn.delivery = self._delivery(turn)
        if self._input_ended:
            turn.delivery.wait_no_longer()
        samples = turn.transcription.recording.samples() if turn.transcription is not None else None
        messages = self.memory.messages(manner.system_prompt, turn.question)
        question = Question(messages, manner.voice, self._settings.max_new_tokens, samples)
        await self._parts.answerer.answer(question, turn.delivery)
        if not turn.answer.strip():
            raise AnswerError(ErrorCode.LLM_FAIL, "the language model gave no answer")
        await turn.delivery.flush()
        self._outbox.put(SpeechComplete(turn.number, turn.delivery.chunks, turn.delivery.playback.sent_ms))
        turn.is_sent = True
        await turn.delivery.played(self._settings.ack_grace_s)
        self._complete(turn)

    def _delivery(self, turn: Turn) -> Delivery:
        def on_token(text: str) -> None:
            if turn.times.t3 is None:
                turn.times.t3 = self._clock()
            self._answer_began(turn)
            turn.answer += text
            self._outbox.put(LlmToken(turn.number, text, done=False))

        def on_audio() -> None:
            if turn.times.t4 is None:
                turn.times.t4 = self._clock()
            self._answer_began(turn)

        def on_trouble(code: ErrorCode | None, message: str) -> None:
            if code is None:
                self._notice(message)
            else:
                self._failure(turn, code, message)

        return Delivery(
            turn.number,
            self._manner.voice,
            self._outbox,
            on_token=on_token,
            on_audio=on_audio,
            on_trouble=on_trouble,
            credit_ms=self._credit_ms,
            clock=self._clock,
        )

    def _answer_began(self, turn: Turn) -> None:
        if self.phase is Phase.THINKING:
            self._enter(turn, Phase.RESPONDING)

    # --- ends of a turn -------------------------------------------------------------------------------------

    def _complete(self, turn: Turn) -> None:
        """The answer was given and heard."""
        self._abandon(turn)
        self.memory.remember(turn.question or "", turn.answer.strip())
        self._outbox.put(LlmToken(turn.number, "", done=True))
        self._finish(turn, Phase.COMPLETE, "complete")

    def _interrupt(self, turn: Turn) -> None:
        """The answer is not wanted any more; what was heard of it stays."""
        self._abandon(turn)
        unsent_ms = sum(chunk.duration_ms for chunk in self._outbox.drop_speech() if chunk.turn == turn.number)
        if turn.delivery is not None:
            turn.delivery.playback.take_back(unsent_ms)
        if turn.question is not None:
            heard = turn.heard()
            self.memory.remember(turn.question, heard.text)
            self._outbox.put(Interrupted(turn.number, heard.ms, heard.text, heard.estimated))
        self._finish(turn, Phase.COMPLETE, "interrupted")

    def _failed(self, turn: Turn, error: AnswerError) -> None:
        """There is no answer, or not all of it; nothing of the turn is remembered."""
        self._abandon(turn)
        self._failure(turn, error.code, str(error))
        self._finish(turn, Phase.ERROR, "failed")

    def _abandon(self, turn: Turn) -> None:
        """Stop all work of `turn`, but for the task that calls this; nothing that still comes of it is told."""
        for task in turn.abandon():
            if task is not asyncio.current_task():
                task.cancel()
                self._winding_up.add(task)
                task.add_done_callback(self._winding_up.discard)

    def _finish(self, turn: Turn, phase: Phase, how: str) -> None:
        self._enter(turn, phase)
        self._measure(turn, how)
        self._turn = None
        if not self._settings.barge_in:
            self._taking.end(until_silence=True)  # what was said over the answer was not meant
        self._phases.enter(Phase.IDLE)
        self._outbox.put(PhaseChanged(self.turns, Phase.IDLE))
        self._on_idle()

    # --- telling --------------------------------------------------------------------------------------------

    def _enter(self, turn: Turn, phase: Phase) -> None:
        self._phases.enter(phase)
        self._outbox.put(PhaseChanged(turn.number, phase))

    def _measure(self, turn: Turn, how: str) -> None:
        metrics = turn.times.metrics(turn.number)
        self._outbox.put(metrics)
        self._parts.metrics.turn_ended(self._name, metrics, how)

    def _notice(self, message: str) -> None:
        self._outbox.put(Notice(None if self._turn is None else self._turn.number, message))
        self._parts.metrics.notice(self._name, message)

    def _failure(self, turn: Turn | None, code: ErrorCode, message: str) -> None:
        self._outbox.put(Failure(None if turn is None else turn.number, code, message))
        self._parts.metrics.error(self._name, code)

    def _moment(self, at_ms: float) -> float:
        """When the audio at `at_ms` came in, for a microphone that sends as it hears."""
        return self._heard_at - (self._heard_ms - at_ms) / 1000
