"""The command line, in real processes with small models."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from trainers.cli import COMMANDS, main, make_parser
from trainers.commands.options import config_from, parse_settings
from trainers.commands.progress import Bar
from trainers.config import make_config
from trainers.errors import UserError
from trainers.pictures.clips import read_clip, write_animation
from trainers.runs.folder import RunFolder
from trainers.runs.progress import duration
from trainers.runs.registry import list_runs

ROLLOUT = "{steps: 3, group_size: 2, groups_per_update: 2, micro_batch: 4, window: {kind: random, size: 1, last: 2}}"
SMALL = [
    "--preset",
    "tiny",
    "--iterations",
    "2",
    "--set",
    f"rollout={ROLLOUT}",
    "--set",
    "lora={rank: 2, alpha: 2}",
    "--set",
    "evaluation={items: 2, steps: 2}",
]


@pytest.fixture
def environment(tmp_path) -> dict:
    return os.environ | {"OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)}


@pytest.fixture
def small(small_models) -> list[str]:
    """Words that name the small models."""
    return [
        *SMALL,
        "--policy",
        small_models["policy"]["source"],
        "--reward",
        small_models["reward"]["source"],
        "--set",
        f"reward.base_model={small_models['reward']['base_model']}",
        "--prompts",
        small_models["prompts"],
        "--held-out",
        str(small_models["held_out"]),
    ]


def call(*words: str | Path, cwd: Path, environment: dict) -> subprocess.CompletedProcess:
    environment = environment | {"PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.run(
        [sys.executable, "-m", "trainers", *map(str, words)],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def options(*words: str):
    return make_parser(words).parse_args(words)


# --- words ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [["--help"], ["train", "--help"], ["runs"]])
def test_light_answers_need_no_torch(repository, tmp_path, words):
    program = (
        f"import sys; sys.path.insert(0, {str(repository)!r}); from trainers.cli import main\n"
        f"try: main({words!r})\nfinally: assert not {{'torch', 'numpy'}} & set(sys.modules), 'heavy'"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_command_explains_itself(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    told = capsys.readouterr().out
    for name in COMMANDS:
        assert re.search(rf"^ +{name} +\w", told, re.MULTILINE), name
    assert "work" not in re.findall(r"^ {4}(\w+)", told, re.MULTILINE)


def test_values_of_settings_are_typed():
    assert parse_settings(["rollout.steps=8", "optim.betas=[0.8, 0.9]", "start_lora=null", "reward.shuffle=true"]) == {
        "rollout": {"steps": 8},
        "optim": {"betas": [0.8, 0.9]},
        "start_lora": None,
        "reward": {"shuffle": True},
    }


@pytest.mark.parametrize("setting", ["rollout.steps", "=8", "rollout..steps=8", "seed=[1"])
def test_a_malformed_setting_is_a_user_error(setting):
    with pytest.raises(UserError, match="--set"):
        parse_settings([setting])


def test_a_section_that_was_given_a_value_is_a_user_error():
    with pytest.raises(UserError, match="rollout was already given a value"):
        parse_settings(["rollout=3", "rollout.steps=8"])


def test_flags_win_over_settings():
    config = config_from(
        options("train", "--preset", "paper", "--set", "seed=1", "--seed", "2", "--policy", "p", "--held-out", "3")
    )
    assert (config.preset, config.seed, config.policy.source, config.held_out) == ("paper", 2, "p", 3)


@pytest.mark.parametrize(
    "words, preset",
    [
        ([], "tiny"),
        (["--policy", "tinyworld-phantom"], "tiny-phantom"),
        (["--preset", "tiny-phantom"], "tiny-phantom"),
        (["--policy", "p"], "paper"),
        (["--policy", "p", "--preset", "fast"], "fast"),
    ],
)
def test_the_preset_follows_the_policy(words, preset):
    assert config_from(options("train", *words)).preset == preset


def test_the_preset_follows_what_lies_in_a_folder(small_models, small_phantom):
    for section, preset in ((small_models["policy"], "paper"), (small_phantom, "paper-phantom")):
        assert config_from(options("train", "--policy", section["source"])).preset == preset


@pytest.mark.parametrize(
    "policy, preset, mended",
    [
        ("tinyworld", "paper-phantom", "paper"),
        ("tinyworld-phantom", "fast", "fast-phantom"),
        (None, "tiny", "tiny-phantom"),
    ],
)
def test_a_preset_of_another_policy_is_refused_with_the_right_one(policy, preset, mended, small_phantom):
    with pytest.raises(
        UserError, match=rf"preset `{preset}` does not fit .*; use --preset {mended}, or another --policy"
    ):
        config_from(options("train", "--policy", policy or small_phantom["source"], "--preset", preset))


def test_a_sample_s_scales_are_laid_over_the_evaluation_s():
    config = config_from(options("sample", "--preset", "fast-phantom", "--policy", "p", "--image-guidance", "3"))
    assert (config.evaluation.guidance, config.evaluation.image_guidance, config.rollout.image_guidance) == (
        7.5,
        3.0,
        1.0,
    )


def test_a_sample_s_size_is_laid_over_the_preset_s():
    config = config_from(options("sample", "--frames", "5", "--steps", "4", "--guidance", "2"))
    tiny = make_config("tiny").video
    assert config.evaluation.video == tiny.model_copy(update={"frames": 5})
    assert (config.evaluation.steps, config.evaluation.guidance) == (4, 2.0)


def test_a_user_error_is_a_sentence_and_status_two(tmp_path, environment):
    done = call("train", "--set", "video.height=50", cwd=tmp_path, environment=environment)
    assert done.returncode == 2 and "use 48 or 64" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()


def test_a_bad_prompt_set_leaves_no_run_behind(tmp_path, environment):
    done = call("train", "--prompts", "none.csv", cwd=tmp_path, environment=environment)
    assert done.returncode == 2 and "none.csv" in done.stderr
    assert not (tmp_path / "runs").exists()


def test_a_place_that_cannot_be_written_is_a_sentence(tmp_path, capsys):
    (tmp_path / "file").write_text("x")
    assert main(["train", "--runs", str(tmp_path / "file")]) == 2
    assert re.fullmatch(r"error: .*Not a directory.*file.*\n", capsys.readouterr().err)


def test_a_run_of_another_version_does_not_spoil_the_list(tmp_path, capsys):
    run = RunFolder.create(tmp_path, make_config("tiny"))
    (run.path / "config.yaml").write_text("speed: 2")
    (run.path / "metrics.jsonl").write_text('{"kind": "evaluation", "iteration": 4}\n')
    (run.path / "status.json").write_text('{"state": "running", "pid": "x", "updated": "yesterday"}')
    assert main(["runs", "--runs", str(tmp_path)]) == 0
    assert run.id in capsys.readouterr().out
    assert main(["runs", "show", "--runs", str(tmp_path)]) == 2
    assert "config.yaml is of another version" in capsys.readouterr().err


# --- runs ----------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """The folder the user stands in, with locks of its own."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr("sys.argv", ["__main__.py"])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def only_run(root: Path) -> RunFolder:
    (run,) = list_runs(root / "runs")
    return run


def in_background(here: Path, environment: dict, words: list[str]) -> subprocess.Popen:
    """`train` in another terminal."""
    environment = environment | {"PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.Popen(
        [sys.executable, "-m", "trainers", "train", *words],
        cwd=here,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_until(ready, child: subprocess.Popen, seconds: float = 120) -> None:
    until = time.monotonic() + seconds
    while not ready():
        assert child.poll() is None, child.stderr.read()[-2000:]
        assert time.monotonic() < until
        time.sleep(0.05)


def test_train_leaves_what_it_says(here, small, capsys):
    assert main(["train", *small, "--name", "first"]) == 0
    told = capsys.readouterr().out
    run = only_run(here)
    assert run.id.startswith("first-") and run.status().state == "finished"
    named = re.findall(r"^(?:LoRA|curve) +(\S+)$", told, re.MULTILINE)
    assert len(named) == 2 and all(Path(path).is_file() for path in named)
    assert main(["runs"]) == 0
    assert re.search(rf"{run.id} .*finished .*2/2 .*\d+%", capsys.readouterr().out)
    assert main(["runs", "show", "first"]) == 0
    assert "finished, iteration 2 of 2" in capsys.readouterr().out
    assert main(["resume", "first"]) == 2
    assert "is finished" in capsys.readouterr().err


def test_ctrl_c_saves_and_the_command_it_proposes_goes_on(here, environment, small, capsys):
    child = in_background(here, environment, [*small, "--iterations", "4"])
    wait_until(lambda: list_runs(here / "runs") and (only_run(here).checkpoints_folder / "000001").exists(), child)
    child.send_signal(signal.SIGINT)
    told, errors = child.communicate(timeout=120)
    assert child.returncode == 130, errors[-2000:]
    assert only_run(here).status().state == "stopped" and "Traceback" not in errors
    proposed = re.search(r"^continue python -m trainers (.+)$", told, re.MULTILINE)[1].split()
    assert main(proposed) == 0
    assert [row["iteration"] for row in only_run(here).read_metrics() if row["kind"] == "train"] == [1, 2, 3, 4]


def test_a_run_of_another_terminal_keeps_its_device_and_can_be_stopped(here, environment, small, capsys):
    child = in_background(here, environment, [*small, "--iterations", "500"])
    try:
        wait_until(lambda: list_runs(here / "runs") and only_run(here).status().state == "running", child)
        first = only_run(here).id
        assert main(["train", *small, "--runs", "others"]) == 2
        assert f"cpu is in use by run {first}" in capsys.readouterr().err
        assert main(["resume"]) == 2
        assert "is running" in capsys.readouterr().err
        assert main(["runs", "stop"]) == 0
        assert capsys.readouterr().out == f"{first}: stopped\n"
        assert child.wait(30) == 130
    finally:
        child.kill()


def test_a_terminal_sees_a_bar_with_the_time_left(monkeypatch):
    from trainers.runs.progress import ProgressReport

    screen, terminal = pty.openpty()
    with open(terminal, "w") as stream:
        monkeypatch.setattr("sys.stderr", stream)
        bar = Bar()
        bar(ProgressReport(1, 8, "rollouts", 0.1875, 65.0, {"reward_mean": 1.25}))
        bar.close()
        text = os.read(screen, 65536).decode()
    os.close(screen)
    assert re.search(r"19%\|.+\| 2/8 rollouts, reward 1.250, 1 min 5 s left", text)


@pytest.mark.parametrize("seconds, text", [(0, "0 s"), (59.6, "1 min 0 s"), (185, "3 min 5 s"), (7620, "2 h 7 min")])
def test_durations_are_for_people(seconds, text):
    assert duration(seconds) == text


# --- pictures ------------------------------------------------------------------------------------------------------------------


def test_sample_writes_an_animation_and_a_strip(here, small_models):
    faces = sorted(map(str, Path(small_models["prompts"]).parent.glob("face*.png")))[:2]
    words = [
        "sample",
        "--preset",
        "tiny",
        "--policy",
        small_models["policy"]["source"],
        "--reference",
        *faces,
        "--prompt",
        "two people wave",
        "--steps",
        "2",
        "--frames",
        "5",
    ]
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        assert main([*words, "--seed", seed, "--out", f"{name}.webp"]) == 0
    a, b, c = (read_clip(here / f"{name}.webp")[0] for name in "abc")
    assert len(a) == 5 and np.array_equal(a, b) and not np.array_equal(a, c)
    assert Image.open(here / "a.png").width > 300


def test_sample_draws_with_the_solver_that_it_is_told(here, small_models):
    face = str(Path(small_models["prompts"]).parent / "face0.png")
    words = [
        "sample",
        "--preset",
        "tiny",
        "--policy",
        small_models["policy"]["source"],
        "--reference",
        face,
        "--prompt",
        "two people wave",
        "--steps",
        "3",
        "--frames",
        "5",
    ]
    for name, solver in (("default", []), ("euler", ["--solver", "euler"]), ("unipc", ["--solver", "unipc"])):
        assert main([*words, *solver, "--out", f"{name}.webp"]) == 0
    default, euler, unipc = (read_clip(here / f"{name}.webp")[0] for name in ("default", "euler", "unipc"))
    assert np.array_equal(default, euler) and not np.array_equal(euler, unipc)


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["--policy", "p"], "needs --reference"),
        (["--prompt", "x"], "needs --reference"),
        (["--reference", "none.png", "--prompt", "x"], "none.png is missing"),
        (["--out", "x.mp4"], "ends in .webp or .gif"),
    ],
)
def test_sample_says_what_is_missing(here, capsys, words, sentence):
    assert main(["sample", *words]) == 2
    assert sentence in capsys.readouterr().err


def test_score_prints_a_number_for_every_clip(here, capsys, small_models):
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        write_animation(rng.integers(0, 255, (5, 32, 48, 3), np.uint8), f"{name}.webp")
    face = str(Path(small_models["prompts"]).parent / "face0.png")
    reward = ["--reward", small_models["reward"]["source"], "--base-model", small_models["reward"]["base_model"]]
    assert main(["score", "a.webp", "b.webp", "--reference", face, *reward]) == 0
    told = capsys.readouterr().out
    scores = re.findall(r"[ab]\.webp \| (-?\d+\.\d{4}) ", told)
    assert len(scores) == 2 and scores[0] != scores[1]
    shares = [float(s) for s in re.findall(r"(\d+\.\d)%", told)]
    assert sum(shares) == pytest.approx(100, abs=0.2)


def test_the_frozen_config_is_what_was_asked_for(tmp_path, small):
    config = config_from(options("train", *small))
    run = RunFolder.create(tmp_path, config)
    assert yaml.safe_load((run.path / "config.yaml").read_text())["rollout"]["groups_per_update"] == 2
    assert run.config() == config
