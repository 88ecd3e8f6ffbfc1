from __future__ import annotations

import traceback

import pytest
from pydantic import ValidationError

from taste.v1 import common_pb2
from taste_grpc.errors import SettingsError
from taste_grpc.settings import LimitSettings, load_settings, to_toml


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch):
    import os

    for name in os.environ:
        if name.startswith("TASTE_"):
            monkeypatch.delenv(name)


def test_flags_before_environment_before_file_before_defaults(monkeypatch, tmp_path):
    config = tmp_path / "taste.toml"
    config.write_text('host = "file"\nport = 1\nlog_level = "error"\n[limits]\nmax_segments = 9\nmax_length = 99\n')
    monkeypatch.setenv("TASTE_PORT", "2")
    monkeypatch.setenv("TASTE_HOST", "environment")
    monkeypatch.setenv("TASTE_LIMITS__MAX_SEGMENTS", "8")
    settings = load_settings({"host": "flag", "port": None}, config)
    assert (settings.host, settings.port, settings.log_level, settings.device) == ("flag", 2, "error", "auto")
    assert (settings.limits.max_segments, settings.limits.max_length, settings.limits.max_channels) == (8, 99, 2)
    monkeypatch.setenv("TASTE_CONFIG", str(config))
    assert load_settings().log_level == "error"


def test_defaults():
    settings = load_settings()
    assert (settings.host, settings.port, settings.model) == ("127.0.0.1", 50_051, "taste-nano")
    assert settings.limits.max_request_bytes == 16 * 1024 * 1024


def test_immutable():
    with pytest.raises(ValidationError):
        load_settings().port = 1
    with pytest.raises(ValidationError):
        load_settings().limits.max_segments = 1


@pytest.mark.parametrize(
    ("flags", "environment", "toml", "parts"),
    [
        ({"port": 70_000}, {}, "", ("port", "70000", "--port")),
        ({}, {"TASTE_PORT": "many"}, "", ("port", "many", "TASTE_PORT")),
        ({}, {"TASTE_LIMITS__MAX_AUDIO_MS": "31000"}, "", ("limits.max_audio_ms", "TASTE_LIMITS__MAX_AUDIO_MS")),
        ({}, {"TASTE_LIMITS": "{"}, "", ("limits", "TASTE_LIMITS")),
        ({}, {}, "port = -1", ("port", "-1", "taste.toml")),
        ({}, {}, "prot = 1", ("prot", "no such setting", "taste.toml")),
        ({}, {}, "[limits]\nmax_sements = 1", ("limits.max_sements", "no such setting")),
        ({}, {}, "port = ", ("taste.toml", "no TOML")),
        ({}, {}, "[limits]\nmin_audio_ms = 50\nmax_audio_ms = 40", ("min_audio_ms is 50", "40")),
        ({"device": "gpu"}, {}, "", ("device", "gpu")),
        ({"drain_grace_s": float("nan")}, {}, "", ("drain_grace_s",)),
        ({}, {"TASTE_TLS": "yes"}, "", ("tls", "dictionary", "TASTE_TLS")),
        ({}, {}, "[tls]\ncert_file = 'a.pem'", ("tls.key_file", "is missing", "taste.toml")),
        ({"tls": {"cert_file": "a.pem"}}, {}, "", ("tls.key_file", "is missing", "command line")),
        ({}, {}, "[tls]\ncert_file = 'a'\nkey_file = 'b'\nca = 'c'", ("tls.ca", "no such setting")),
    ],
)
def test_a_bad_value_is_one_clear_line(flags, environment, toml, parts, monkeypatch, tmp_path):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    config = tmp_path / "taste.toml"
    config.write_text(toml)
    with pytest.raises(SettingsError) as refused:
        load_settings(flags, config)
    message = str(refused.value)
    assert "\n" not in message
    assert all(part in message for part in parts), message


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(SettingsError, match=r"nowhere\.toml"):
        load_settings(config=tmp_path / "nowhere.toml")


def test_printed_settings_read_back(tmp_path):
    settings = load_settings({"threads": 3, "host": 'a"b', "limits": {"max_length": 7}})
    config = tmp_path / "printed.toml"
    config.write_text(to_toml(settings))
    assert load_settings(config=config).model_dump() == settings.model_dump()


def test_every_limit_of_the_contract_is_a_setting():
    assert {field.name for field in common_pb2.Limits.DESCRIPTOR.fields} <= set(LimitSettings.model_fields)


SECRET = "s3cret-0123456789"


def test_tokens_come_from_all_sources_together(monkeypatch, tmp_path):
    config = tmp_path / "taste.toml"
    config.write_text(f'[tokens]\nAlice = "{SECRET}1"\nbob = "{SECRET}2"\n')
    monkeypatch.setenv("TASTE_TOKENS__BOB", f"{SECRET}3")
    monkeypatch.setenv("TASTE_TOKENS__FRONT_END", f"{SECRET}4")
    tokens = load_settings({}, config).tokens
    assert {name: token.get_secret_value() for name, token in tokens.items()} == {
        "Alice": f"{SECRET}1",
        "bob": f"{SECRET}3",
        "front_end": f"{SECRET}4",
    }


def test_tokens_are_never_shown(tmp_path):
    settings = load_settings({"tokens": {"alice": SECRET, "bob": f"{SECRET}-2"}, "tokens_file": tmp_path / "t.toml"})
    shown = [to_toml(settings), settings.model_dump_json(), repr(settings), str(settings), repr(settings.tokens)]
    assert not any(SECRET in text for text in shown)
    assert all("alice" in text for text in shown)
    config = tmp_path / "printed.toml"
    config.write_text(to_toml(settings))
    assert load_settings(config=config).tokens == {}


@pytest.mark.parametrize(
    ("environment", "toml", "parts"),
    [
        ({"TASTE_TOKENS__ALICE": SECRET[:15]}, "", ("tokens.alice", "16 to 4,096", "15", "TASTE_TOKENS__ALICE")),
        ({"TASTE_TOKENS": f'{{"alice": "{SECRET}"'}, "", ("tokens", "no JSON object", "TASTE_TOKENS")),
        ({"TASTE_TOKENS": f'"{SECRET}"'}, "", ("tokens", "dictionary", "TASTE_TOKENS")),
        ({"TASTE_TOKENS__ALICE": SECRET * 300}, "", ("tokens.alice", "16 to 4,096", "5,100")),
        ({}, f'tokens = "{SECRET}"', ("tokens", "dictionary", "taste.toml")),
        ({}, f'tokens = ["{SECRET}"]', ("tokens", "dictionary", "taste.toml")),
        ({}, '[tokens]\nalice = ""', ("tokens.alice", "16 to 4,096", "taste.toml")),
        ({}, f'[tokens]\nalice = "{SECRET} "', ("tokens.alice", "no blanks")),
        ({}, f'[tokens]\nalice = "{SECRET}\\u00e9"', ("tokens.alice", "ASCII")),
        ({}, f'[tokens]\nalice = ["{SECRET}"]', ("tokens.alice", "string")),
        ({}, f'[tokens]\n"a b" = "{SECRET}"', ("tokens.a b", "1 to 64")),
        ({}, f'[tokens]\nalice = "{SECRET}"\nbob = "{SECRET}"', ("tokens", "alice and bob", "same token")),
        ({}, f'[tokens]\nalice = "{SECRET}', ("taste.toml", "no TOML")),
    ],
)
def test_a_bad_token_is_one_clear_line_that_does_not_show_it(environment, toml, parts, monkeypatch, tmp_path):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    config = tmp_path / "taste.toml"
    config.write_text(toml)
    with pytest.raises(SettingsError) as refused:
        load_settings({}, config)
    message = str(refused.value)
    assert "\n" not in message
    assert all(part in message for part in parts), message
    assert SECRET[:8] not in "".join(traceback.format_exception(refused.value))


def test_replies_have_settings_of_their_own(monkeypatch, tmp_path):
    replies = load_settings().chunked_response
    assert (replies.max_new_tokens, replies.temperature, replies.top_p) == (50, 0.7, 0.9)
    assert (replies.chunk_size_words, replies.timeout_ms, replies.chunk_timeout_ms) == (4, 60_000, 500)
    config = tmp_path / "c.toml"
    config.write_text("[chunked_response]\ntop_p = 0.5\ntimeout_ms = 1000\n[admission.reply]\nactive = 2\n")
    monkeypatch.setenv("TASTE_CHUNKED_RESPONSE__TIMEOUT_MS", "2000")
    settings = load_settings(config=config)
    assert (settings.chunked_response.top_p, settings.chunked_response.timeout_ms) == (0.5, 2000)
    assert settings.admission.reply.active == 2
    monkeypatch.setenv("TASTE_CHUNKED_RESPONSE__CHUNK_SIZE_WORDS", "0")
    with pytest.raises(SettingsError, match=r"^chunked_response\.chunk_size_words: '0': .*CHUNK_SIZE_WORDS\)$"):
        load_settings(config=config)
