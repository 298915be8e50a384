"""Finding ComfyUI and putting the pack in, on folders that look like ComfyUI's."""

from __future__ import annotations

import os
import signal
import socket
import stat
import sys
from argparse import Namespace
from pathlib import Path

import pytest

from trainers.cli import main
from trainers.commands import comfyui
from trainers.errors import UserError


@pytest.fixture(autouse=True)
def machine(monkeypatch, tmp_path) -> Path:
    """A machine without ComfyUI, and the pack in a folder of its own."""
    pack = tmp_path / "pack"
    pack.mkdir()
    (pack / "requirements.txt").write_text("numpy\n")
    monkeypatch.setattr(comfyui, "PACK", pack)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    return tmp_path


def make(folder: Path, requirements: str = "numpy>=1\npillow\n") -> Path:
    """A folder that looks like ComfyUI's."""
    (folder / "custom_nodes").mkdir(parents=True)
    (folder / "comfyui_version.py").touch()
    (folder / "requirements.txt").write_text(requirements)
    return folder


def program(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IEXEC)
    return path


def test_there_may_be_none(machine):
    assert comfyui.find_comfyui() is None


def test_a_named_one_comes_before_the_one_around_the_pack_and_the_default_place(machine, monkeypatch):
    default = make(comfyui.default_place())
    assert comfyui.find_comfyui() == default
    around = make(machine / "around")
    monkeypatch.setattr(comfyui, "PACK", around / "custom_nodes" / "any name")
    assert comfyui.find_comfyui() == around
    named = make(machine / "named")
    monkeypatch.setenv("COMFYUI_PATH", str(named))
    assert comfyui.find_comfyui() == named


def test_a_wrong_name_is_refused_though_there_is_another_comfyui(machine, monkeypatch):
    make(comfyui.default_place())
    monkeypatch.setenv("COMFYUI_PATH", str(machine))
    with pytest.raises(UserError, match="COMFYUI_PATH"):
        comfyui.find_comfyui()


def test_its_own_interpreter_is_taken_if_it_has_everything(machine):
    folder = make(machine / "ComfyUI")
    assert comfyui.find_python(folder) == Path(sys.executable)
    own = program(folder / ".venv" / "bin" / "python", f'exec {sys.executable} "$@"')
    assert comfyui.find_python(folder) == own
    program(own, "exit 1")
    assert comfyui.find_python(folder) == Path(sys.executable)


def test_what_an_interpreter_lacks_is_named(machine):
    folder = make(machine / "ComfyUI", "numpy\n# a remark\nno-such-distribution==1.0\n")
    assert comfyui.missing_requirements(folder, Path(sys.executable)) == ["no-such-distribution"]
    assert comfyui.find_python(folder) is None


def test_the_pack_is_linked_once(machine):
    folder = make(machine / "ComfyUI")
    assert comfyui.put_in(folder) == "identity-grpo"
    assert (folder / "custom_nodes" / "identity-grpo").resolve() == machine / "pack"
    assert comfyui.put_in(folder) == "identity-grpo"
    assert len(os.listdir(folder / "custom_nodes")) == 1


def test_a_pack_that_is_there_under_another_name_stays(machine):
    folder = make(machine / "ComfyUI")
    (folder / "custom_nodes" / "mine").symlink_to(machine / "pack")
    assert comfyui.put_in(folder) == "mine"
    assert os.listdir(folder / "custom_nodes") == ["mine"]


def test_nothing_of_the_users_is_overwritten(machine):
    folder = make(machine / "ComfyUI")
    (folder / "custom_nodes" / "identity-grpo").mkdir()
    with pytest.raises(UserError, match="is not this checkout"):
        comfyui.put_in(folder)


def test_an_installation_that_fails_is_reported_with_what_works_without_it(machine, capfd):
    program(machine / "pack" / ".venv" / "bin" / "python", "echo no route to the package index >&2; exit 1")
    assert main(["comfyui"]) == 1
    text = capfd.readouterr().err
    assert "no route" in text and "could not be installed" in text and "make demo" in text


def test_the_reason_why_no_environment_can_be_made_is_shown(machine, capfd):
    (machine / "pack" / ".venv").touch()
    assert main(["comfyui"]) == 1
    assert "Unable to create directory" in capfd.readouterr().err


def test_comfy_cli_installs_a_release_outside_of_the_environment_that_runs_it(machine, monkeypatch, capfd):
    monkeypatch.setenv("VIRTUAL_ENV", "/somewhere")
    scripts = machine / "pack" / ".venv" / "bin"
    program(scripts / "python", "exit 0")
    program(scripts / "comfy", f'echo "$VIRTUAL_ENV $@"; mkdir -p "$3"; touch "$3/{comfyui.MARK}"')
    assert comfyui.install() == comfyui.default_place()
    assert f" --skip-prompt --workspace {comfyui.default_place()} install --version latest --" in capfd.readouterr().out


def test_an_unfinished_installation_is_completed_and_another_s_is_left_alone(machine, capfd):
    scripts = machine / "pack" / ".venv" / "bin"
    program(scripts / "python", "exit 0")
    program(scripts / "comfy", 'echo "$@"; exit 1')
    folder = make(comfyui.default_place(), "no-such-distribution\n")
    assert main(["comfyui"]) == 2
    shown = capfd.readouterr()
    assert "PYTHON=" in shown.err and not shown.out
    program(folder / ".venv" / "bin" / "python", "exit 1")
    assert main(["comfyui"]) == 1
    assert f"--workspace {folder} install --restore --" in capfd.readouterr().out


def test_a_taken_port_is_refused(machine, monkeypatch):
    monkeypatch.setenv("COMFYUI_PATH", str(make(machine / "ComfyUI")))
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(UserError, match="is taken"):
        comfyui.main(Namespace(port=taken.getsockname()[1]))


def test_a_server_that_ends_ends_the_command(machine, capfd, monkeypatch):
    monkeypatch.setattr(comfyui, "HAS_GPU", "")
    folder = make(machine / "ComfyUI")
    (folder / "main.py").write_text("raise SystemExit(3)")
    assert comfyui.start(folder, Path(sys.executable), "identity-grpo", 1) == 3
    assert "ended before it answered" in capfd.readouterr().err


def test_a_server_that_the_interrupt_did_not_reach_is_ended(machine, monkeypatch):
    """SIGTERM goes to this process alone, Ctrl-C of a terminal to both."""
    folder = make(machine / "ComfyUI")
    (folder / "main.py").write_text("import time; time.sleep(60)")

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(comfyui, "ENDING_SECONDS", 0.2)
    monkeypatch.setattr(comfyui, "_wait", interrupted)
    monkeypatch.setattr(comfyui, "HAS_GPU", "")
    assert comfyui.start(folder, Path(sys.executable), "identity-grpo", 1) == -signal.SIGTERM


def test_the_address_opens_the_first_workflow_with_a_plain_name(machine):
    assert comfyui.address("mine", 8188) == "http://127.0.0.1:8188/"
    (machine / "pack" / "workflows").mkdir()
    for name in ("2_b.json", "1_a.json", "0 with spaces.json", "0_picture.jpg"):
        (machine / "pack" / "workflows" / name).touch()
    assert comfyui.address("mine", 8188) == "http://127.0.0.1:8188/?template=1_a&source=mine"
