"""The command line itself: its parser, exit statuses, signals, and consoles that cannot show every letter."""

from __future__ import annotations

import argparse
import codecs
import io
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from trainers import cli
from trainers.cli import COMMANDS, WORK, main, make_parser
from trainers.config import make_config
from trainers.errors import command_line
from trainers.runs.folder import RunFolder

LETTERS = "\u8fd0\u884c-\u017c\u00f3\u0142w-\U0001f600"  # Chinese, Polish, an emoji


def call(*arguments: str | Path, cwd: Path, repository: Path, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "trainers", *map(str, arguments)],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(repository)} | environment,
        capture_output=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["resume", "--help"], ["runs"], ["settings"]])
def test_light_answers_need_no_torch(repository, tmp_path, arguments):
    program = (
        f"import sys; sys.path.insert(0, {str(repository)!r}); from trainers.cli import main\n"
        f"try: main({arguments!r})\nfinally: assert not {{'torch', 'numpy'}} & set(sys.modules), 'heavy'"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_no_command_imports_torch_to_explain_its_arguments(repository, tmp_path):
    program = (
        f"import sys; sys.path.insert(0, {str(repository)!r}); from trainers.cli import COMMANDS, make_parser\n"
        "for name in COMMANDS: make_parser([name]); assert 'torch' not in sys.modules, name"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_wrong_path_is_refused_before_torch_is_imported(repository, tmp_path):
    run = RunFolder.create(tmp_path / "runs", make_config("tiny"), "a")
    (run.path / "evaluation").rmdir()
    (run.path / "evaluation").touch()
    (tmp_path / "lora.safetensors").touch()
    (tmp_path / "broken.csv").write_text("ref_paths,prompt\nmissing.png,two people\n", encoding="utf-8")
    refused = {
        "none: there is no such file or folder": ["train", "--policy", "none"],
        "none cannot be opened": ["train", "--reward", "none"],
        "none holds no config.json": ["train", "--set", "reward.base_model=none"],
        "missing.png is missing": ["train", "--prompts", "broken.csv", "--held-out", "1"],
        "there is no LoRA": ["train", "--start-lora", "none"],
        "evaluation is not a folder": ["evaluate", "--lora", "lora.safetensors"],
        "no run `none`": ["resume", "none"],
        "no policy at": ["sample", "--policy", "none", "--prompt", "x"],
        "there is no none": ["inspect", "none"],
        "there is no none; give a pickled": ["convert", "none"],
    }
    program = (
        f"import sys; sys.path.insert(0, {str(repository)!r}); from trainers.cli import main\n"
        f"for line in {list(refused.values())!r}: print(main(line), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    answers = [f"{1 if line[0] == 'inspect' else 2} False" for line in refused.values()]
    assert done.stdout.splitlines() == answers, done.stderr
    assert all(part in done.stderr for part in refused), done.stderr


def test_comfyui_is_started_without_any_package(repository, tmp_path):
    """`make comfyui` calls it with an interpreter that may have nothing but the standard library."""
    program = (
        f"import sys; sys.path.insert(0, {str(repository)!r}); from trainers.cli import main; main({['comfyui', '-h']})"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and "--port" in done.stdout, done.stderr


def test_every_command_is_listed_and_explained(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    for name in COMMANDS:
        assert re.search(rf"^ +{name} +\w", text, re.MULTILINE), name
    assert WORK not in re.findall(r"^ {4}(\w+)", text, re.MULTILINE)


@pytest.mark.parametrize("name", [*COMMANDS, WORK])
def test_every_argument_is_explained(name):
    parsers = next(a for a in make_parser([name])._actions if isinstance(a, argparse._SubParsersAction))
    actions = parsers.choices[name]._actions
    assert len(actions) > 1 and all(action.help for action in actions)


@pytest.mark.parametrize(
    "arguments, error",
    [
        (["train", "--itterations", "3"], "there is no option --itterations; did you mean `--iterations`?"),
        (["runs", "list", "--run=x", "--wiat=3"], "there is no option --wiat; did you mean `--wait`?"),
        (["resume", "--seed", "1"], "there is no option --seed\n"),
    ],
)
def test_an_unknown_option_is_named_with_the_nearest(capsys, arguments, error):
    with pytest.raises(SystemExit):
        main(arguments)
    assert error in capsys.readouterr().err


def test_a_text_that_begins_with_a_dash_is_a_value():
    assert make_parser(["sample"]).parse_args(["sample", "--prompt", "-two people wave"]).prompt == "-two people wave"


@pytest.mark.parametrize(
    "arguments",
    [
        ["show", "tiny", "--runs", "R"],
        ["show", "--runs", "R", "tiny"],
        ["--runs", "R", "show", "tiny"],
        ["--runs=R", "show", "--wait", "5", "tiny"],
    ],
)
def test_options_stand_anywhere(arguments):
    options = make_parser(["runs"]).parse_args(["runs", *arguments])
    assert (options.action, options.run, options.runs) == ("show", "tiny", Path("R"))


# --- errors and signals ----------------------------------------------------------------------------------------------


def test_a_user_error_is_a_sentence_and_status_two(tmp_path, repository):
    done = call("train", "--set", "video.height=50", cwd=tmp_path, repository=repository)
    assert done.returncode == 2 and b"use 48 or 64" in done.stderr and b"Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()


SLEEPER = """
import sys, time
from trainers import cli
from trainers.commands import runs
def sleep(options):
    try:
        print("ready", flush=True)
        time.sleep(60)
    finally:
        print("cleaned up", flush=True)
runs.main = sleep
sys.exit(cli.main(["runs"]))
"""


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_ends_a_command_as_ctrl_c_does(repository, tmp_path, default_signals, number):
    environment = os.environ | {"PYTHONPATH": str(repository)}
    command, pipe = [sys.executable, "-c", SLEEPER], subprocess.PIPE
    child = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=pipe, stderr=pipe, text=True)
    assert child.stdout.readline() == "ready\n"
    child.send_signal(number)
    assert child.communicate(timeout=30) == ("cleaned up\n", "interrupted\n")
    assert child.returncode == 130


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_nohup_stays_in_force(repository, tmp_path):
    environment = os.environ | {"PYTHONPATH": str(repository)}
    command, pipe = [sys.executable, "-c", SLEEPER], subprocess.PIPE
    child = subprocess.Popen(
        ["sh", "-c", 'trap "" HUP; exec "$@"', "sh", *command], cwd=tmp_path, env=environment, stdout=pipe, text=True
    )
    try:
        assert child.stdout.readline() == "ready\n"
        child.send_signal(signal.SIGHUP)
        time.sleep(0.3)
        assert child.poll() is None
    finally:
        child.kill()
        child.communicate()


def test_a_reader_that_has_enough_is_no_error(repository, tmp_path):
    environment = os.environ | {"PYTHONPATH": str(repository)}
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "trainers", "settings"],
        cwd=tmp_path,
        env=environment,
        stdout=write,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (0, b"")


# --- consoles --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "utf-8"])
def test_a_console_that_cannot_show_a_letter_ends_no_command(repository, tmp_path, encoding):
    """Of output, of an error, and of the texts of the presets."""
    run = RunFolder.create(tmp_path / LETTERS, make_config("tiny"))
    for arguments, status, stream in (
        (["runs", "show", run.path], 0, "stdout"),
        (["runs", "show", LETTERS], 2, "stderr"),
        (["settings", "--preset", "paper"], 0, "stdout"),
    ):
        done = call(*arguments, cwd=tmp_path, repository=repository, PYTHONIOENCODING=f"{encoding}:strict")
        assert done.returncode == status, done.stderr
        assert b"Error" not in done.stderr
        shown = getattr(done, stream).decode(encoding)
        assert ("\\u" not in shown) if encoding == "utf-8" else ("\\u" in shown), shown


@pytest.mark.parametrize("stream", ["codecs", "text", "none"])
def test_a_console_without_reconfigure_will_do(tmp_path, monkeypatch, stream):
    raw = io.BytesIO()
    console = {"codecs": codecs.getwriter("ascii")(raw), "text": io.StringIO(), "none": None}[stream]
    monkeypatch.setattr("sys.stdout", console)
    assert main(["settings", "--preset", "paper"]) == 0
    if stream == "codecs":
        assert b"\\u8272" in raw.getvalue()
    elif stream == "text":
        assert "\u8272" in console.getvalue()


def test_a_proposed_command_keeps_its_words_apart(monkeypatch):
    monkeypatch.setattr("sys.argv", ["__main__.py"])
    monkeypatch.setattr("os.name", "posix")
    assert command_line("runs", "stop", Path("/a b/it's")) == """python -m trainers runs stop '/a b/it'"'"'s'"""
    monkeypatch.setattr("sys.argv", ["/usr/bin/identity-grpo"])
    assert command_line("resume", "/plain/path") == "identity-grpo resume /plain/path"


def test_signal_handlers_are_as_before_after_a_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    assert cli.main(["runs"]) == 0
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before
