"""The processor and the batch calls of the model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from taste_grpc.errors import BatchSizeError, InvalidInputError, InvalidTypeError
from taste_grpc.model.processor import TasteProcessor
from tests.conftest import Loaded

CLIP = (np.random.default_rng(0).standard_normal(16_000) * 0.1).astype(np.float32)
GREEDY = {"text_top_p": 0.0, "extra_words": 2, "max_length": 20, "greedy_units": True}


@pytest.fixture(scope="module")
def inputs(tiny: Loaded) -> dict[str, Any]:
    return tiny.processor(CLIP, 16_000, text="what is this.")


def complete(loaded: Loaded, mode: Any, inputs: dict[str, Any], **options: Any) -> dict[str, Any]:
    tokenizers = (loaded.processor.llm_tokenizer, loaded.processor.audio_tokenizer)
    return loaded.model.inference_completion(
        inputs["speaker_embeds"],
        *tokenizers,
        mode,
        **{name: value for name, value in inputs.items() if name != "speaker_embeds"},
        **GREEDY | options,
    )


def test_the_processor_gives_what_the_model_reads(tiny: Loaded, inputs: dict[str, Any]) -> None:
    assert inputs["audio_features"].shape == (1, 3000, 128)
    assert inputs["audio_feature_lengths"].tolist() == [100]
    assert inputs["speaker_embeds"].shape == (1, 192)
    assert inputs["speaker_embeds"].norm() == pytest.approx(1.0, abs=1e-5)
    for name in ("asr", "llm"):
        ids, words = inputs[f"{name}_token_ids"], inputs[f"{name}_word_ids"]
        assert ids.shape == words.shape
        assert inputs[f"{name}_token_lengths"].tolist() == [ids.shape[1]]
        assert sorted(set(words[0].tolist())) == [0, 1, 2]


def test_any_rate_and_other_voices(tiny: Loaded, inputs: dict[str, Any]) -> None:
    slow = tiny.processor(np.repeat(CLIP, 2)[None], 32_000, text="what is this.", ref_audio_list=[CLIP, CLIP[:9000]])
    assert slow["audio_feature_lengths"].tolist() == [100]
    assert not torch.equal(slow["speaker_embeds"], inputs["speaker_embeds"])


def test_text_is_recognised_when_it_is_not_given(tiny: Loaded, inputs: dict[str, Any]) -> None:
    heard: list[int] = []

    def transcribe(samples: Any) -> str:
        heard.append(len(samples))
        return "what is this."

    processor = TasteProcessor.from_pretrained(tiny.directory, transcribe=transcribe)
    assert torch.equal(processor(CLIP)["llm_token_ids"], inputs["llm_token_ids"])
    assert heard == [16_000]
    with pytest.raises(InvalidInputError, match="text: is needed"):
        tiny.processor(CLIP)


@pytest.mark.parametrize(
    ("audio", "options", "error", "words"),
    [
        (CLIP, {"text": "  "}, InvalidInputError, "text: has no words"),
        (np.stack([CLIP, CLIP]), {"text": "a"}, BatchSizeError, "audio: has shape (2, 16000)"),
        (np.full(9, np.nan, np.float32), {"text": "a"}, InvalidInputError, "audio: sample 0 is nan"),
        (CLIP.astype(np.int16), {"text": "a"}, InvalidTypeError, "audio: has dtype int16"),
        (CLIP, {"text": "a", "ref_audio_list": [CLIP * np.inf]}, InvalidInputError, "ref_audio_list"),
    ],
)
def test_what_cannot_be_processed(tiny: Loaded, audio: Any, options: Any, error: type, words: str) -> None:
    with pytest.raises(error) as raised:
        tiny.processor(audio, 16_000, **options)
    assert words in str(raised.value)


@pytest.mark.parametrize("mode", ["zero", "text", "audio", "instruct"])
def test_every_mode_generates_and_speaks(tiny: Loaded, inputs: dict[str, Any], mode: str) -> None:
    result = complete(tiny, mode, inputs, instruct_prefix_ids=[20], instruct_suffix_ids=[21])
    count = result["llm_token_ids"].shape[1]
    assert 0 < count <= 20
    assert result["llm_word_ids"].shape == (1, count)
    words = int(result["llm_word_ids"].max()) + 1
    assert int((result["llm_indices"][0, :, 0] >= 0).sum()) == words
    assert result["generated_text"]
    assert result["speech_token_lengths"].tolist() == [result["speech_token_ids"].shape[1]]
    waveform, rate = tiny.processor.get_generator("cpu").inference(
        result["speech_token_ids"][:, :20], flow_embedding=inputs["speaker_embeds"]
    )
    assert waveform.shape[1] > 0
    assert rate == 22_050


def test_padding_is_not_read(tiny: Loaded, inputs: dict[str, Any]) -> None:
    padded = dict(inputs)
    for name in ("llm", "asr"):
        for kind in ("token", "word"):
            padded[f"{name}_{kind}_ids"] = torch.nn.functional.pad(inputs[f"{name}_{kind}_ids"], (0, 3))
    for mode in ("text", "audio"):
        plain, again = complete(tiny, mode, inputs), complete(tiny, mode, padded)
        assert torch.equal(plain["llm_token_ids"], again["llm_token_ids"])
        assert torch.equal(plain["speech_token_ids"], again["speech_token_ids"])


def test_what_was_heard_is_said_again_or_not(tiny: Loaded, inputs: dict[str, Any]) -> None:
    both, own = complete(tiny, "audio", inputs), complete(tiny, "audio", inputs, out_generated_part_only=True)
    assert torch.equal(both["llm_token_ids"], own["llm_token_ids"])
    heard = int(inputs["asr_token_lengths"])
    assert int(both["decoder_inputs"].asr_token_lengths) == heard + int(own["decoder_inputs"].asr_token_lengths)


def test_nothing_said_is_empty_not_an_error(tiny: Loaded, inputs: dict[str, Any]) -> None:
    first = int(complete(tiny, "text", inputs)["llm_token_ids"][0, 0])
    result = complete(tiny, "text", inputs, stop_id=first)
    assert result["generated_text"] == ""
    assert result["llm_token_ids"].shape == (1, 0)
    assert result["llm_indices"].shape == (1, 0, tiny.model.vq_dim)
    assert result["speech_token_ids"].shape == (1, 0)


def test_what_is_missing_is_named(tiny: Loaded, inputs: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError, match="conditional_mode: 'sing' is not zero, text, audio, instruct"):
        complete(tiny, "sing", inputs)
    without = {name: value for name, value in inputs.items() if name != "audio_features"}
    with pytest.raises(InvalidInputError, match="audio_features: is needed in mode audio"):
        complete(tiny, "audio", without)
    assert complete(tiny, "text", without)["generated_text"]
    two = inputs | {"llm_token_ids": inputs["llm_token_ids"].expand(2, -1)}
    with pytest.raises(BatchSizeError, match="llm_token_ids"):
        complete(tiny, "text", two)


def test_reconstruction_says_what_was_heard(tiny: Loaded, inputs: dict[str, Any]) -> None:
    result = tiny.model.inference_reconstruction(**inputs, greedy_units=True)
    assert result["speech_token_ids"].shape[1] >= 2 * (int(inputs["asr_token_lengths"]) + 3)
    through = tiny.model.inference_reconstruction(**inputs, greedy_units=True, through_spoken_lm=True)
    assert through["speech_token_ids"].shape[1] > 0
    without = {name: value for name, value in inputs.items() if not name.startswith("llm")}
    with pytest.raises(InvalidInputError, match="llm_token_ids"):
        tiny.model.inference_reconstruction(**without, through_spoken_lm=True)


def test_calls_leave_nothing_behind(tiny: Loaded, inputs: dict[str, Any]) -> None:
    first = complete(tiny, "audio", inputs)
    complete(tiny, "zero", inputs)
    again = complete(tiny, "audio", inputs)
    assert torch.equal(first["speech_token_ids"], again["speech_token_ids"])
