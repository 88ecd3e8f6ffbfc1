"""Loading a model with everything that belongs to it."""

from __future__ import annotations

import logging
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from taste_grpc.engine.protocol import ModelInfo
from taste_grpc.errors import UnsupportedByModelError
from taste_grpc.model.checkpoint.manifest import trained_parts
from taste_grpc.model.checkpoint.pretrained import fingerprint, resolve_checkpoint
from taste_grpc.model.processor import MODEL_SAMPLE_RATE_HZ, TasteProcessor
from taste_grpc.model.taste import TasteForCausalLM
from taste_grpc.settings import DEFAULT_MODEL
from taste_grpc.speech import Recogniser
from taste_grpc.streaming import conversation_formats
from taste_grpc.streaming.conversation import ConversationFormat

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadedModel:
    """A model ready for calls."""

    model: TasteForCausalLM
    processor: TasteProcessor
    recogniser: Recogniser | None
    info: ModelInfo

    @property
    def default_format(self) -> ConversationFormat:
        """Conversation format of requests that name none."""
        return conversation_formats(self.processor)[0]


def load_model(
    model: str | Path, device: str, dtype: str, threads: int | None, cache_dir: Path | None = None
) -> LoadedModel:
    """Load everything, on the thread that will use it. Raises CheckpointError."""
    torch.set_num_threads(threads or default_threads())
    embedded = str(model) == DEFAULT_MODEL
    directory = _assemble_embedded(cache_dir) if embedded else resolve_checkpoint(model)
    taste = TasteForCausalLM.from_pretrained(directory, device=device, dtype=dtype)
    processor = TasteProcessor.from_pretrained(directory)
    processor.get_generator(taste.device)
    recogniser = _recogniser()
    info = _describe(str(model) if embedded else directory.name, directory, taste, processor, recogniser)
    return LoadedModel(taste, processor, recogniser, info)


def default_threads() -> int:
    """Threads of one computation on the CPU when nobody says: half of the cores.

    The recogniser and the event loop want cores too, and a computation that waits for a thread on a busy core
    is slower than one with fewer threads.
    """
    return max(1, (os.cpu_count() or 1) // 2)


def _assemble_embedded(cache_dir: Path | None) -> Path:
    from taste_grpc.model.embedded.nano import ensure_taste_nano

    return ensure_taste_nano(cache_dir, progress=logger.info)


def _recogniser() -> Recogniser | None:
    from taste_grpc.speech import default_recogniser

    try:
        return default_recogniser()
    except UnsupportedByModelError as error:
        logger.warning("no speech recogniser: %s", error)
        return None


def _describe(
    model_id: str,
    directory: Path,
    taste: TasteForCausalLM,
    processor: TasteProcessor,
    recogniser: Recogniser | None,
) -> ModelInfo:
    generator = processor.get_generator(taste.device)
    special = {"sos": taste.spoken_lm.config.sos_id}
    if processor.llm_tokenizer.eos_token_id is not None:
        special["end_of_text"] = int(processor.llm_tokenizer.eos_token_id)
    markers = processor.text_tokenizer.conversation_tokens()
    if markers is not None:
        special.update(asdict(markers))
    return ModelInfo(
        model_id=model_id,
        revision=fingerprint(directory),
        parts_trained=trained_parts(directory),
        text_vocab_size=taste.spoken_lm.vocab_size,
        asr_vocab_size=len(processor.audio_tokenizer),
        vq_dim=taste.vq_dim,
        codebook_size=taste.config.audio_tower.quantizer.codebook_size,
        speaker_embedding_dim=taste.config.speech_decoder.speaker_size,
        input_sample_rate_hz=MODEL_SAMPLE_RATE_HZ,
        output_sample_rate_hz=generator.sampling_rate_hz,
        speech_unit_rate_hz=int(generator.config.flow.unit_rate_hz),
        special_tokens=special,
        conversation_formats=conversation_formats(processor),
        device=str(taste.device),
        dtype=str(taste.dtype).removeprefix("torch."),
        asr=recogniser.name if recogniser else "",
    )
