"""Settings and presets from arguments."""

from __future__ import annotations

import re
import time

import pytest

from trainers.cli import make_parser
from trainers.commands.numbers import number_between
from trainers.commands.options import config_from, launch_from, parse_settings
from trainers.config import make_config
from trainers.errors import UserError
from trainers.runs.folder import RunFolder
from trainers.runs.machines import LaunchConfig, Machines


def options(*arguments: str):
    return make_parser(arguments).parse_args(arguments)


def test_values_of_settings_are_typed():
    assert parse_settings(["rollout.steps=8", "optim.betas=[0.8, 0.9]", "start_lora=null", "reward.shuffle=true"]) == {
        "rollout": {"steps": 8},
        "optim": {"betas": [0.8, 0.9]},
        "start_lora": None,
        "reward": {"shuffle": True},
    }


def test_a_value_keeps_what_yaml_would_take_for_a_comment():
    assert parse_settings(["negative_prompt=blurry # x", "a=# y", "b=[c # d, 'e # f']"]) == {
        "negative_prompt": "blurry # x",
        "a": "# y",
        "b": ["c # d", "e # f"],
    }


BOMB = "a: &a [x, x]\n" + "\n".join(f"b{i}: &b{i} [*a, *a]" for i in range(30))


@pytest.mark.parametrize(
    "setting, sentence",
    [
        ("rollout.steps", "write it as NAME=VALUE"),
        ("=8", "write it as NAME=VALUE"),
        ("rollout..steps=8", "write it as NAME=VALUE"),
        ("seed=[1", "--set seed: the value cannot be read as YAML"),
        ("seed=" + "[" * 50_000, "nested more than 20 levels"),
        ("seed=" + "{a: " * 5_000, "nested more than 20 levels"),
        ("seed=" + "- " * 5_000, "nested more than 20 levels"),
        (f"prompts={BOMB}", "anchors"),
        ("prompts=*a", "aliases"),
        ("seed=!!python/object/apply:os.getcwd []", "tags"),
        ("seed=" + "9" * 5_000, "--set seed: .* a number of 5000 digits is not read"),
        ("9" * 5_000, "--set 9+…9+: write it as NAME=VALUE"),
        ("a." * 3_000 + "b=1", "there is no setting `.*…"),
        ("rollout={steps: 3, group_size: 2, steps: 4}", "`steps` is given twice"),
        ("negative_prompt=" + "x" * 200_000, "has 200000 characters"),
    ],
    ids=lambda value: value[:20],
)
def test_a_malformed_setting_is_refused_at_once(setting, sentence):
    started = time.monotonic()
    with pytest.raises(UserError, match=sentence) as caught:
        parse_settings([setting])
    assert time.monotonic() - started < 5
    assert "set" in str(caught.value) and len(str(caught.value)) < 500


def test_a_formula_is_no_number():
    with pytest.raises(UserError, match=r"seed is `9\*\*9`; expected: integer from 0 to"):
        config_from(options("train", "--set", "seed=9**9"))


def test_a_section_that_was_given_a_value_is_a_user_error():
    with pytest.raises(UserError, match="rollout was already given a value"):
        parse_settings(["rollout=3", "rollout.steps=8"])


def test_an_unknown_setting_is_answered_with_the_nearest():
    with pytest.raises(UserError, match="did you mean rollout.steps\\?"):
        config_from(options("train", "--set", "rollout.stepz=3"))


def test_flags_win_over_settings():
    config = config_from(
        options("train", "--preset", "paper", "--set", "seed=1", "--seed", "2", "--policy", "p", "--held-out", "3")
    )
    assert (config.preset, config.seed, config.policy.source, config.held_out) == ("paper", 2, "p", 3)


@pytest.mark.parametrize(
    "arguments, preset",
    [
        ([], "tiny"),
        (["--policy", "tinyworld-phantom"], "tiny-phantom"),
        (["--preset", "tiny-phantom"], "tiny-phantom"),
        (["--policy", "p"], "paper"),
        (["--policy", "p", "--preset", "fast"], "fast"),
    ],
)
def test_the_preset_follows_the_policy(arguments, preset):
    assert config_from(options("train", *arguments)).preset == preset


def test_the_preset_follows_what_lies_in_a_folder(small_models, small_phantom):
    for section, preset in ((small_models["policy"], "paper"), (small_phantom, "paper-phantom")):
        assert config_from(options("train", "--policy", section["source"])).preset == preset


@pytest.mark.parametrize("preset", ["fast", "tiny", "paper"])
def test_a_preset_takes_the_form_that_fits_the_policy(preset, small_phantom):
    for policy in ("tinyworld-phantom", small_phantom["source"]):
        assert config_from(options("train", "--policy", policy, "--preset", preset)).preset == f"{preset}-phantom"


def test_a_preset_of_another_policy_is_refused_with_the_right_one():
    with pytest.raises(
        UserError, match=r"preset `paper-phantom` does not fit .*; use --preset paper, or another --policy"
    ):
        config_from(options("train", "--policy", "tinyworld", "--preset", "paper-phantom"))


def test_a_sample_s_scales_are_laid_over_the_evaluation_s():
    config = config_from(options("sample", "--preset", "fast-phantom", "--policy", "p", "--image-guidance", "3"))
    evaluation = config.evaluation
    assert (evaluation.guidance, evaluation.image_guidance, config.rollout.image_guidance) == (7.5, 3.0, 1.0)


def test_a_sample_s_size_is_laid_over_the_preset_s():
    config = config_from(options("sample", "--frames", "5", "--steps", "4", "--guidance", "2"))
    tiny = make_config("tiny").video
    assert config.evaluation.video == tiny.model_copy(update={"frames": 5})
    assert (config.evaluation.steps, config.evaluation.guidance) == (4, 2.0)


def test_the_frozen_config_is_what_was_asked_for(tmp_path, small):
    config = config_from(options("train", *small))
    run = RunFolder.create(tmp_path, config)
    assert (config.rollout.groups_per_update, config.held_out, config.iterations) == (2, 2, 2)
    assert run.config() == config


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (("trian",), "`trian` is unknown; choose one of demo, train, .*; did you mean `train`\\?"),
        (("train", "--preset", "fsat"), "`fsat` is unknown; choose one of paper, .*; did you mean `fast`\\?"),
        (("demo", "--policy", "fantom"), "`fantom` is unknown; choose one of vace, phantom; did you mean `phantom`\\?"),
        (("train", "--seed", "9" * 5000), "invalid int value: '9{50,150}…9+'"),
    ],
)
def test_a_choice_that_is_not_there_is_answered_with_the_nearest(arguments, sentence, capsys):
    with pytest.raises(SystemExit) as caught:
        options(*arguments)
    assert caught.value.code == 2
    assert re.search(sentence, capsys.readouterr().err.strip(), re.MULTILINE)


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (
            ("train", "--policy", "tinywrld"),
            "--policy tinywrld: there is no such file or folder; did you mean `tinyworld`",
        ),
        (("sample", "--policy", "tinyworld-fantom"), "did you mean `tinyworld-phantom`"),
        (("train", "--reward", "tinyword"), "--reward tinyword: .* did you mean `tinyworld`"),
        (("train", "--prompts", "TinyWorld"), "--prompts TinyWorld: .* did you mean `tinyworld`"),
    ],
)
def test_a_built_in_name_that_is_misspelt_is_answered_with_the_right_one(arguments, sentence):
    with pytest.raises(UserError, match=sentence):
        config_from(options(*arguments))


def test_a_file_whose_name_is_near_a_built_in_one_is_that_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tinywrld").touch()
    assert config_from(options("train", "--prompts", "tinywrld")).prompts == "tinywrld"


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (("sample", "--steps", "0"), "--steps is `0`; expected: integer from 2 to 1000"),
        (("sample", "--set", "evaluation.steps=0"), "  evaluation.steps is `0`"),
        (("sample", "--frames", "34"), r"--frames 34 must be 4n\+1"),
        (("sample", "--set", "evaluation.video={frames: 34}"), "evaluation.video: frames 34 must be"),
        (("sample", "--image-guidance", "0"), "--image-guidance is `0.0`"),
        (("sample", "--policy", ""), "--policy is ``; expected: path"),
        (("train", "--held-out", "-1"), "--held-out is `-1`"),
    ],
)
def test_a_value_is_refused_by_the_name_it_was_given_by(arguments, sentence):
    with pytest.raises(UserError, match=sentence):
        config_from(options(*arguments))


@pytest.mark.parametrize(
    "arguments",
    [
        ("train", "--processes", "0"),
        ("train", "--processes", "100000"),
        ("runs", "stop", "--wait", "nan"),
        ("runs", "stop", "--wait", "-1"),
        ("comfyui", "--port", "70000"),
    ],
)
def test_a_number_that_makes_no_sense_is_refused_with_its_range(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        options(*arguments)
    assert caught.value.code == 2
    assert f"`{arguments[-1]}` is not a" in capsys.readouterr().err


def test_a_number_within_its_range_is_taken():
    assert number_between(1, 3)("3") == 3
    assert number_between(0, 1, float)("0.5") == 0.5


def test_a_home_that_is_not_there_is_a_plain_name():
    config = config_from(options("train", "--prompts", "~nobody-of-this-name/a.csv")).with_absolute_paths()
    assert config.prompts.endswith("~nobody-of-this-name/a.csv")


def test_one_machine_needs_no_address():
    assert launch_from(options("train")) == LaunchConfig()


def test_the_place_of_a_machine_is_read():
    given = options("resume", "--machines", "4", "--machine-rank", "3", "--rendezvous", "head.local:29500")
    assert launch_from(given).machines == Machines(4, 3, "head.local:29500")


@pytest.mark.parametrize(
    "arguments, problem",
    [
        (["--machines", "2"], "--rendezvous ``: give machine 0's name and a free port of it"),
        (["--machines", "2", "--rendezvous", "head:http"], "--rendezvous `head:http`: give"),
        (["--machines", "2", "--rendezvous", "head:99999"], "--rendezvous `head:99999`: give"),
        (["--machines", "2", "--rendezvous", "::1:29500"], "--rendezvous `::1:29500`: give"),
        (["--rendezvous", "foo"], "--rendezvous foo: one machine needs none; give --machines as well"),
        (["--machines-file", ""], "--machines-file is empty; give the path of a file"),
        (["--machine-rank", "1"], "--machine-rank 1: with --machines 1 it is at most 0"),
    ],
)
def test_machines_that_cannot_meet_are_refused(arguments, problem):
    with pytest.raises(UserError, match=re.escape(problem)):
        launch_from(options("train", *arguments))


def test_a_job_on_one_machine_may_give_an_address_as_on_several():
    assert launch_from(options("train", "--machines", "1", "--rendezvous", "head:29500")) == LaunchConfig()


def test_options_replace_what_a_machines_file_says(tmp_path):
    file = tmp_path / "four.yaml"
    file.write_text("num_machines: 4\nnum_processes: 8\nmain_process_ip: head\nmain_process_port: 29500\n")
    given = ("train", "--machines-file", str(file))
    assert launch_from(options(*given)) == LaunchConfig(2, Machines(4, 0, "head:29500"))
    assert launch_from(options(*given, "--machine-rank", "3")) == LaunchConfig(2, Machines(4, 3, "head:29500"))
    assert launch_from(options(*given, "--machines", "1", "--processes", "3")) == LaunchConfig(3)
