"""The excitation of the vocoder: sines at the harmonics of f0, and noise."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from taste_grpc.model.random import CounterRandom, Stream


@dataclass(frozen=True)
class SourceConfig:
    """Constants of a `HarmonicSource`.

    Attributes:
        harmonics: sines above the fundamental.
        sampling_rate_hz: of the excitation.
        samples_per_frame: samples for which one f0 value stands.
        sine_amplitude: of each sine in voiced frames; unvoiced frames have noise of a third of it.
        noise_amplitude: standard deviation of the noise in voiced frames.
        voiced_threshold_hz: frames with a greater f0 are voiced.
    """

    harmonics: int
    sampling_rate_hz: int
    samples_per_frame: int
    sine_amplitude: float
    noise_amplitude: float
    voiced_threshold_hz: float


@dataclass(frozen=True)
class SourceRandomness:
    """Random parts of the excitation of one seed, each a function of absolute position.

    Attributes:
        seed: any integer.
    """

    seed: int

    def phases(self, sines: int) -> Tensor:
        """Start phases `[1, sines, 1]` float64 in radians: 0 for the first, others in (-pi, pi)."""
        uniforms = CounterRandom(self.seed).uniforms(Stream.SOURCE_PHASE, 0, sines)
        phases = torch.from_numpy((2 * uniforms - 1) * np.pi)
        phases[0] = 0.0
        return phases[None, :, None]

    def noise(self, sines: int, first_sample: int, samples: int) -> Tensor:
        """N(0, 1) numbers `[1, sines, samples]` float32 of the absolute samples from `first_sample` on."""
        rows = CounterRandom(self.seed).normals(Stream.SOURCE_NOISE, first_sample, samples, sines)
        return torch.from_numpy(rows).T[None]


class HarmonicSource(nn.Module):
    """Excitation from f0. The running phase is kept in float64 on every device, since its errors add up."""

    def __init__(self, config: SourceConfig) -> None:
        super().__init__()
        self.config = config
        self.l_linear = nn.Linear(config.harmonics + 1, 1)

    @property
    def sines(self) -> int:
        """The fundamental and its harmonics."""
        return self.config.harmonics + 1

    def voiced(self, f0: Tensor) -> Tensor:
        """Which frames of `f0` (Hz) are voiced, as bool."""
        return f0 > self.config.voiced_threshold_hz

    def cycles(self, f0: Tensor, start: Tensor | float = 0.0) -> tuple[Tensor, Tensor]:
        """Cycles of the fundamental, modulo 1, at each sample of `f0` `[B, T]`, and where the next frame starts.

        `start` (`[B]` float64, or a number) is what an earlier call returned as the second value, so a signal
        may be made in pieces. Returns `[B, samples]` and `[B]`, float64.
        """
        per_sample = f0.double() / self.config.sampling_rate_hz  # [B, T]
        per_frame = per_sample * self.config.samples_per_frame
        begin = torch.as_tensor(start, dtype=torch.float64, device=f0.device).reshape(-1, 1)
        ends = begin + per_frame.cumsum(dim=1)
        begins = torch.cat([begin.expand(len(f0), 1), ends[:, :-1]], dim=1)
        ramp = torch.arange(1, self.config.samples_per_frame + 1, dtype=torch.float64, device=f0.device)
        cycles = begins[..., None] + per_sample[..., None] * ramp
        return cycles.flatten(1).frac(), ends[:, -1].frac()

    @torch.no_grad()
    def forward(
        self, f0: Tensor, phases: Tensor, noise: Tensor | None, start: Tensor | float = 0.0
    ) -> tuple[Tensor, Tensor]:
        """Excitation `[B, samples, 1]` and the cycles `[B]` at which the next frame starts.

        Args:
            f0: `[B, T]` Hz.
            phases: `[B, sines, 1]` radians, the phase of each sine before the first sample of the stream.
            noise: `[B, sines, samples]`, N(0, 1); none when None.
            start: cycles at which this piece starts; 0 at the start of the stream.
        """
        config = self.config
        cycles, following = self.cycles(f0, start)
        multiple = torch.arange(1, self.sines + 1, dtype=torch.float64, device=f0.device)[:, None]
        angles = 2 * math.pi * (cycles[:, None] * multiple).frac() + phases.to(f0.device, torch.float64)
        voiced = self.voiced(f0).repeat_interleave(config.samples_per_frame, dim=1)[:, None]  # [B, 1, samples]
        waves = torch.where(voiced, config.sine_amplitude * angles.sin(), 0.0).float()
        if noise is not None:
            spread = torch.where(voiced, config.noise_amplitude, config.sine_amplitude / 3)
            waves = waves + spread * noise.to(waves)
        mixed: Tensor = self.l_linear(waves.transpose(1, 2).to(self.l_linear.weight.dtype))
        return mixed.tanh(), following
