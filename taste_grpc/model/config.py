"""Configuration of the whole model: config.json and, where it is silent, the shapes of the tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from taste_grpc.errors import CheckpointError, TasteError
from taste_grpc.model.audio_tower.tower import AudioTowerConfig
from taste_grpc.model.speech_decoder.decoder import SpeechDecoderConfig
from taste_grpc.model.spoken_lm.network import SpokenLMConfig

_SECTIONS = ("asr_config", "audio_tower_config", "speech_decoder_config", "spoken_lm_config", "text_config")


@dataclass(frozen=True)
class TasteConfig:
    """Configuration of the three parts, and the file they came from (`published`)."""

    audio_tower: AudioTowerConfig
    spoken_lm: SpokenLMConfig
    speech_decoder: SpeechDecoderConfig
    published: dict[str, Any]

    @classmethod
    def from_published(
        cls,
        config: dict[str, Any],
        shapes: Mapping[str, tuple[int, ...]] | None = None,
        attn_implementation: str = "sdpa",
    ) -> Self:
        """Read the contents of a config.json.

        Args:
            config: the parsed file.
            shapes: shapes of the stored tensors by name; None takes the published sizes.
            attn_implementation: `sdpa` or `eager`.

        Raises:
            CheckpointError: a section or value is missing, unknown, or contradicts a tensor.
        """
        missing = [name for name in _SECTIONS if not isinstance(config.get(name), dict)]
        if missing:
            raise CheckpointError(f"config.json has no {', '.join(missing)}; it is not a TASTE configuration")
        try:
            return cls(
                audio_tower=AudioTowerConfig.from_published(config, shapes, attn_implementation),
                spoken_lm=SpokenLMConfig.from_published(config, shapes, attn_implementation),
                speech_decoder=SpeechDecoderConfig.from_published(config, shapes),
                published=config,
            )
        except KeyError as error:
            raise CheckpointError(f"config.json lacks the value {error}") from error
        except (TypeError, ValueError, AttributeError) as error:
            if isinstance(error, TasteError):
                raise
            raise CheckpointError(f"config.json has a value of the wrong kind: {error}") from error
