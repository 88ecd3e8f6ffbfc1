from __future__ import annotations

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
