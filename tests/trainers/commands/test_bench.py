"""The command `bench`: its settings, its output, its errors."""

from __future__ import annotations

import json

import pytest
import torch

from trainers.cli import COMMANDS, main, make_parser
from trainers.commands.bench import config_of


def options(*arguments: str):
    return make_parser(["bench"]).parse_args(["bench", *arguments])


def test_it_is_listed():
    assert "bench" in COMMANDS


@pytest.mark.parametrize(
    "arguments, preset, source",
    [
        ([], "tiny", "tinyworld"),
        (["--policy", "phantom"], "tiny-phantom", "tinyworld-phantom"),
        (["--size", "1.3b", "--policy", "phantom"], "fast-phantom", "tinyworld"),
        (["--size", "14b", "--preset", "paper"], "paper", "tinyworld"),
    ],
)
def test_the_preset_fits_size_and_policy(arguments, preset, source):
    config = config_of(options(*arguments))
    assert (config.preset, config.policy.source) == (preset, source)


def test_options_change_the_settings_and_set_has_the_last_word():
    config = config_of(
        options("--resolution", "9x32x64", "--micro-batch", "3", "--set", "optim.micro_batch=5", "optim.kl=0.5")
    )
    assert (config.video.frames, config.video.height, config.video.width) == (9, 32, 64)
    assert (config.rollout.micro_batch, config.optim.micro_batch, config.optim.kl) == (3, 5, 0.5)


def test_it_prints_a_table_and_writes_the_numbers(capsys, tmp_path):
    arguments = ["--phases", "text", "optimiser", "--repeats", "2", "--json", str(tmp_path / "bench.json")]
    assert main(["bench", "--device", "cpu", *arguments]) == 0
    printed = capsys.readouterr()
    assert "| encode text" in printed.out and "| optimiser" in printed.out
    assert "not measured: encode references" in printed.out
    assert "matrix products" in printed.err
    values = json.loads((tmp_path / "bench.json").read_text())
    assert [len(row["seconds"]) for row in values["rows"]] == [2, 2]
    assert values["matmul_flops_per_second"]["float32"] > 0


def test_other_numbers_of_people_profiles_and_other_programs_follow(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    (tmp_path / "comfyui_version.py").touch()
    (tmp_path / "requirements.txt").touch()
    size = ["--resolution", "5x32x32", "--micro-batch", "1", "--phases", "ode", "--repeats", "1"]
    extra = ["--repeat-references", "1,3", "--profile", "--peers", "diffusers", "comfyui", f"published={tmp_path}"]
    assert main(["bench", "--device", "cpu", *size, *extra]) == 1
    printed = capsys.readouterr().out
    for text in ("people: 1", "people: 3", "times ours", "ComfyUI has no model with", "give a checkout"):
        assert text in printed
    assert printed.count("calls that wait") == 2


@pytest.mark.parametrize("text", ["published", "comfyui=/somewhere", "other"])
def test_an_unknown_program_is_refused(text, capsys):
    with pytest.raises(SystemExit):
        options("--peers", text)
    assert "published=FOLDER" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["0", "1,x", "9"])
def test_numbers_of_people_are_from_1_to_8(text, capsys):
    with pytest.raises(SystemExit):
        options("--repeat-references", text)
    assert "from 1 to 8" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["33x240", "33x240x416x3", "ax240x416", "33x-240x416"])
def test_a_resolution_in_another_form_is_refused(text, capsys):
    with pytest.raises(SystemExit):
        options("--resolution", text)
    assert "FRAMESxHEIGHTxWIDTH" in capsys.readouterr().err


def test_an_impossible_resolution_names_the_remedy(capsys):
    assert main(["bench", "--resolution", "9x33x48"]) == 2
    assert "multiple of 16" in capsys.readouterr().err


def test_a_missing_gpu_is_refused(capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert main(["bench", "--device", "cuda"]) == 2
    assert "--device cuda" in capsys.readouterr().err


def test_a_phase_that_fails_is_a_row_and_the_exit_status(capsys, monkeypatch):
    def refuse(*_) -> None:
        raise RuntimeError("no kernel for this card")

    monkeypatch.setattr("trainers.bench.phases.Workload._optimise", refuse)
    assert main(["bench", "--device", "cpu", "--phases", "optimiser", "text", "--repeats", "1"]) == 1
    printed = capsys.readouterr().out
    assert "RuntimeError: no kernel for this card" in printed and "| encode text" in printed


def test_models_that_do_not_fit_leave_the_table_and_the_other_programs(capsys, monkeypatch, tmp_path):
    def hungry(*_) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("trainers.bench.models.make_policy", hungry)
    assert main(["bench", "--device", "cpu", "--peers", f"published={tmp_path}"]) == 1
    printed = capsys.readouterr()
    assert "out of memory" in printed.err and "give a checkout" in printed.out
