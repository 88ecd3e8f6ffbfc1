"""Conversations that go on elsewhere: tokens that count once."""

from __future__ import annotations

import os
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from taste_grpc.audio import Encoding
from taste_grpc.dialogue import ResumeStore
from taste_grpc.dialogue.events import Options, VoiceChoice
from taste_grpc.dialogue.memory import Exchange
from taste_grpc.dialogue.resume import SavedConversation

SAVED = SavedConversation(
    exchanges=(Exchange("Wer?", "Ich, \U0001f600."), Exchange("Why?", "")),
    system_prompt="Be kind.",
    language="de",
    voice=VoiceChoice("lessac", (0.5, -0.25), 24_000, Encoding.FLOAT32LE),
    options=Options(vad_silence_ms=500, barge_in=False),
)
NEWER = replace(SAVED, exchanges=(*SAVED.exchanges, Exchange("And?", "So.")))


@dataclass
class Clock:
    now: float = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> ResumeStore:
    return ResumeStore(tmp_path / "deep" / "resume", 60.0, clock)


def files(store: ResumeStore) -> list[Path]:
    return sorted(store._directory.iterdir())


def test_a_conversation_comes_back_whole_and_once(store: ResumeStore) -> None:
    token = store.save(SAVED)
    assert store.take(token) == SAVED
    assert store.take(token) is None


def test_another_server_with_the_same_directory_takes_it_over(store: ResumeStore, clock: Clock) -> None:
    other = ResumeStore(store._directory, 60.0, clock)
    token = store.save(SAVED)
    assert other.take(token) == SAVED
    assert store.take(token) is None


@pytest.mark.parametrize("conversation", [SAVED, replace(SAVED, language=None, voice=VoiceChoice(), options=Options())])
def test_it_is_written_as_it_is_read(conversation: SavedConversation) -> None:
    assert SavedConversation.from_json(conversation.to_json()) == conversation


@pytest.mark.parametrize("token", ["", "unknown", "../../etc/passwd", "\ud800", "x" * 10_000])
def test_a_token_that_nobody_gave_is_worth_nothing(store: ResumeStore, token: str) -> None:
    assert store.take(token) is None  # not even the directory is there
    store.save(SAVED)
    assert store.take(token) is None
    assert len(files(store)) == 1


def test_a_token_has_a_lifetime(store: ResumeStore, clock: Clock) -> None:
    young, old = store.save(SAVED), store.save(SAVED)
    clock.now += 60.0
    assert store.take(young) == SAVED
    clock.now += 0.1
    assert store.take(old) is None
    assert store.take(old) is None


def test_only_its_owner_reads_it_and_the_name_does_not_tell_the_token(store: ResumeStore) -> None:
    token = store.save(SAVED)
    (file,) = files(store)
    assert stat.S_IMODE(store._directory.stat().st_mode) == 0o700
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert token not in file.name
    store.renew(token, NEWER)
    assert stat.S_IMODE(files(store)[0].stat().st_mode) == 0o600
    store.take(token)
    assert {stat.S_IMODE(file.stat().st_mode) for file in files(store)} == {0o600}
    assert all(file.read_bytes() == b"" for file in files(store))  # nothing that was said is left


def test_tokens_are_long_and_never_the_same(store: ResumeStore) -> None:
    tokens = {store.save(SAVED) for _ in range(50)}
    assert len(tokens) == 50
    assert all(len(token) >= 40 for token in tokens)


def test_a_newer_state_takes_the_place_of_the_older_and_lives_no_longer(store: ResumeStore, clock: Clock) -> None:
    token, other = store.save(SAVED), store.save(SAVED)
    clock.now += 50.0
    store.renew(token, NEWER)
    store.renew(other, NEWER)
    assert store.take(token) == NEWER
    clock.now += 11.0
    assert store.take(other) is None


def test_a_newer_state_of_one_that_was_taken_comes_too_late(store: ResumeStore) -> None:
    token = store.save(SAVED)
    assert store.take(token) == SAVED
    store.renew(token, NEWER)
    assert store.take(token) is None
    assert all(file.read_bytes() == b"" for file in files(store))


def test_one_that_was_taken_may_be_put_back(store: ResumeStore, clock: Clock) -> None:
    token = store.save(SAVED)
    clock.now += 50.0
    assert store.take(token) == SAVED
    store.put_back(token, SAVED)
    clock.now += 50.0
    assert store.take(token) == SAVED
    assert store.take(token) is None


@pytest.mark.parametrize("content", ["", "{}", "[]", "null", '{"voice": 3}', "\x00", '{"voice": {"encoding": "MP4"}}'])
def test_a_damaged_file_is_worth_nothing(store: ResumeStore, content: str) -> None:
    token = store.save(SAVED)
    files(store)[0].write_text(content)
    assert store.take(token) is None


def test_old_ones_are_forgotten_and_files_of_others_are_left_alone(store: ResumeStore, clock: Clock) -> None:
    taken = store.save(SAVED)
    store.save(SAVED)
    store.take(taken)
    foreign = [store._directory / name for name in ("thesis.json", "a" * 64, f"{'a' * 64}.json.bak")]
    scratch = store._directory / f"{'a' * 64}.{'b' * 16}.new"  # of a server that was killed
    for file in [*foreign, scratch]:
        file.write_text("precious")
        os.utime(file, (0, 0))
    clock.now += 61.0
    token = store.save(SAVED)
    assert [file for file in files(store) if file not in foreign] == [store._path(token)]
    assert all(file.read_text() == "precious" for file in foreign)


def test_a_directory_that_cannot_be_written_is_an_error_at_saving_only(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    store = ResumeStore(tmp_path / "file", 60.0)
    with pytest.raises(OSError, match="file"):
        store.save(SAVED)
    store.renew("token", SAVED)
    assert store.take("token") is None


def test_of_many_who_try_at_once_one_gets_it(store: ResumeStore) -> None:
    with ThreadPoolExecutor(8) as pool:
        for _ in range(30):
            token, start = store.save(SAVED), threading.Barrier(8)

            def take(token: str = token, start: threading.Barrier = start) -> SavedConversation | None:
                start.wait()
                return store.take(token)

            taken = [each.result() for each in [pool.submit(take) for _ in range(8)]]
            assert sorted(taken, key=str) == [None] * 7 + [SAVED]


def test_who_renews_neither_keeps_anybody_from_taking_nor_makes_it_count_twice(store: ResumeStore) -> None:
    with ThreadPoolExecutor(6) as pool:
        for _ in range(60):
            token, start = store.save(SAVED), threading.Barrier(6)

            def take(token: str = token, start: threading.Barrier = start) -> list[SavedConversation | None]:
                start.wait()
                return [store.take(token) for _ in range(5)]

            def renew(token: str = token, start: threading.Barrier = start) -> list[SavedConversation | None]:
                start.wait()
                for _ in range(5):
                    store.renew(token, NEWER)
                return []

            work = [pool.submit(each) for each in (take, renew, renew, take, renew, renew)]
            taken = [found for each in work for found in each.result() if found is not None]
            assert len(taken) == 1
            assert taken[0] in (SAVED, NEWER)
            assert store.take(token) is None
            assert not store._path(token).exists()
