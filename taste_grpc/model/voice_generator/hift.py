"""HiFT vocoder: mel spectrogram to waveform by a neural source filter that ends in an inverse STFT.

The source (f0, excitation) and the filter are separate calls, so that a chunked vocoder can carry the source's
phase from chunk to chunk and decode with context on both sides.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from taste_grpc.errors import InvalidInputError
from taste_grpc.model.abort import AbortCheck, never_abort
from taste_grpc.model.voice_generator.hift_source import HarmonicSource, SourceConfig, SourceRandomness
from taste_grpc.model.voice_generator.weight_norm import WeightNormConv1d, WeightNormConvTranspose1d

_OUTER_KERNEL = 7
_MAX_MAGNITUDE = 100.0
_LAST_SLOPE = 0.01  # the published code leaves the slope at its default before the last convolution
_ALPHA_FLOOR = 1e-9


@dataclass(frozen=True)
class HiftConfig:
    """Sizes and constants of a `HiftVocoder`.

    Attributes:
        mel_bins: channels of the mel spectrogram.
        channels: width after the first convolution; halved by each upsampling.
        upsample_rates: factor of each upsampling stage.
        upsample_kernels: kernel of each.
        n_fft: window of the (inverse) STFT, in samples.
        hop_samples: its hop.
        kernels: kernel of each of a stage's residual blocks.
        dilations: dilations of each.
        source_kernels: kernel of the source branch's residual block of each stage.
        source_dilations: dilations of each.
        slope: of the leaky ReLUs.
        audio_limit: the waveform is clamped to plus and minus this.
        f0_channels: width of the f0 predictor.
        f0_layers: its convolutions.
        source: the excitation.
    """

    mel_bins: int
    channels: int
    upsample_rates: tuple[int, ...]
    upsample_kernels: tuple[int, ...]
    n_fft: int
    hop_samples: int
    kernels: tuple[int, ...]
    dilations: tuple[tuple[int, ...], ...]
    source_kernels: tuple[int, ...]
    source_dilations: tuple[tuple[int, ...], ...]
    slope: float
    audio_limit: float
    f0_channels: int
    f0_layers: int
    source: SourceConfig

    @property
    def samples_per_frame(self) -> int:
        """Waveform samples of one mel frame."""
        return math.prod(self.upsample_rates) * self.hop_samples

    @property
    def f0_context_frames(self) -> int:
        """Frames on either side of a frame that its f0 depends on."""
        return self.f0_layers

    @property
    def context_frames(self) -> int:
        """Frames on either side of a sample's own that the sample depends on, given the excitation."""
        reach = self.n_fft / (2 * self.hop_samples) + 1 + _OUTER_KERNEL // 2  # in steps of the stage at hand
        steps_per_frame = math.prod(self.upsample_rates)
        widest = 0.0
        for stage in reversed(range(len(self.upsample_rates))):
            reach += max(_reach(k, d) for k, d in zip(self.kernels, self.dilations, strict=True))
            excitation = reach + _reach(self.source_kernels[stage], self.source_dilations[stage]) + 2
            widest = max(widest, (excitation + self.n_fft / (2 * self.hop_samples)) / steps_per_frame)
            kernel, rate = self.upsample_kernels[stage], self.upsample_rates[stage]
            reach = (reach + 1 + kernel - 1 - (kernel - rate) // 2) / rate
            steps_per_frame //= rate
        return math.ceil(max(widest, reach + _OUTER_KERNEL // 2))


def _reach(kernel: int, dilations: tuple[int, ...]) -> int:
    """Steps on either side that the output of a residual block depends on."""
    return sum((kernel // 2) * (dilation + 1) for dilation in dilations)


class _Snake(nn.Module):
    """x + sin^2(alpha x) / alpha, alpha per channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        alpha = self.alpha[:, None]
        return x + (x * alpha).sin().square() / (alpha + _ALPHA_FLOOR)


class _ResBlock(nn.Module):
    def __init__(self, channels: int, kernel: int, dilations: tuple[int, ...]) -> None:
        super().__init__()
        self.convs1 = nn.ModuleList(WeightNormConv1d(channels, channels, kernel, dilation=d) for d in dilations)
        self.convs2 = nn.ModuleList(WeightNormConv1d(channels, channels, kernel) for _ in dilations)
        self.activations1 = nn.ModuleList(_Snake(channels) for _ in dilations)
        self.activations2 = nn.ModuleList(_Snake(channels) for _ in dilations)

    def forward(self, x: Tensor) -> Tensor:
        for first, dilated, second, plain in zip(
            self.activations1, self.convs1, self.activations2, self.convs2, strict=True
        ):
            x = x + plain(second(dilated(first(x))))
        return x


class F0Predictor(nn.Module):
    """f0 in Hz for each mel frame."""

    def __init__(self, mel_bins: int, channels: int, layers: int) -> None:
        super().__init__()
        self.condnet = nn.Sequential()
        for index in range(layers):
            self.condnet.extend([WeightNormConv1d(channels if index else mel_bins, channels, 3), nn.ELU()])
        self.classifier = nn.Linear(channels, 1)

    def forward(self, mel: Tensor) -> Tensor:
        """`[B, mel_bins, T]` -> `[B, T]`, never negative."""
        out: Tensor = self.classifier(self.condnet(mel).transpose(1, 2))
        return out[..., 0].abs()


class HiftVocoder(nn.Module):
    """Mel to waveform. Without state; all methods run without gradients on the module's device."""

    def __init__(self, config: HiftConfig) -> None:
        super().__init__()
        self.config = config
        bins = config.n_fft + 2  # real and imaginary parts, or magnitudes and phases
        widths = [config.channels // 2**stage for stage in range(len(config.upsample_rates) + 1)]
        self.m_source = HarmonicSource(config.source)
        self.conv_pre = WeightNormConv1d(config.mel_bins, widths[0], _OUTER_KERNEL)
        self.ups = nn.ModuleList()
        self.source_downs = nn.ModuleList()
        self.source_resblocks = nn.ModuleList()
        self.resblocks = nn.ModuleList()
        for stage, rate in enumerate(config.upsample_rates):
            width = widths[stage + 1]
            kernel = config.upsample_kernels[stage]
            self.ups.append(WeightNormConvTranspose1d(widths[stage], width, kernel, rate))
            down = math.prod(config.upsample_rates[stage + 1 :])
            geometry = (2 * down, down, down // 2) if down > 1 else (1, 1, 0)
            self.source_downs.append(nn.Conv1d(bins, width, *geometry))
            self.source_resblocks.append(_ResBlock(width, config.source_kernels[stage], config.source_dilations[stage]))
            self.resblocks.extend(_ResBlock(width, k, d) for k, d in zip(config.kernels, config.dilations, strict=True))
        self.conv_post = WeightNormConv1d(widths[-1], bins, _OUTER_KERNEL)
        self.f0_predictor = F0Predictor(config.mel_bins, config.f0_channels, config.f0_layers)

    @torch.no_grad()
    def f0(self, mel: Tensor) -> Tensor:
        """f0 `[B, T]` in Hz, float32, of a mel spectrogram `[B, mel_bins, T]`."""
        out: Tensor = self.f0_predictor(mel.to(self.f0_predictor.classifier.weight.dtype))
        return out.float()

    @torch.no_grad()
    def source(
        self,
        f0: Tensor,
        *,
        seed: int = 0,
        phases: Tensor | None = None,
        noise: Tensor | None = None,
        first_sample: int = 0,
        start_cycles: Tensor | float = 0.0,
    ) -> tuple[Tensor, Tensor]:
        """Excitation `[B, samples, 1]` of `f0` `[B, T]`, and the cycles `[B]` at which the next frame starts.

        Args:
            f0: Hz per frame.
            seed: what phases and noise are drawn from when they are not given.
            phases: `[B, sines, 1]` start phases in radians.
            noise: `[B, sines, samples]` of N(0, 1).
            first_sample: absolute index of the first sample, which picks its noise.
            start_cycles: the second value returned for the piece before this one.
        """
        sines, samples = self.m_source.sines, f0.shape[1] * self.config.samples_per_frame
        random = SourceRandomness(seed)
        phases = random.phases(sines) if phases is None else phases
        noise = random.noise(sines, first_sample, samples) if noise is None else noise
        excitation, following = self.m_source(f0, phases, noise, start_cycles)
        return excitation, following

    def source_spectrum(self, source: Tensor) -> Tensor:
        """STFT of an excitation `[B, samples, 1]`: real, then imaginary parts, `[B, n_fft + 2, frames]`."""
        config = self.config
        spectrum = torch.stft(
            source[..., 0].float(), config.n_fft, config.hop_samples, window=self._window(), return_complex=True
        )
        return torch.cat([spectrum.real, spectrum.imag], dim=1).to(self._dtype)

    def source_branch(self, stage: int, spectrum: Tensor) -> Tensor:
        """What stage `stage` adds for the excitation with this `source_spectrum`."""
        out: Tensor = self.source_resblocks[stage](self.source_downs[stage](spectrum))
        return out

    @torch.no_grad()
    def filter(self, mel: Tensor, source: Tensor, abort: AbortCheck = never_abort) -> Tensor:
        """Output channels `[B, n_fft + 2, frames]`: log magnitudes, then phases before their sine."""
        config = self.config
        spectrum = self.source_spectrum(source)
        x = self.conv_pre(mel.to(self._dtype))
        blocks = len(config.kernels)
        for stage, upsample in enumerate(self.ups):
            abort()
            x = upsample(F.leaky_relu(x, config.slope))
            if stage == len(self.ups) - 1:  # one frame more, as a centred STFT has
                x = F.pad(x, (1, 0), mode="reflect")
            x = x + self.source_branch(stage, spectrum)
            parallel = self.resblocks[stage * blocks : (stage + 1) * blocks]
            total = parallel[0](x)
            for block in parallel[1:]:
                abort()
                total = total + block(x)
            x = total / blocks
        out: Tensor = self.conv_post(F.leaky_relu(x, _LAST_SLOPE))
        return out

    @torch.no_grad()
    def decode(self, mel: Tensor, source: Tensor, abort: AbortCheck = never_abort) -> Tensor:
        """Waveform `[B, samples]` float32 of a mel `[B, mel_bins, T]` and an excitation `[B, samples, 1]`.

        `samples` is T * `samples_per_frame`. Raises InvalidInputError when the two do not fit.
        """
        samples = mel.shape[2] * self.config.samples_per_frame
        if source.shape[1] != samples:
            raise InvalidInputError("source", f"{source.shape[1]} samples; {samples} belong to {mel.shape[2]} frames")
        channels = self.filter(mel, source, abort).float()
        bins = self.config.n_fft // 2 + 1
        magnitude = channels[:, :bins].exp().clamp(max=_MAX_MAGNITUDE)
        spectrum = torch.polar(magnitude, channels[:, bins:].sin())
        waveform = torch.istft(spectrum, self.config.n_fft, self.config.hop_samples, window=self._window())
        return waveform.clamp(-self.config.audio_limit, self.config.audio_limit)

    def _window(self) -> Tensor:
        return torch.hann_window(self.config.n_fft, periodic=True, device=self.conv_post.bias.device)

    @property
    def _dtype(self) -> torch.dtype:
        return self.conv_post.bias.dtype
