"""Which language model a server uses."""

from __future__ import annotations

from typing import Literal

from taste_grpc.dialogue.embedded_llm import EmbeddedLanguageModel
from taste_grpc.dialogue.language_model import LanguageModel
from taste_grpc.dialogue.openai_llm import DEFAULT_CONTEXT_TOKENS, OpenAiLanguageModel

DEFAULT_OPENAI_MODEL = "gpt-4o-mini"

LanguageModelChoice = Literal["auto", "embedded", "openai"]


def make_language_model(
    choice: LanguageModelChoice = "auto",
    *,
    openai_api_key: str | None = None,
    openai_base_url: str | None = None,
    openai_model: str = DEFAULT_OPENAI_MODEL,
    openai_context_tokens: int = DEFAULT_CONTEXT_TOKENS,
    embedded_slots: int = 4,
    embedded_context_tokens: int = 2_048,
    embedded_threads: int = 1,
) -> LanguageModel:
    """The language model of these settings, not started. Loads and sends nothing.

    Args:
        choice: `auto` takes `openai` where a key or the URL of an endpoint is given, else `embedded`.
        openai_api_key: what OPENAI_API_KEY holds.
        openai_base_url: what OPENAI_BASE_URL holds.
        openai_model: as the endpoint names it.
        openai_context_tokens: see `OpenAiLanguageModel`.
        embedded_slots: see `EmbeddedLanguageModel`, here and below.
        embedded_context_tokens: the longest conversation, with its answer.
        embedded_threads: of the model.

    Raises:
        InvalidInputError: a value is not allowed.
    """
    if choice == "openai" or (choice == "auto" and (openai_api_key or openai_base_url)):
        return OpenAiLanguageModel(openai_model, openai_base_url, openai_api_key, openai_context_tokens)
    return EmbeddedLanguageModel(embedded_slots, embedded_context_tokens, embedded_threads)
