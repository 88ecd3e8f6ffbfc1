"""The tiny checkpoint, loaded once; a variant of it that can hold a conversation."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # before the hub's client is imported: no test needs it
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

from taste_grpc import TasteForCausalLM, TasteProcessor
from tests.checkpoints import TINY, write_chat_checkpoint

torch.set_num_threads(1)

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # Of a run in the background of a shell; the processes that tests start would ignore it too.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@dataclass(frozen=True)
class Loaded:
    """A checkpoint with its model (float32, on the CPU) and processor."""

    directory: Path
    model: TasteForCausalLM
    processor: TasteProcessor

    @classmethod
    def of(cls, directory: Path) -> Loaded:
        model = TasteForCausalLM.from_pretrained(directory, device="cpu", dtype="float32", show_progress=False)
        return cls(directory, model, TasteProcessor.from_pretrained(directory))


@pytest.fixture(scope="session")
def tiny() -> Loaded:
    """The tiny checkpoint as it is: no conversation tokens."""
    return Loaded.of(TINY)


@pytest.fixture(scope="session")
def chat_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of a tiny checkpoint whose tokenizer has the conversation tokens."""
    return write_chat_checkpoint(tmp_path_factory.mktemp("chat") / "taste-chat")


@pytest.fixture(scope="session")
def chat(chat_checkpoint: Path) -> Loaded:
    """That checkpoint, loaded."""
    return Loaded.of(chat_checkpoint)
