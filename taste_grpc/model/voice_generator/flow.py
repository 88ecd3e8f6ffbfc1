"""Flow matching: speech units and a speaker to a mel spectrogram, by a few Euler steps from noise."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from taste_grpc.errors import InvalidInputError
from taste_grpc.model.abort import AbortCheck, never_abort
from taste_grpc.model.layers.rel_pos import RelPosEncoder, RelPosEncoderConfig
from taste_grpc.model.random import CounterRandom, Stream
from taste_grpc.model.voice_generator.flow_estimator import EstimatorConfig, FlowEstimator
from taste_grpc.model.voice_generator.length_regulator import LengthRegulator


@dataclass(frozen=True)
class FlowConfig:
    """Sizes and constants of a `FlowMatching`.

    Attributes:
        vocab_size: speech units.
        speaker_size: width of a speaker embedding.
        mel_bins: channels of the mel spectrogram.
        unit_rate_hz: speech units per second.
        sampling_rate_hz: of the waveform the mel stands for.
        hop_samples: waveform samples per mel frame.
        encoder: full-context encoder of the units.
        regulator_layers: convolutions of the length regulator.
        regulator_groups: groups of its norms.
        steps: Euler steps.
        guidance: classifier-free guidance rate w; velocity = (1 + w) * conditioned - w * unconditioned.
        estimator: the velocity network.
    """

    vocab_size: int
    speaker_size: int
    mel_bins: int
    unit_rate_hz: int
    sampling_rate_hz: int
    hop_samples: int
    encoder: RelPosEncoderConfig
    regulator_layers: int
    regulator_groups: int
    steps: int
    guidance: float
    estimator: EstimatorConfig

    def frames(self, units: int) -> int:
        """Mel frames of `units` speech units; float32 arithmetic, as published."""
        seconds = np.float32(units) / np.float32(self.unit_rate_hz)
        return int(seconds * np.float32(self.sampling_rate_hz) / np.float32(self.hop_samples))

    def unit_of_frame(self, frame: int) -> int:
        """The speech unit that sounds in mel frame `frame` of an endless utterance."""
        return frame * self.unit_rate_hz * self.hop_samples // self.sampling_rate_hz


class _ConditionalFlow(nn.Module):
    """Holder of the estimator, for the published names."""

    def __init__(self, config: EstimatorConfig) -> None:
        super().__init__()
        self.estimator = FlowEstimator(config)


class FlowMatching(nn.Module):
    """Units to mel. Without state; all methods run without gradients on the module's device."""

    def __init__(self, config: FlowConfig) -> None:
        super().__init__()
        self.config = config
        self.input_embedding = nn.Embedding(config.vocab_size, config.encoder.input_size)
        self.spk_embed_affine_layer = nn.Linear(config.speaker_size, config.mel_bins)
        self.encoder = RelPosEncoder(config.encoder)
        self.encoder_proj = nn.Linear(config.encoder.width, config.mel_bins)
        self.decoder = _ConditionalFlow(config.estimator)
        self.length_regulator = LengthRegulator(config.mel_bins, config.regulator_layers, config.regulator_groups)

    @torch.no_grad()
    def encode_speaker(self, embedding: Tensor) -> Tensor:
        """Speaker embeddings `[B, speaker_size]` -> `[B, mel_bins]`; their length does not matter."""
        out: Tensor = self.spk_embed_affine_layer(F.normalize(embedding.float(), dim=1).to(self._dtype))
        return out

    @torch.no_grad()
    def encode_units(self, units: Tensor, abort: AbortCheck = never_abort) -> Tensor:
        """Speech units `[B, N]` (all N count) -> `[B, N, encoder width]`. Negative ids count as 0.

        Raises InvalidInputError for ids that are too large and for an empty sequence.
        """
        if units.shape[1] == 0:
            raise InvalidInputError("speech_token_ids", "at least one speech unit is needed")
        largest = int(units.max())
        if largest >= self.config.vocab_size:
            raise InvalidInputError("speech_token_ids", f"{largest} is not below {self.config.vocab_size}")
        return self.encoder(self.input_embedding(units.long().clamp(min=0)), abort=abort)  # type: ignore[no-any-return]

    @torch.no_grad()
    def mean(self, units: Tensor, abort: AbortCheck = never_abort) -> Tensor:
        """Speech units `[B, N]` -> what the flow is conditioned on, `[B, T, mel_bins]` with T = `frames(N)`."""
        projected = self.encoder_proj(self.encode_units(units, abort))
        out: Tensor = self.length_regulator(projected, self.config.frames(units.shape[1]))
        return out

    @torch.no_grad()
    def window_mean(self, units: Tensor, first_unit: int, abort: AbortCheck = never_abort) -> Tensor:
        """`mean` of a window `[B, N]` of an utterance, from its unit `first_unit` on: `[B, T, mel_bins]`.

        The window has the frames from `frames(first_unit)` to `frames(first_unit + N)` of the utterance.
        """
        count, config = units.shape[1], self.config
        projected = self.encoder_proj(self.encode_units(units, abort))
        rows = [
            min(max(config.unit_of_frame(frame) - first_unit, 0), count - 1)
            for frame in range(config.frames(first_unit), config.frames(first_unit + count))
        ]
        return self.length_regulator.smooth(projected[:, rows])

    def noise(self, seed: int, first_frame: int, frames: int) -> Tensor:
        """Start noise `[1, mel_bins, frames]` float32 of the absolute frames from `first_frame` on."""
        rows = CounterRandom(seed).normals(Stream.FLOW_NOISE, first_frame, frames, self.config.mel_bins)
        device = self.encoder_proj.weight.device
        return torch.from_numpy(rows).T[None].to(device=device, dtype=self._dtype)

    def schedule(self) -> list[tuple[float, float]]:
        """(time, step length) of each Euler step, in float32: t_k = 1 - cos(pi k / (2 steps)), times accumulated."""
        grid = torch.linspace(0, 1, self.config.steps + 1, dtype=torch.float32)
        times = 1 - torch.cos(grid * 0.5 * math.pi)
        t, steps = times[0], []
        for following in times[1:]:
            dt = following - t
            steps.append((float(t), float(dt)))
            t = t + dt
        return steps

    @torch.no_grad()
    def velocity(self, x: Tensor, mu: Tensor, speaker: Tensor, t: float) -> tuple[Tensor, Tensor]:
        """Conditioned and unconditioned velocity at time `t`, one network call for both.

        `x` is `[B, mel_bins, T]`, `mu` `[B, T, mel_bins]`, `speaker` `[B, mel_bins]`; all rows have T frames.
        """
        rows = x.shape[0]
        mean = torch.cat([mu.transpose(1, 2), torch.zeros_like(x)])
        voice = torch.cat([speaker, torch.zeros_like(speaker)])
        condition = torch.zeros_like(mean)  # no mel prompt
        times = torch.full((2 * rows,), t, dtype=torch.float32, device=x.device)
        both: Tensor = self.decoder.estimator(torch.cat([x, x]), mean, voice, condition, times)
        return both[:rows], both[rows:]

    def euler_steps(self, x: Tensor, mu: Tensor, speaker: Tensor, abort: AbortCheck = never_abort) -> Iterator[Tensor]:
        """States `[B, mel_bins, T]` after each Euler step from `x`; the last one is the mel.

        Other work may be done between steps; `abort` is called before each.
        """
        guidance = self.config.guidance
        for t, dt in self.schedule():
            abort()
            conditioned, unconditioned = self.velocity(x, mu, speaker, t)
            x = x + dt * ((1 + guidance) * conditioned - guidance * unconditioned)
            yield x

    @torch.no_grad()
    def mel(
        self,
        units: Tensor,
        embedding: Tensor,
        *,
        noise: Tensor | None = None,
        seed: int = 0,
        first_frame: int = 0,
        abort: AbortCheck = never_abort,
    ) -> Tensor:
        """Mel spectrogram `[1, mel_bins, T]` of speech units `[1, N]` in the voice of `embedding` `[1, speaker_size]`.

        `noise` `[1, mel_bins, T]` is the state to start from; when not given it is drawn from `seed` as that of
        the absolute frames from `first_frame` on. `abort` is called between layers and Euler steps.
        """
        mu = self.mean(units, abort)
        x = self.noise(seed, first_frame, mu.shape[1]) if noise is None else noise.to(mu)
        if x.shape != (mu.shape[0], mu.shape[2], mu.shape[1]):
            raise InvalidInputError(
                "noise", f"shape {tuple(x.shape)}; {(mu.shape[0], mu.shape[2], mu.shape[1])} is needed"
            )
        state = x
        for state in self.euler_steps(x, mu, self.encode_speaker(embedding.to(mu.device)), abort):  # noqa: B007
            pass
        return state

    @property
    def _dtype(self) -> torch.dtype:
        return self.encoder_proj.weight.dtype
