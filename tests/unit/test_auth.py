"""Who gets in by a token, and how tokens are read."""

from __future__ import annotations

import hmac
import logging
import traceback
from pathlib import Path

import pytest

from taste_grpc.errors import SettingsError, UnauthenticatedError
from taste_grpc.server import auth
from taste_grpc.server.auth import Authenticator, certificate_name
from taste_grpc.server.exposure import exposures, is_loopback
from taste_grpc.settings import load_settings
from tests.support.certificates import replace
from tests.support.log_lines import events, lines

ALICE, BOB, CAROL = "alice-0123456789", "bob-0123456789ab", "carol-0123456789"
METHOD = "/taste.v1.TasteService/Generate"


def authenticator(tokens=None, file=None) -> Authenticator:
    settings = load_settings({"tokens": tokens or {}, "tokens_file": file})
    return Authenticator(settings.tokens, settings.tokens_file)


def bearer(token: str):
    return [("user-agent", "test"), ("authorization", f"Bearer {token}")]


def client_of(who: Authenticator, *authorization: str | bytes, method: str = METHOD) -> str:
    return who.client_of(method, [("authorization", value) for value in authorization])


def test_without_tokens_everybody_gets_in():
    who = authenticator()
    assert not who.required
    assert client_of(who) == client_of(who, "Bearer whatever") == client_of(who, "nonsense", "twice") == ""


def test_each_token_has_its_holder():
    who = authenticator({"alice": ALICE, "bob": BOB})
    assert who.names == ("alice", "bob")
    assert who.client_of(METHOD, bearer(ALICE)) == "alice"
    assert who.client_of(METHOD, bearer(BOB)) == "bob"


@pytest.mark.parametrize("value", ["Bearer {}", "bearer {}", "BEARER   {}", " Bearer {} "])
def test_the_scheme_may_be_written_in_many_ways(value):
    assert client_of(authenticator({"alice": ALICE}), value.format(ALICE)) == "alice"


@pytest.mark.parametrize(
    ("authorization", "why"),
    [
        ([], "no token"),
        ([f"Bearer {BOB}"], "not known"),
        ([f"Bearer {ALICE[:-1]}"], "not known"),
        ([f"Bearer {ALICE}0"], "not known"),
        ([f"Bearer {ALICE.upper()}"], "not known"),
        ([ALICE], "of the form"),
        ([f"Basic {ALICE}"], "of the form"),
        ([f"Bearer{ALICE}"], "of the form"),
        ([f"Bearer\t{ALICE}"], "of the form"),
        ([f"Bearer {ALICE} {ALICE}"], "of the form"),
        ([f"Bearer {ALICE}, Bearer {ALICE}"], "of the form"),
        (["Bearer"], "of the form"),
        (["Bearer "], "of the form"),
        ([""], "of the form"),
        ([b"Bearer \xff"], "of the form"),
        ([f"Bearer {ALICE}", f"Bearer {ALICE}"], "2 authorization entries"),
        ([f"Bearer {BOB}", f"Bearer {ALICE}"], "2 authorization entries"),
    ],
)
def test_what_is_refused_and_why(authorization, why):
    with pytest.raises(UnauthenticatedError, match=why) as refused:
        client_of(authenticator({"alice": ALICE}), *authorization)
    assert ALICE not in str(refused.value)
    assert BOB not in str(refused.value)


@pytest.mark.parametrize(
    ("method", "exempt"),
    [
        ("/grpc.health.v1.Health/Check", True),
        ("/grpc.health.v1.Health/Watch", True),
        ("/grpc.health.v1.Healthy/Check", False),
        ("/grpc.health.v1.health/Check", False),
        ("grpc.health.v1.Health/Check", False),
        ("/x/grpc.health.v1.Health/Check", False),
        ("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", False),
        ("/grpc.channelz.v1.Channelz/GetServers", False),
        ("/nobody/Knows", False),
    ],
)
def test_health_is_all_that_is_exempt(method, exempt):
    who = authenticator({"alice": ALICE})
    if exempt:
        assert client_of(who, method=method) == client_of(who, "Bearer wrong", method=method) == ""
    else:
        with pytest.raises(UnauthenticatedError):
            client_of(who, method=method)


def test_every_token_is_compared_however_early_one_fits(monkeypatch):
    compared, really = [], hmac.compare_digest

    def compare(one, other):
        compared.append((len(one), len(other)))
        return really(one, other)

    monkeypatch.setattr(auth.hmac, "compare_digest", compare)
    who = authenticator({"alice": ALICE, "bob": BOB, "carol": CAROL})
    for token in (ALICE, CAROL, "x", "x" * 4000):
        compared.clear()
        try:
            client_of(who, f"Bearer {token}")
        except UnauthenticatedError:
            assert token not in (ALICE, CAROL)
        assert compared == [(32, 32)] * 3, "digests, of one length"


def test_tokens_come_from_the_file_too_and_follow_it(tmp_path, caplog):
    caplog.set_level(logging.DEBUG)
    file = tmp_path / "tokens.toml"
    replace(file, f'bob = "{BOB}"\n')
    who = authenticator({"alice": ALICE}, file)
    assert (client_of(who, f"Bearer {ALICE}"), client_of(who, f"Bearer {BOB}")) == ("alice", "bob")
    replace(file, f'carol = "{CAROL}"\n')
    assert client_of(who, f"Bearer {CAROL}") == "carol"
    with pytest.raises(UnauthenticatedError):
        client_of(who, f"Bearer {BOB}")
    assert client_of(who, f"Bearer {ALICE}") == "alice"
    (read,) = events(caplog)
    assert (read["event"], read["holders"], read["file"]) == ("tokens read again", "alice, carol", file)


BROKEN_FILES = {
    "no TOML": (f'bob = "{BOB}\n', ("is no TOML", "line 1")),
    "a token where a name is due": (f"{BOB}\n", ("is no TOML", "line 1")),
    "not text": (b"\xff\xfe", ("UTF-8",)),
    "too short": (f'carol = "{CAROL[:15]}"', ("carol", "16 to", "15")),
    "empty": ('carol = ""', ("carol", "16 to")),
    "blank inside": (f'carol = "{CAROL} {CAROL}"', ("carol", "no blanks")),
    "not ASCII": (f'carol = "{CAROL}é"', ("carol", "ASCII")),
    "no string": ("carol = 1234567890123456", ("carol", "string")),
    "a table": (f'[tokens]\ncarol = "{CAROL}"', ("tokens", "string")),
    "a name with blanks": (f'"c d" = "{CAROL}"', ("c d", "1 to 64")),
    "an empty name": (f'"" = "{CAROL}"', ("1 to 64",)),
    "a token twice": (f'carol = "{CAROL}"\ndave = "{CAROL}"', ("carol and dave",)),
    "a token of the settings": (f'carol = "{ALICE}"', ("alice and carol",)),
    "a name of the settings": (f'alice = "{CAROL}"', ("alice", "tokens")),
}


@pytest.mark.parametrize("content", BROKEN_FILES)
def test_a_broken_file_is_one_clear_line_and_never_shows_a_token(content, tmp_path, caplog):
    text, parts = BROKEN_FILES[content]
    file = tmp_path / "tokens.toml"
    replace(file, text)
    with pytest.raises(SettingsError) as refused:
        authenticator({"alice": ALICE}, file)
    message = str(refused.value)
    assert message.startswith(f"tokens_file: {file}: ")
    assert "\n" not in message
    assert all(part in message for part in parts), message
    shown = "".join(traceback.format_exception(refused.value)) + repr(refused.value)

    replace(file, f'bob = "{BOB}"')
    who = authenticator({"alice": ALICE}, file)
    replace(file, text)
    assert [client_of(who, f"Bearer {BOB}") for _ in range(3)] == ["bob"] * 3, "the last good tokens stay"
    (line,) = events(caplog)
    assert (line["level"], line["event"], line["why"]) == ("ERROR", "changed tokens not taken", message)
    shown += "\n".join(lines(caplog)) + repr(who) + repr(vars(who))
    assert not any(token[:15] in shown for token in (ALICE, BOB, CAROL))


def test_a_file_that_goes_away_changes_nothing_until_it_is_back(tmp_path, caplog):
    file = tmp_path / "tokens.toml"
    with pytest.raises(SettingsError, match=r"tokens_file: .*tokens\.toml: No such file"):
        authenticator({}, file)
    replace(file, f'bob = "{BOB}"')
    who = authenticator({}, file)
    file.unlink()
    assert [client_of(who, f"Bearer {BOB}") for _ in range(2)] == ["bob", "bob"]
    replace(file, f'carol = "{CAROL}"')
    assert client_of(who, f"Bearer {CAROL}") == "carol"
    assert [line["event"] for line in events(caplog, above=logging.INFO)] == ["changed tokens not taken"]


def test_a_file_without_tokens_lets_nobody_in(tmp_path):
    file = tmp_path / "tokens.toml"
    replace(file, "# none yet\n")
    with pytest.raises(SettingsError, match="names no token"):
        authenticator({}, file)
    assert authenticator({"alice": ALICE}, file).names == ("alice",)
    replace(file, f'bob = "{BOB}"')
    who = authenticator({}, file)
    replace(file, "")
    with pytest.raises(UnauthenticatedError):
        client_of(who, f"Bearer {BOB}")
    assert who.required


@pytest.mark.parametrize(
    ("identities", "name"),
    [
        (None, ""),
        ([b""], ""),
        ([b"alice@example.org", b"alice"], "alice@example.org"),
        ([b"a b\nc\xc3\xa9"], "a?b?c??"),
        ([b"x" * 100], "x" * 64),
    ],
)
def test_names_in_certificates_can_be_printed(identities, name):
    class Context:
        def peer_identities(self):
            return identities

    assert certificate_name(Context()) == name


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("::1", True),
        ("[::1]", True),
        ("localhost", True),
        ("LocalHost.", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.168.1.4", False),
        ("taste.example.org", False),
        ("localhost.example.org", False),
    ],
)
def test_what_counts_as_loopback(host, loopback):
    assert is_loopback(host) is loopback


def test_what_is_warned_of():
    def warned(host, mode, tokens):
        return [warning.split(":")[0].split(" ")[0] for warning in exposures(host, mode, tokens=tokens)]

    assert all(warned("127.0.0.1", mode, tokens) == [] for mode in ("off", "on", "mutual") for tokens in (False, True))
    assert warned("0.0.0.0", "off", True) == ["tokens"]
    assert warned("0.0.0.0", "off", False) == warned("0.0.0.0", "on", False) == ["whoever"]
    assert warned("0.0.0.0", "on", True) == warned("0.0.0.0", "mutual", False) == warned("::", "mutual", True) == []


def test_a_token_on_the_wrong_side_is_not_printed(tmp_path: Path) -> None:
    file = tmp_path / "tokens.toml"
    secret = "s3cret-" * 5
    file.write_text(f'"{secret}" = "alice"\n')
    with pytest.raises(SettingsError) as refused:
        Authenticator({}, file)
    assert str(file) in str(refused.value)
    assert secret not in str(refused.value)
