"""Waveform of a mel spectrogram that arrives in chunks: what one-shot decoding gives, at a cost that does not grow.

The vocoder's filter sees a fixed number of frames on either side, so a chunk is decoded with that much context, and the
samples of the last frames wait until their context is there. Nothing is faded: the phase of the excitation is
carried in cycles at a frame border, its noise is a function of the absolute sample.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

import torch
from torch import Tensor

from taste_grpc.model.abort import AbortCheck, never_abort
from taste_grpc.model.voice_generator.hift import HiftVocoder

PIECE_FRAMES = 96
"""Frames that are decoded at a time."""


@dataclass
class WaveState:
    """Where an utterance stands.

    Attributes:
        mel: `[mel_bins, N]` float32, the frames from `first_frame` on that are still needed.
        f0: `[M]` float32 Hz of the first M of them, as far as it is certain.
        first_frame: absolute index of the first frame of both.
        frame_count: frames whose samples were returned.
        cycles: where the excitation stands at the border before `first_frame`.
    """

    mel: Tensor
    f0: Tensor
    first_frame: int
    frame_count: int
    cycles: float

    @classmethod
    def empty(cls, mel_bins: int) -> WaveState:
        """The start of an utterance."""
        return cls(torch.zeros(mel_bins, 0), torch.zeros(0), 0, 0, 0.0)


def extend_wave(
    vocoder: HiftVocoder,
    state: WaveState,
    mel: Tensor,
    seed: int,
    *,
    last: bool = False,
    abort: AbortCheck = never_abort,
) -> Generator[int, None, Tensor]:
    """The samples that final frames `mel` `[1, mel_bins, T]` make certain: `[S]` float32. T and S may be 0.

    A generator that yields after each piece of at most `PIECE_FRAMES` frames, each time the frames that entered the
    vocoder for it; `state` changes with each. With `last` the mel ends here, and nothing is held back; the utterance
    may go on all the same, with a join that is not exact.
    """
    state.mel = torch.cat([state.mel.to(mel.device), mel[0].float()], dim=1)
    _extend_f0(vocoder, state, last=last)
    end = state.first_frame + state.f0.shape[0]
    limit = end if last else end - vocoder.config.context_frames
    pieces = [torch.zeros(0, device=mel.device)]
    while state.frame_count < limit:
        until = min(limit, state.frame_count + PIECE_FRAMES)
        entering = min(until + vocoder.config.context_frames, end) - state.first_frame
        pieces.append(_decode_piece(vocoder, state, until, entering, seed, abort))
        yield entering
    return torch.cat(pieces)


def _extend_f0(vocoder: HiftVocoder, state: WaveState, *, last: bool) -> None:
    """Make f0 certain as far as the frames that are there allow."""
    context = vocoder.config.f0_context_frames
    known, frames = state.f0.shape[0], state.mel.shape[1]
    end = frames if last else frames - context
    if end <= known:
        return
    # the frames before the first one matter only at the start of the utterance, where there are none
    start = max(0, known - context)
    fresh = vocoder.f0(state.mel[None, :, start:])[0]
    state.f0 = torch.cat([state.f0.to(fresh.device), fresh[known - start : end - start]])


def _decode_piece(
    vocoder: HiftVocoder, state: WaveState, until: int, entering: int, seed: int, abort: AbortCheck
) -> Tensor:
    """Samples of the frames from `state.frame_count` to `until`, made from the first `entering` ones.

    Drops what is not needed after them.
    """
    config = vocoder.config
    source, _ = vocoder.source(
        state.f0[None, :entering],
        seed=seed,
        first_sample=state.first_frame * config.samples_per_frame,
        start_cycles=state.cycles,
    )
    wave = vocoder.decode(state.mel[None, :, :entering], source, abort)[0]
    first, end = ((frame - state.first_frame) * config.samples_per_frame for frame in (state.frame_count, until))
    state.frame_count = until
    drop = max(0, until - config.context_frames - config.f0_context_frames - state.first_frame)
    if drop:
        state.cycles = float(vocoder.m_source.cycles(state.f0[None, :drop], state.cycles)[1])
        state.mel, state.f0, state.first_frame = state.mel[:, drop:], state.f0[drop:], state.first_frame + drop
    return wave[first:end]
