"""`sample` and `score` on the small models."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from trainers.cli import main, make_parser
from trainers.commands.options import config_from
from trainers.commands.sample import _item
from trainers.config import PRESETS, WAN_NEGATIVE_PROMPT, make_config
from trainers.pictures.clips import read_clip, write_animation


@pytest.fixture
def faces(small_models) -> list[str]:
    return sorted(map(str, Path(small_models["prompts"]).parent.glob("face*.png")))[:2]


@pytest.fixture
def arguments(small_models, faces) -> list[str]:
    """A short sample by the small policy."""
    return [
        *("sample", "--preset", "tiny", "--policy", small_models["policy"]["source"], "--reference", *faces),
        *("--prompt", "two people wave", "--steps", "3", "--frames", "5"),
    ]


def test_a_sample_is_an_animation_and_a_strip_and_the_seed_decides_it(here, arguments):
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        assert main([*arguments, "--seed", seed, "--out", f"{name}.webp"]) == 0
    a, b, c = (read_clip(here / f"{name}.webp")[0] for name in "abc")
    assert len(a) == 5 and np.array_equal(a, b) and not np.array_equal(a, c)
    assert Image.open(here / "a.png").width > 300


def test_the_people_that_tinyworld_made_can_be_scored_against_the_sample(here, capsys):
    assert main(["sample", "--steps", "2", "--frames", "5"]) == 0
    people = sorted(str(path) for path in here.glob("sample-person-*.png"))
    assert people and main(["score", "sample.webp", "--reference", *people]) == 0
    assert "| sample.webp |" in capsys.readouterr().out


def test_the_solver_is_the_one_that_was_chosen(here, arguments):
    for name, solver in (("default", []), ("euler", ["--solver", "euler"]), ("unipc", ["--solver", "unipc"])):
        assert main([*arguments, *solver, "--out", f"{name}.webp"]) == 0
    default, euler, unipc = (read_clip(here / f"{name}.webp")[0] for name in ("default", "euler", "unipc"))
    assert np.array_equal(default, euler) and not np.array_equal(euler, unipc)


@pytest.mark.parametrize(
    "given, sentence",
    [
        (["--policy", "p"], "no policy at"),
        (["--prompt", "x"], "--reference is missing"),
        (["--reference", "text.png"], "--prompt is missing"),
        (["--reference", "none.png", "--prompt", "x"], "none.png does not exist"),
        (["--reference", "text.png", "--prompt", "x"], "text.png"),
        (["--reference", "none.png", "--prompt", ""], "the prompt is empty; describe the video"),
        (["--reference", "none.png", "--prompt", "  "], "the prompt is empty; describe the video"),
        (["--prompt", ""], "the prompt is empty; describe the video"),
        (["--out", "x.mp4"], "ends in .webp or .gif"),
        (["--out", "missing/x.webp"], "missing is missing or cannot be written"),
        (["--lora", "none.safetensors"], "none.safetensors"),
        (["--lora", "a.safetensors:nan"], "--lora a.safetensors:nan has the strength nan; give a number from -100"),
        (["--lora", "a.safetensors:inf"], "--lora a.safetensors:inf"),
        (["--guidance", "inf"], "--guidance is `inf`; expected: number from 1 to 100"),
        (["--shift", "nan"], "--shift is `nan`"),
        (["--seed", str(10**30)], "expected: integer from 0 to"),
        (["--height", "1000000000"], "--height is `1000000000`; expected: integer from 16 to 4096"),
    ],
)
def test_a_sample_that_cannot_be_made_is_refused_before_a_model_loads(here, capsys, monkeypatch, given, sentence):
    monkeypatch.setattr("trainers.policies.load.policy_of", None)
    (here / "text.png").write_text("no picture")
    assert main(["sample", *given]) == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize("preset", PRESETS)
def test_a_sample_has_the_preset_s_negative_prompt_unless_it_is_given_one(faces, preset):
    config = make_config(preset)
    references = [Path(face) for face in faces]
    assert _item(config, references, "x", None, 0).negative == ("" if "tiny" in preset else WAN_NEGATIVE_PROMPT)
    assert _item(config, references, "x", "blurry", 0).negative == "blurry"
    assert _item(config, references, "x", "", 0).negative == ""


def test_a_real_model_is_sampled_with_wan_s_negative_prompt(small_models):
    arguments = ["sample", "--policy", small_models["policy"]["source"]]
    assert config_from(make_parser(arguments).parse_args(arguments)).negative_prompt == WAN_NEGATIVE_PROMPT


def test_score_prints_a_number_for_every_clip(here, capsys, small_models, faces):
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        write_animation(rng.integers(0, 255, (5, 32, 48, 3), np.uint8), f"{name}.webp")
    reward = ["--reward", small_models["reward"]["source"], "--base-model", small_models["reward"]["base_model"]]
    assert main(["score", "a.webp", "b.webp", "--reference", faces[0], *reward]) == 0
    output = capsys.readouterr().out
    scores = re.findall(r"[ab]\.webp \| (-?\d+\.\d{4}) ", output)
    assert len(scores) == 2 and scores[0] != scores[1]
    assert sum(map(float, re.findall(r"(\d+\.\d)%", output))) == pytest.approx(100, abs=0.2)


def test_a_picture_given_as_a_clip_is_scored_with_a_warning(here, capsys, small_models, faces):
    write_animation(np.zeros((5, 32, 48, 3), np.uint8), "a.webp")
    reward = ["--reward", small_models["reward"]["source"], "--base-model", small_models["reward"]["base_model"]]
    assert main(["score", "a.webp", faces[0], "--reference", faces[0], *reward]) == 0
    said = capsys.readouterr().err
    assert f"warning: {faces[0]} has 1 frame, and the reward reads" in said and "a.webp" not in said


@pytest.mark.parametrize(
    "given, sentence",
    [
        (["--fps", "inf"], "--fps is `inf`; expected: number from 0.01 to 1000"),
        (["--fps", "0"], "--fps is `0.0`"),
        (["--fps", "nan"], "--fps is `nan`"),
        (["--reward", ""], "--reward is ``; expected: path"),
    ],
)
def test_a_score_that_cannot_be_made_is_refused(here, capsys, given, sentence):
    assert main(["score", "a.webp", "--reference", "b.png", *given]) == 2
    assert sentence in capsys.readouterr().err


def test_clips_after_the_references_are_asked_for_before_them(here, capsys):
    assert main(["score", "--reference", "b.png", "a.webp"]) == 2
    assert "name the clips before --reference" in capsys.readouterr().err
