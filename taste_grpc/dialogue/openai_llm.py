"""Language models behind an endpoint that speaks OpenAI's chat completions: OpenAI, vLLM, llama.cpp, and others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from taste_grpc.dialogue.context_window import fit
from taste_grpc.dialogue.language_model import Message, Sampling
from taste_grpc.errors import InvalidInputError, LanguageModelError, UnsupportedByModelError

if TYPE_CHECKING:
    from openai import AsyncOpenAI

OPENAI_BASE_URL = "https://api.openai.com/v1"
DEFAULT_CONTEXT_TOKENS = 8_192

_NO_KEY = "none"
"""The client wants one; endpoints without keys do not look at it."""
_RETRIES = 1
_BYTES_PER_TOKEN = 3
_MARKER_TOKENS = 8
_MAX_DETAIL_CHARS = 200


class OpenAiLanguageModel:
    """Answers from an endpoint, over one client and its connections.

    A connection that fails before the answer begins is tried once more. How long to wait is up to the caller:
    cancelling closes the connection. No error names the key.

    Args:
        model: as the endpoint names it.
        base_url: of the endpoint, up to and with `/v1`; None is OpenAI's.
        api_key: None where none is needed.
        context_tokens: the longest conversation, with its answer. Tokens are estimated, because endpoints do not count
            them beforehand: one for 3 bytes of UTF-8 and 8 for the markers of a message, above what English and most
            other languages take.
    """

    def __init__(
        self,
        model: str,
        base_url: str | None = None,
        api_key: str | None = None,
        context_tokens: int = DEFAULT_CONTEXT_TOKENS,
    ) -> None:
        self._url = base_url or OPENAI_BASE_URL
        parts = urlsplit(self._url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InvalidInputError("base_url", "is no http or https URL")
        self._model, self._key, self._context_tokens = model, api_key or _NO_KEY, context_tokens
        self._host = parts.hostname if parts.port is None else f"{parts.hostname}:{parts.port}"
        self._client: AsyncOpenAI | None = None

    @property
    def name(self) -> str:
        """The model and where it is."""
        return f"{self._model} at {self._host}"

    async def start(self) -> None:
        """Make the client; nothing is sent. Raises UnsupportedByModelError when its package is not installed."""
        if self._client is not None:
            return
        if find_spec("openai") is None:
            raise UnsupportedByModelError(
                "language models behind an endpoint need the openai package: pip install 'taste-grpc[openai]'"
            )
        self._client = await asyncio.to_thread(self._make_client)

    def _make_client(self) -> AsyncOpenAI:
        from openai import AsyncOpenAI

        client = AsyncOpenAI(base_url=self._url, api_key=self._key, max_retries=_RETRIES)
        _ = client.chat.completions  # imported when it is first looked at
        return client

    async def answer(self, messages: Sequence[Message], sampling: Sampling) -> AsyncGenerator[str]:
        """The answer to the last message, in pieces as the endpoint sends them; closing the iterator ends its request.

        Raises LanguageModelError when the endpoint cannot be reached, refuses or breaks off, or the last message is
        too long.
        """
        if self._client is None:
            raise LanguageModelError(f"the language model {self.name} is not started")
        fitting = fit(messages, self._context_tokens - sampling.max_new_tokens, _estimate)
        from openai import OpenAIError

        has_begun = False
        try:
            stream = await self._client.chat.completions.create(**self._request(fitting, sampling))
            async with stream:
                async for chunk in stream:
                    has_begun = True
                    for choice in chunk.choices:
                        if choice.delta.content:
                            yield choice.delta.content
        except (OpenAIError, ValueError) as error:  # the latter is what a stream of something else leads to
            # Not `from error`: an endpoint may repeat the key, and a log would show that.
            raise LanguageModelError(self._sentence(error, has_begun)) from None
        if not has_begun:
            raise LanguageModelError(
                f"the language model's endpoint {self._host} answered with no chat completion; is its URL right?"
            )

    async def aclose(self) -> None:
        """Close the connections. Answers under way end with LanguageModelError."""
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    def _request(self, messages: Sequence[Message], sampling: Sampling) -> dict[str, Any]:
        # OpenAI's newer models refuse the old name of this limit, and others' endpoints do not know the new one.
        limit = "max_completion_tokens" if self._url.startswith(OPENAI_BASE_URL) else "max_tokens"
        request: dict[str, Any] = {
            "model": self._model,
            "messages": [{"role": message.role, "content": message.text} for message in messages],
            "stream": True,
            limit: sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
        }
        return request if sampling.seed is None else {**request, "seed": sampling.seed}

    def _sentence(self, error: Exception, has_begun: bool) -> str:
        from openai import APIConnectionError, APIStatusError

        if isinstance(error, APIConnectionError):
            cause = str(error.__cause__ or "") or "no connection"
            what = "broke off its answer" if has_begun else "cannot be reached"
            return self._keyless(f"the language model's endpoint {self._host} {what}: {cause}")
        status, detail = "an error", str(error)
        if isinstance(error, APIStatusError):
            status = f"status {error.status_code}"
            detail = detail.removeprefix(f"Error code: {error.status_code} - ")
        return self._keyless(f"the language model's endpoint {self._host} answered with {status}: {detail}")

    def _keyless(self, sentence: str) -> str:
        line = " ".join(sentence.replace(self._key, "***").split() if self._key != _NO_KEY else sentence.split())
        return line if len(line) <= _MAX_DETAIL_CHARS else f"{line[:_MAX_DETAIL_CHARS]}..."


def _estimate(message: Message) -> int:
    return -(-len(message.text.encode()) // _BYTES_PER_TOKEN) + _MARKER_TOKENS
