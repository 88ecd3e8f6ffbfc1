"""Tokenizers, front ends and the voice generator that go with a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from taste_grpc.audio import log_mel, resample
from taste_grpc.errors import BatchSizeError, CheckpointError, InvalidInputError, InvalidTypeError, type_name
from taste_grpc.model.arguments import check_number
from taste_grpc.model.checkpoint.loading import TorchSource, load_into, read_json
from taste_grpc.model.checkpoint.pretrained import (
    load_asr_tokenizer,
    load_text_tokenizer,
    resolve_checkpoint,
    resolve_device,
)
from taste_grpc.model.speaker import SpeakerEncoder
from taste_grpc.model.text.tokens import TextTokenizer
from taste_grpc.model.text.whisper_ids import WhisperSpecialIds
from taste_grpc.model.text.words import encode_words, split_words
from taste_grpc.model.voice_generator.generator import VoiceGenerator, VoiceGeneratorConfig

Float32Array = npt.NDArray[np.float32]
Transcribe = Callable[[Float32Array], str]

MODEL_SAMPLE_RATE_HZ = 16_000
MAX_AUDIO_S = 30.0
MAX_SAMPLING_RATE_HZ = 1_000_000


class TasteProcessor:
    """From audio and text to model inputs.

    Attributes:
        llm_tokenizer: the LLM's tokenizer (transformers); `text_tokenizer` is the same with its id sets.
        audio_tokenizer: the Whisper tokenizer.
        transcribe: recogniser for audio that comes without text (16 kHz float32 samples to text), or None.
    """

    def __init__(
        self,
        directory: Path,
        text_tokenizer: TextTokenizer,
        asr_tokenizer: PreTrainedTokenizerFast,
        mel_bins: int,
        transcribe: Transcribe | None = None,
    ) -> None:
        self.directory = directory
        self.text_tokenizer = text_tokenizer
        self.audio_tokenizer = asr_tokenizer
        self.transcribe = transcribe
        self._mel_bins = mel_bins
        self._generators: dict[torch.device, VoiceGenerator] = {}

    @classmethod
    def from_pretrained(cls, model: str | Path, *, transcribe: Transcribe | None = None) -> Self:
        """Read the tokenizers of a checkpoint given as a directory or hub id. Raises CheckpointError."""
        directory = resolve_checkpoint(model)
        asr_config = read_json(directory / "config.json").get("asr_config") or {}
        if not isinstance(asr_config, dict):
            raise CheckpointError(f"{directory / 'config.json'}: asr_config is not an object")
        return cls(
            directory,
            load_text_tokenizer(directory),
            load_asr_tokenizer(directory, asr_config),
            int(asr_config.get("num_mel_bins", 128)),
            transcribe,
        )

    @property
    def llm_tokenizer(self) -> PreTrainedTokenizerFast:
        """The LLM's tokenizer."""
        return self.text_tokenizer.tokenizer

    @cached_property
    def whisper_special_ids(self) -> WhisperSpecialIds:
        """Ids the audio tower puts around the Whisper tokens."""
        return WhisperSpecialIds.from_tokenizer(self.audio_tokenizer)

    @cached_property
    def speaker_encoder(self) -> SpeakerEncoder:
        """The speaker network, loaded when first used."""
        return SpeakerEncoder(self.directory / "cosyvoice" / "speaker_embed.onnx")

    def get_generator(
        self, device: str | int | torch.device = "auto", *, show_progress: bool | None = None
    ) -> VoiceGenerator:
        """The voice generator (speech units to waveform), in float32; loaded once per device.

        Raises CheckpointError.
        """
        target = resolve_device(device)
        if target not in self._generators:
            self._generators[target] = self._load_generator(target, show_progress)
        return self._generators[target]

    def _load_generator(self, target: torch.device, show_progress: bool | None) -> VoiceGenerator:
        folder = self.directory / "cosyvoice"
        dims = folder / "voice_generator_dims.json"
        source = TorchSource(folder / "voice_generator.pth")
        config = VoiceGeneratorConfig.from_published(read_json(dims) if dims.is_file() else None, source.shapes)
        with torch.device("meta"):
            generator = VoiceGenerator(config)
        load_into(
            generator,
            source,
            device=target,
            dtype_of=lambda _: torch.float32,
            show_progress=show_progress,
            description="loading voice generator",
        )
        return generator.eval()

    def speaker_embedding(self, clips: Sequence[Float32Array], sampling_rate: int = MODEL_SAMPLE_RATE_HZ) -> Tensor:
        """L2-normalised speaker embedding `[1, 192]` of reference clips, each `[T]` float32."""
        clips = [resample(clip, sampling_rate, MODEL_SAMPLE_RATE_HZ) for clip in clips]
        return torch.from_numpy(self.speaker_encoder.embed(clips))[None]

    def features(self, audio: Float32Array) -> tuple[Tensor, Tensor]:
        """Log-mel `[1, 3000, bins]` and its length `[1]` for 16 kHz samples `[T]`."""
        mel = log_mel(audio, self._mel_bins)
        return torch.from_numpy(mel.features)[None], torch.tensor([mel.frames], dtype=torch.int32)

    def __call__(
        self,
        audio: Float32Array | Tensor,
        sampling_rate: int = MODEL_SAMPLE_RATE_HZ,
        *,
        text: str | None = None,
        ref_audio_list: Sequence[Float32Array | Tensor] | None = None,
    ) -> dict[str, Any]:
        """Everything the batch calls of the model want to know about one clip.

        Args:
            audio: `[T]` or `[1, T]` mono in [-1, 1], at most 30 s.
            sampling_rate: of `audio` and of the reference clips, in Hz.
            text: what is said; recognised by `transcribe` when None.
            ref_audio_list: clips of the voice to speak with; the audio itself when None.

        Returns:
            `asr_token_ids`, `asr_token_lengths`, `asr_word_ids`, `llm_token_ids`, `llm_token_lengths`,
            `llm_word_ids`, `audio_features`, `audio_feature_lengths` and `speaker_embeds`.
        """
        samples = resample(mono_clip("audio", audio, sampling_rate), sampling_rate, MODEL_SAMPLE_RATE_HZ)
        if text is None:
            if self.transcribe is None:
                raise InvalidInputError("text", "is needed: the processor has no recogniser")
            text = self.transcribe(samples)
        words = split_words(text)
        if not words:
            raise InvalidInputError("text", "has no words")
        references = [mono_clip("ref_audio_list", clip, sampling_rate) for clip in ref_audio_list or [audio]]
        features, feature_lengths = self.features(samples)
        inputs: dict[str, Any] = {
            "audio_features": features,
            "audio_feature_lengths": feature_lengths,
            "speaker_embeds": self.speaker_embedding(references, sampling_rate),
        }
        for name, tokens in (
            ("asr", encode_words(self.audio_tokenizer, words)),
            ("llm", encode_words(self.text_tokenizer, words)),
        ):
            inputs[f"{name}_token_ids"] = torch.tensor([tokens.ids])
            inputs[f"{name}_token_lengths"] = torch.tensor([len(tokens.ids)], dtype=torch.int32)
            inputs[f"{name}_word_ids"] = torch.tensor([tokens.word_ids])
        return inputs


def mono_clip(name: str, audio: Float32Array | Tensor, sampling_rate: int) -> Float32Array:
    """`audio` as `[T]` float32, checked.

    Raises InvalidTypeError for what is no array of floating-point samples, BatchSizeError for more than one
    clip, InvalidInputError for another shape, NaN or infinite samples, nothing at all, or more than 30 s.
    """
    if not isinstance(audio, (Tensor, np.ndarray)):
        raise InvalidTypeError(name, f"is a {type_name(audio)}; a tensor or array of samples is expected")
    if not _holds_floats(audio):
        raise InvalidTypeError(name, f"has dtype {audio.dtype}; floating-point samples in [-1, 1] are expected")
    shape = tuple(audio.shape)
    if len(shape) == 2 and shape[0] != 1:
        raise BatchSizeError(name, f"has shape {shape}; one clip [1, T] at a time")
    if len(shape) not in (1, 2) or 0 in shape:
        raise InvalidInputError(name, f"has shape {shape}; [T] or [1, T] with T > 0 is expected")
    samples = (audio.detach().cpu().float().numpy() if isinstance(audio, Tensor) else audio).reshape(-1)
    if not 0 < check_number("sampling_rate", sampling_rate) < MAX_SAMPLING_RATE_HZ:
        raise InvalidInputError("sampling_rate", f"{sampling_rate} is not a positive number of Hz")
    if len(samples) > MAX_AUDIO_S * sampling_rate:
        seconds = len(samples) / sampling_rate
        raise InvalidInputError(name, f"is {seconds:.2f} s long; at most {MAX_AUDIO_S:g} s are allowed")
    with np.errstate(over="ignore"):
        samples = np.ascontiguousarray(samples, dtype=np.float32)
    bad = np.flatnonzero(~np.isfinite(samples))
    if bad.size:
        raise InvalidInputError(name, f"sample {bad[0]} is {samples[bad[0]]}; finite samples in [-1, 1] are expected")
    return samples


def _holds_floats(audio: Float32Array | Tensor) -> bool:
    return audio.is_floating_point() if isinstance(audio, Tensor) else np.issubdtype(audio.dtype, np.floating)
