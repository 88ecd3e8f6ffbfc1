"""The published voice generator: speech units and a speaker to a waveform."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from taste_grpc.errors import BatchSizeError, InvalidInputError
from taste_grpc.model.abort import AbortCheck, never_abort
from taste_grpc.model.voice_generator.config import VoiceGeneratorConfig
from taste_grpc.model.voice_generator.flow import FlowMatching
from taste_grpc.model.voice_generator.hift import HiftVocoder
from taste_grpc.model.voice_generator.weight_norm import fold_weight_norm_

__all__ = ["VoiceGenerator", "VoiceGeneratorConfig"]


class VoiceGenerator(nn.Module):
    """Flow matching, then the vocoder. Without state; not meant to be called from two threads at once."""

    def __init__(self, config: VoiceGeneratorConfig) -> None:
        super().__init__()
        self.config = config
        self.flow = FlowMatching(config.flow)
        self.hift = HiftVocoder(config.hift)

    @property
    def sampling_rate_hz(self) -> int:
        """Rate of the waveforms."""
        return self.config.sampling_rate_hz

    def fold_(self) -> None:
        """Replace weight norm by plain weights, computed in float32; does nothing the second time.

        The f0 predictor goes on in float64: f0 adds up to the phase of the excitation, where rounding that depends
        on how many frames are computed at once would be heard at the joins of a stream.
        """
        fold_weight_norm_(self)
        self.hift.f0_predictor.double()

    @torch.no_grad()
    def inference(
        self,
        speech_token_ids: Tensor,
        speech_token_lengths: Tensor | None = None,
        *,
        flow_embedding: Tensor,
        seed: int = 0,
        flow_noise: Tensor | None = None,
        source_phases: Tensor | None = None,
        source_noise: Tensor | None = None,
        abort: AbortCheck = never_abort,
    ) -> tuple[Tensor, int]:
        """Waveform of speech units.

        Args:
            speech_token_ids: int `[1, N]`.
            speech_token_lengths: `[1]`, units that count; all when None.
            flow_embedding: `[1, speaker_size]`.
            seed: what is random is a function of it, wherever the following are not given.
            flow_noise: `[1, mel_bins, T]`, the flow's start.
            source_phases: `[1, sines, 1]` radians.
            source_noise: `[1, sines, samples]`.
            abort: called between layers, Euler steps and vocoder stages.

        Returns:
            float32 `[1, samples]` in [-1, 1], and its sampling rate.

        Raises BatchSizeError for other batch sizes, InvalidInputError for ids out of range or none at all.
        """
        for name, given in (("speech_token_ids", speech_token_ids), ("flow_embedding", flow_embedding)):
            if given.dim() != 2:
                raise InvalidInputError(name, f"shape {tuple(given.shape)}; two dimensions are needed")
            if given.shape[0] != 1:
                raise BatchSizeError(name, f"a batch of {given.shape[0]}; one is needed")
        if speech_token_lengths is not None:
            speech_token_ids = speech_token_ids[:, : int(speech_token_lengths.reshape(-1)[0])]
        device = self.flow.encoder_proj.weight.device
        mel = self.flow.mel(
            speech_token_ids.to(device), flow_embedding.to(device), noise=flow_noise, seed=seed, abort=abort
        )
        abort()
        source, _ = self.hift.source(self.hift.f0(mel), seed=seed, phases=source_phases, noise=source_noise)
        return self.hift.decode(mel, source, abort), self.sampling_rate_hz
