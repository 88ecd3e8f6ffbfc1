"""The Whisper recogniser, with a tiny network of random weights."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from taste_grpc.audio import Encoding, decode_clip
from taste_grpc.audio.waveform import Float32Array
from taste_grpc.errors import CheckpointError, InvalidInputError, UnsupportedByModelError
from taste_grpc.speech import Recogniser, RecogniserPool, WhisperRecogniser, sample_recordings, whisper
from tests.checkpoints import TINY


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A multilingual model in the format of CTranslate2, of int8 weights."""
    from ctranslate2.converters import TransformersConverter
    from transformers import AutoTokenizer, WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration

    folder = tmp_path_factory.mktemp("whisper")
    tokenizer = AutoTokenizer.from_pretrained(TINY / "asr_tokenizer")
    start, end = tokenizer.convert_tokens_to_ids(["<|startoftranscript|>", "<|endoftext|>"])
    torch.manual_seed(0)
    layers = {f"{part}_{name}": size for part in ("encoder", "decoder") for name, size in SIZES.items()}
    config = WhisperConfig(
        vocab_size=len(tokenizer), d_model=16, decoder_start_token_id=start,
        bos_token_id=end, eos_token_id=end, pad_token_id=end, **layers,
    )  # fmt: skip
    for part in (WhisperForConditionalGeneration(config), tokenizer, WhisperFeatureExtractor()):
        part.save_pretrained(folder / "transformers")
    copied = ["tokenizer.json", "preprocessor_config.json"]
    converter = TransformersConverter(str(folder / "transformers"), copy_files=copied)
    converted = Path(converter.convert(str(folder / "converted"), quantization="int8"))
    written = json.loads((converted / "config.json").read_text())
    written["lang_ids"] = tokenizer.convert_tokens_to_ids(["<|en|>", "<|de|>"])  # what the real ones have
    (converted / "config.json").write_text(json.dumps(written))
    return converted


SIZES = {"layers": 1, "attention_heads": 2, "ffn_dim": 32}


@pytest.fixture(scope="module")
def recogniser(directory: Path) -> Recogniser:
    return WhisperRecogniser(str(directory), device="cpu")


@pytest.fixture(scope="module")
def speech() -> Float32Array:
    return decode_clip(sample_recordings()["beckett"].read_bytes(), Encoding.WAV).samples[:32_000]


def test_it_names_itself(recogniser: Recogniser, directory: Path) -> None:
    assert recogniser.name == f"faster-whisper 1.2.1 {directory} int8 on cpu"


@pytest.mark.parametrize("language", ["en-US", "de", None])
def test_speech_is_decoded(recogniser: Recogniser, speech: Float32Array, language: str | None) -> None:
    text = recogniser.transcribe(speech, language)
    assert text  # of random weights, so of no meaning
    assert text == text.strip()


def test_the_same_clip_is_the_same_text(recogniser: Recogniser, speech: Float32Array) -> None:
    assert recogniser.transcribe(speech, "en") == recogniser.transcribe(speech, "en")


@pytest.mark.parametrize("seconds", [0.02, 2.0])
def test_silence_is_no_text(recogniser: Recogniser, seconds: float) -> None:
    assert recogniser.transcribe(np.zeros(int(16_000 * seconds), np.float32)) == ""


def test_languages(recogniser: Recogniser, speech: Float32Array) -> None:
    assert {"en", "de", "zh"} <= recogniser.languages
    with pytest.raises(UnsupportedByModelError, match="'tlh'; it knows 100 other languages"):
        recogniser.transcribe(speech, "tlh")


async def test_on_a_thread_of_a_pool(directory: Path, speech: Float32Array) -> None:
    pool = RecogniserPool(lambda: WhisperRecogniser(str(directory), device="cpu"))
    await pool.start()
    try:
        assert await pool.transcribe(speech, urgent=True, language="en")
    finally:
        await pool.aclose()


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ("small-int8", "the Whisper model small cannot be loaded: "),
        ("no-such-size", "Invalid model size 'no-such-size', expected one of: tiny"),
        ("nobody/nothing", "the Whisper model nobody/nothing cannot be loaded: "),
        (str(TINY), "Unable to open file 'model.bin'"),
    ],
)
def test_weights_that_are_not_there_are_one_clear_sentence(model: str, reason: str) -> None:
    with pytest.raises(CheckpointError) as raised:
        WhisperRecogniser(model, device="cpu")
    assert reason in str(raised.value)
    assert "\n" not in str(raised.value)


def test_an_unknown_device_is_refused(directory: Path) -> None:
    with pytest.raises(InvalidInputError, match="'tpu' is not auto, cpu or cuda"):
        WhisperRecogniser(str(directory), device="tpu")


def test_a_missing_package_is_one_clear_sentence(monkeypatch: pytest.MonkeyPatch, directory: Path) -> None:
    monkeypatch.setattr(whisper, "find_spec", lambda name: None if name == "faster_whisper" else find_spec(name))
    with pytest.raises(UnsupportedByModelError, match=r"pip install 'taste-grpc\[whisper\]'"):
        WhisperRecogniser(str(directory))
