"""Mel spectrogram of an utterance whose speech units arrive in chunks, at a cost that does not grow.

The flow looks at everything it is given and normalises over time, so each chunk is computed in a window: some units
before it, for context, then its own. The last frames of a window have not seen what follows; they are held back,
computed again in the next window, and the two versions are faded into each other over a few frames. Noise is a
function of the absolute frame, so both windows start from the same.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

import torch
from torch import Tensor

from taste_grpc.model.abort import AbortCheck, never_abort
from taste_grpc.model.voice_generator.flow import FlowMatching


@dataclass(frozen=True)
class MelWindowing:
    """How windows overlap.

    Attributes:
        context_units: units a window begins before the first frame it makes final.
        held_frames: frames at the end of a window that wait for the next one.
        fade_frames: of these, the first, over which two windows are faded.
    """

    context_units: int = 50
    held_frames: int = 16
    fade_frames: int = 8


@dataclass
class MelState:
    """Where an utterance stands.

    Attributes:
        units: the last units, as many as the next window may begin with.
        unit_count: units so far, from the start of the utterance.
        frame_count: final frames so far.
        held: `[mel_bins, H]` float32, frames after the final ones, as the last window has them.
    """

    units: list[int]
    unit_count: int
    frame_count: int
    held: Tensor

    @classmethod
    def empty(cls, mel_bins: int) -> MelState:
        """The start of an utterance."""
        return cls([], 0, 0, torch.zeros(mel_bins, 0))


def extend_mel(
    flow: FlowMatching,
    state: MelState,
    units: list[int],
    speaker: Tensor,
    seed: int,
    windowing: MelWindowing,
    abort: AbortCheck = never_abort,
) -> Generator[int, None, Tensor]:
    """The frames that `units`, at least one, make final: `[1, mel_bins, T]` float32. T may be 0.

    A generator that yields after the encoding of the units and after each Euler step, each time the mel frames that
    entered the velocity network; `state` changes with the last.

    Args:
        flow: the network.
        state: the utterance so far.
        units: what follows.
        speaker: embedding `[1, speaker_size]`.
        seed: of the noise.
        windowing: the same for the whole utterance.
        abort: called between layers and Euler steps.
    """
    config = flow.config
    window = state.units + units
    total = state.unit_count + len(units)
    first_frame = config.frames(total - len(window))
    device = flow.encoder_proj.weight.device
    mu = flow.window_mean(torch.tensor([window], device=device), total - len(window), abort)
    yield 0
    noise = flow.noise(seed, first_frame, mu.shape[1])
    mel = noise
    for mel in flow.euler_steps(noise, mu, flow.encode_speaker(speaker.to(device)), abort):  # noqa: B007
        yield mu.shape[1]
    fresh = mel[:, :, state.frame_count - first_frame :].float()
    fade_in(fresh[0], state.held.to(device), windowing.fade_frames)
    final = max(0, fresh.shape[2] - windowing.held_frames)
    state.held = fresh[0, :, final:].clone()
    state.frame_count += final
    state.unit_count = total
    state.units = window[-(windowing.context_units + units_for(flow, windowing.held_frames)) :]
    return fresh[:, :, :final]


def finish_mel(state: MelState) -> Tensor:
    """The frames held back, `[1, mel_bins, T]`, as final ones. The utterance may go on after them."""
    held = state.held[None]
    state.frame_count += held.shape[2]
    state.held = state.held[:, :0]
    return held


def units_for(flow: FlowMatching, frames: int) -> int:
    """Units that cover `frames` mel frames wherever they lie."""
    return flow.config.unit_of_frame(frames) + 2


def fade_in(fresh: Tensor, held: Tensor, fade_frames: int) -> None:
    """Let `held` fade out at the start of `fresh` `[mel_bins, T]`, in place."""
    count = min(fade_frames, held.shape[1], fresh.shape[1])
    if count:
        ramp = (torch.arange(count, device=fresh.device) + 0.5) / count
        weight = torch.sin(0.5 * torch.pi * ramp).square()
        fresh[:, :count] = weight * fresh[:, :count] + (1 - weight) * held[:, :count]
