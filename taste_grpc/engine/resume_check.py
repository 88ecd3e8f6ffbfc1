"""Whether a resume state that came from outside can be one of the loaded model.

A state may be forged: what passes here may sound like anything, but it fits the networks and is not larger than a
state of ours can be.
"""

from __future__ import annotations

from taste_grpc.audio import ResamplerState
from taste_grpc.engine.loading import LoadedModel
from taste_grpc.errors import InvalidInputError
from taste_grpc.model.speech_decoder.decoder import length_rule
from taste_grpc.model.voice_generator.config import VoiceGeneratorConfig
from taste_grpc.model.voice_generator.mel_stream import MelWindowing
from taste_grpc.streaming.speech_stream import MAX_CHUNK_TOKENS, SpeechState

_MAX_FRAMES = 1024  # of each tail; ours have a few dozen
_MAX_HISTORY = 1 << 16


def check_state(loaded: LoadedModel, state: SpeechState, rate_hz: int, windowing: MelWindowing) -> None:
    """Raises InvalidInputError when `state`, whose audio has `rate_hz`, does not fit."""
    voice = loaded.processor.get_generator(loaded.model.device).config
    if not (_window_fits(loaded, state) and _tails_fit(voice, state, rate_hz, windowing)):
        raise InvalidInputError("resume_state", "does not fit the model, or contradicts itself")


def _window_fits(loaded: LoadedModel, state: SpeechState) -> bool:
    info, decoder = loaded.info, loaded.model.config.speech_decoder
    units = [unit for chunk in state.window for unit in chunk.units]
    if any(unit >= decoder.units for unit in (*units, *state.mel.units)):
        return False
    for chunk in state.window:
        ids, words, rows = chunk.words.tokens.ids, chunk.words.tokens.word_ids, chunk.words.taste_rows
        fits = (
            0 < len(ids) <= MAX_CHUNK_TOKENS
            and len(ids) == len(words)
            and max(ids) < decoder.text_vocab_size
            and words == sorted(words)
            and words[-1] < len(rows) <= len(ids)
            and all(len(row) == info.vq_dim and max(row) < info.codebook_size for row in rows)
        )
        if not fits:
            return False
    tokens = sum(len(chunk.words.tokens.ids) for chunk in state.window)
    return len(units) <= min(state.unit_count, length_rule(tokens + 3)[1])


def _tails_fit(voice: VoiceGeneratorConfig, state: SpeechState, rate_hz: int, windowing: MelWindowing) -> bool:
    mel, wave, resampler, flow = state.mel, state.wave, state.resampler, voice.flow
    context = voice.hift.context_frames + voice.hift.f0_context_frames
    most_units = windowing.context_units + flow.unit_of_frame(windowing.held_frames) + 2
    if mel.held.dim() != 2 or wave.mel.dim() != 2 or wave.f0.dim() != 1 or resampler.history.ndim != 1:
        return False
    frames, known = wave.mel.shape[1], wave.f0.shape[0]
    return (
        mel.held.shape[0] == wave.mel.shape[0] == flow.mel_bins
        and len(mel.units) == min(state.unit_count, most_units)
        and mel.held.shape[1] <= windowing.held_frames
        and mel.frame_count + mel.held.shape[1] == flow.frames(state.unit_count)
        and wave.first_frame + frames == mel.frame_count
        and frames <= _MAX_FRAMES
        and known <= frames
        and wave.first_frame + context >= wave.frame_count >= wave.first_frame
        and wave.frame_count <= wave.first_frame + known
        and resampler.start + len(resampler.history) == wave.frame_count * voice.hift.samples_per_frame
        and len(resampler.history) <= _MAX_HISTORY
        and _emitted_fits(resampler, voice.sampling_rate_hz, rate_hz)
    )


def _emitted_fits(resampler: ResamplerState, from_hz: int, to_hz: int) -> bool:
    """Whether as much audio has left as the history can tell: not less than before it, nor more than to its end."""
    first, end = resampler.start, resampler.start + len(resampler.history)
    return first * to_hz // from_hz <= resampler.emitted <= end * to_hz // from_hz + 1
