"""Configurations: presets can run, impossible ones are refused with a sentence that names what to change."""

from __future__ import annotations

import hashlib
import math
import os
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainers.config import PRESETS, TrainConfig, make_config, parse_yaml, read_config, split_strength
from trainers.config.plain_yaml import dump_yaml
from trainers.config.refusals import allowed, fields
from trainers.errors import UserError


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_possible(preset):
    assert make_config(preset).preset == preset


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"video": {"height": 250}}, "height 250 is not a multiple of 16; use 240 or 256"),
        ({"video": {"width": 100}}, "width 100 is not a multiple of 16; use 96 or 112"),
        ({"video": {"frames": 34}}, "frames 34 must be 4n\\+1 .*; use 33"),
        ({"rollout": {"window": {"size": 26}}}, "window.size 26 is more than the 25 steps; lower it or raise steps"),
        ({"rollout": {"window": {"kind": "random", "size": 3, "last": 30}}}, "window.last 30 is beyond the 25 steps"),
        (
            {"rollout": {"window": {"kind": "sliding", "size": 13}}},
            "does not fit before step 12; lower size or raise window.last",
        ),
        ({"optim": {"ratio": "guard"}, "rollout": {"dynamics": "cps"}}, "choose one of the two"),
        ({"rollout": {"group_size": 1024, "groups_per_update": 4096}}, "are 8388608 videos per iteration; use at most"),
        ({"preset": "tiny"}, "choose the preset itself"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused_with_what_to_change(changes, sentence):
    with pytest.raises(UserError, match=sentence):
        make_config("paper", changes)


@pytest.mark.parametrize(
    "name, value, expected",
    [
        ("rollout.group_size", 1, "integer from 2 to 1024"),
        ("optim.learning_rate", 0, "number from 1e-10 to 1"),
        ("optim.learning_rate", math.inf, "number from 1e-10 to 1"),
        ("optim.learning_rate", 10**400, "number from 1e-10 to 1"),
        ("lora.alpha", math.nan, "number from 0.001 to 65536"),
        ("lora.alpha", 1e-320, "number from 0.001 to 65536"),
        ("optim.epsilon", 1e-320, "number from 1e-20 to 1"),
        ("process_timeout_minutes", 1e-300, "number from 1 to 10080"),
        ("reward.fps", 0.001, "number from 0.01 to 1000"),
        ("reward.fps", math.inf, "number from 0.01 to 1000"),
        ("rollout.guidance", math.inf, "number from 1 to 100"),
        ("evaluation.guidance", math.nan, "number from 1 to 100, or null"),
        ("rollout.shift", math.inf, "number from 0.01 to 100"),
        ("ema.decay", 1.0, "number from 0, below 1"),
        ("ema.decay", math.nan, "number from 0, below 1"),
        ("optim.betas", [0.9, 1.0], "list of 2, each number from 0, below 1"),
        ("optim.betas", [0.9, math.inf], "list of 2, each number from 0, below 1"),
        ("optim.betas", [0.9], "list of 2, each number from 0, below 1"),
        ("video.height", 10**9, "integer from 16 to 4096"),
        ("rollout.steps", 10**6, "integer from 2 to 1000"),
        ("iterations", 10**12, "integer from 1 to 1000000"),
        ("iterations", "many", "integer from 1 to 1000000"),
        ("iterations", True, "integer from 1 to 1000000"),
        pytest.param("seed", 10**5000, "integer from 0 to 18446744073709551615", id="digits"),
        ("rollout.dynamics", "sde", "one of flow_sde, cps"),
        ("policy.source", "", "path"),
        ("prompts", "a\0b", "path"),
        ("prompts", 2024, "path; put it in quotes"),
        ("trackers", ["excel"], "list, each one of tensorboard, wandb"),
        ("rollout", 3, "a section of settings"),
        ("evaluation.video", 3, "a section of settings"),
    ],
)
def test_a_value_out_of_its_limits_is_refused_by_name_value_and_what_is_allowed(name, value, expected):
    changes = value
    for part in reversed(name.split(".")):
        changes = {part: changes}
    with pytest.raises(UserError) as caught:
        make_config("paper", changes)
    assert str(caught.value).splitlines()[1].startswith(f"  {name} is ")
    assert str(caught.value).endswith(f"; expected: {expected}")


@pytest.mark.parametrize("name, field", list(fields(TrainConfig)))
def test_every_number_has_limits_and_every_setting_a_meaning(name, field):
    assert field.description, name
    number = {"integer", "number"} & set(allowed(field).replace(",", "").split())
    assert not number or "from" in allowed(field).split(), name


@pytest.mark.parametrize("preset", PRESETS)
def test_no_number_may_be_infinite(preset):
    config = make_config(preset).model_dump()
    for name, field in fields(TrainConfig):
        if "number" not in allowed(field).split():
            continue
        changes = [math.inf] * 2 if isinstance(field.default, tuple) else math.inf
        for part in reversed(name.split(".")):
            changes = {part: changes}
        with pytest.raises(UserError, match=name):
            make_config(preset, changes)
    assert config == make_config(preset).model_dump()


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"rollout": {"stepz": 3}}, "no setting `rollout.stepz`; did you mean rollout.steps\\?"),
        ({"rolout": {"steps": 3}}, "no setting `rolout`; did you mean rollout\\?"),
        ({"steps": 3}, "no setting `steps`; did you mean rollout.steps or evaluation.steps\\?"),
        ({"lr": 3}, "no setting `lr`; the command `settings` prints them all"),
        ({"evaluation": {"video": {"heigth": 48}}}, "did you mean evaluation.video.height\\?"),
        ({1: 2}, "the configuration: Keys should be strings"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest_ones(changes, sentence):
    with pytest.raises(UserError, match=sentence):
        make_config("paper", changes)


@pytest.mark.parametrize(
    "text, value",
    [
        ("8:30", "8:30"),
        ("2024-01-01", "2024-01-01"),
        ("yes", "yes"),
        ("off", "off"),
        ("0x10", "0x10"),
        ("1_000", "1_000"),
        ("=", "="),
        ("010", 10),
        ("-3", -3),
        ("1e-4", 1e-4),
        (".5", 0.5),
        ("-.inf", -math.inf),
        ("True", True),
        ("~", None),
        ("", None),
    ],
)
def test_a_plain_value_is_a_number_only_if_it_looks_like_one(text, value):
    found = parse_yaml(text)
    assert found == value and type(found) is type(value)


@given(st.text() | st.sampled_from(["8:30", "1e5", "010", "yes", "null", "~", "2024-01-01", "a\x85b", "<<"]))
def test_every_text_and_number_of_a_config_reads_back(text):
    assert parse_yaml(dump_yaml({"a": [text, 1e-5, 1e300, 7, True, None]})) == {"a": [text, 1e-5, 1e300, 7, True, None]}


def test_a_path_that_is_not_utf_8_is_named():
    with pytest.raises(UserError, match="prompts is .*, which is not UTF-8"):
        make_config("tiny", {"prompts": os.fsdecode(b"caf\xe9.csv")})


@pytest.mark.skipif(sys.platform != "linux", reason="file names are UTF-8 here")
def test_a_folder_that_is_not_utf_8_is_named_before_anything_is_written(monkeypatch, tmp_path):
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    monkeypatch.chdir(folder)
    with pytest.raises(UserError, match="is not UTF-8; rename its folder"):
        make_config("tiny", {"prompts": "a.csv"}).with_absolute_paths()


def test_a_number_may_be_written_without_a_dot():
    config = make_config("paper", parse_yaml("{optim: {learning_rate: 1e-5, kl: 1}, rollout: {shift: 5}}"))
    assert (config.optim.learning_rate, config.optim.kl, config.rollout.shift) == (1e-5, 1.0, 5.0)


def test_sizes_of_evaluation_that_are_left_out_are_those_of_training():
    video = make_config("tiny", {"evaluation": {"video": {"frames": 5}}}).evaluation.video
    assert (video.height, video.width, video.frames) == (48, 80, 5)


def test_presets_of_real_models_carry_wan_s_negative_prompt_and_tinyworld_s_do_not():
    # SHA-256 of `sample_neg_prompt` in Wan-Video/Wan2.1, wan/configs/shared_config.py, as UTF-8.
    digest = "ce96e0324e4b54ce4b6e867f669ca520952e1a34cc116543516b1897f0d3c47e"
    for preset in PRESETS:
        text = make_config(preset).negative_prompt
        assert text == "" if preset.startswith("tiny") else hashlib.sha256(text.encode()).hexdigest() == digest


@pytest.mark.parametrize(
    "preset, training, evaluation",
    [
        ("paper", (4.5, None), (4.5, None)),
        ("paper-phantom", (7.5, 5.0), (7.5, 5.0)),
        ("fast-phantom", (1.0, 1.0), (7.5, 5.0)),
    ],
)
def test_evaluation_has_training_s_scales_unless_it_has_its_own(preset, training, evaluation):
    from trainers.grpo.evaluate import evaluation_guidance
    from trainers.grpo.rollout import training_guidance

    config = make_config(preset)
    for found, expected in ((training_guidance(config.rollout), training), (evaluation_guidance(config), evaluation)):
        assert (found.text, found.image) == expected


@pytest.mark.parametrize("preset", ["paper", "fast", "tiny"])
def test_phantom_s_presets_differ_in_sampling_and_source_alone(preset):
    vace, phantom = (make_config(name).model_dump() for name in (preset, f"{preset}-phantom"))
    assert phantom["policy"].pop("source") == ("tinyworld-phantom" if preset == "tiny" else vace["policy"]["source"])
    vace["policy"].pop("source")
    for section in ("rollout", "evaluation"):
        for name in ("guidance", "image_guidance", "shift"):
            for config in (vace, phantom):
                config[section].pop(name, None)
    assert vace.pop("preset") == phantom.pop("preset").removesuffix("-phantom") == preset
    assert vace == phantom


def test_an_unknown_preset_names_the_known_ones():
    with pytest.raises(UserError, match="choose one of paper, fast, distilled, tiny"):
        make_config("huge")


def test_all_faults_are_named_at_once():
    with pytest.raises(UserError) as caught:
        make_config("paper", {"video": {"frames": 34}, "lora": {"rank": 0}})
    assert "frames 34" in str(caught.value) and "lora.rank" in str(caught.value)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_config_survives_its_file(tmp_path, preset):
    config = make_config(preset, {"seed": 3, "optim": {"betas": [0.8, 0.9], "learning_rate": 1e-5}})
    (tmp_path / "config.yaml").write_text(config.to_yaml(), encoding="utf-8")
    assert read_config(tmp_path / "config.yaml") == config
    assert config.negative_prompt in (tmp_path / "config.yaml").read_text(encoding="utf-8")


def test_a_frozen_configuration_that_was_cut_off_is_refused(tmp_path):
    whole = make_config("tiny").to_yaml()
    (tmp_path / "config.yaml").write_text(whole[: whole.index("\nevaluation:") + 1], encoding="utf-8")
    with pytest.raises(UserError, match="is not complete: it has no section `checkpoint`"):
        read_config(tmp_path / "config.yaml")


BOMB = b"a: &a [x, x]\n" + b"".join(b"b%d: &b%d [*a, *a]\n" % (i, i) for i in range(30))


@pytest.mark.parametrize(
    "text",
    [
        b"a: [",
        b"- 1",
        b"",
        b"\xff\xfe",
        b"preset: paper\nspeed: 2",
        b"[" * 50_000,
        BOMB,
        b"seed: !!bool x",
        b"#" * 10**6,
    ],
)
def test_a_damaged_file_or_one_of_another_version_is_named(tmp_path, text):
    (tmp_path / "config.yaml").write_bytes(text)
    with pytest.raises(UserError, match=r"config\.yaml"):
        read_config(tmp_path / "config.yaml")


def test_paths_are_frozen_absolute(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    config = make_config(
        "tiny",
        {
            "prompts": "a.csv",
            "start_lora": "~/x",
            "publish": "loras",
            "reward": {"base_model": "b"},
            "policy": {"text_encoder": "t", "vae": "v", "loras": ["few steps:0.5", "tinyworld-4-steps"]},
        },
    ).with_absolute_paths()
    assert config.policy.loras == [f"{Path.cwd()}/few steps:0.5", "tinyworld-4-steps:1"]
    assert (config.publish, config.policy.text_encoder, config.policy.vae) == tuple(
        str(Path.cwd() / n) for n in ("loras", "t", "v")
    )
    assert make_config("tiny-phantom").with_absolute_paths().policy.source == "tinyworld-phantom"
    assert config.prompts == str(Path.cwd() / "a.csv")
    assert config.start_lora == str(Path.home() / "x")
    assert config.reward.base_model == str(Path.cwd() / "b")
    assert config.policy.source == "tinyworld" and config.evaluation_prompts is None


@pytest.mark.parametrize("value", ["some", True, 1.5, -0.1])
def test_a_setting_that_may_be_a_word_or_a_number_is_refused_in_one_sentence(value):
    with pytest.raises(UserError) as error:
        make_config("tiny", {"optim": {"gradient_checkpointing": value}})
    (line,) = str(error.value).splitlines()[1:]
    assert line.strip().startswith("optim.gradient_checkpointing is `")
    assert line.endswith("expected: auto or number from 0 to 1")


@pytest.mark.parametrize(
    "text, file, strength",
    [
        ("a.safetensors", "a.safetensors", 1.0),
        ("a.safetensors:0.8", "a.safetensors", 0.8),
        (r"C:\loras\a.safetensors", r"C:\loras\a.safetensors", 1.0),
        (r"C:\loras\a.safetensors:-1", r"C:\loras\a.safetensors", -1.0),
        (":2", ":2", 1.0),
    ],
)
def test_a_lora_is_a_file_or_a_file_with_its_strength(text, file, strength):
    assert split_strength(text) == (file, strength)


@pytest.mark.parametrize("strength", ["nan", "inf", "-101"])
def test_a_strength_out_of_range_is_refused(strength):
    with pytest.raises(
        UserError, match=f"policy: loras: a:{strength} has the strength {strength}; give a number from -100"
    ):
        make_config("tiny", {"policy": {"loras": [f"a:{strength}"]}})
