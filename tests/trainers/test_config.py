"""Configurations: presets stand, impossible ones are refused with the sentence that mends them."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainers.config import PRESETS, make_config, read_config
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
        ({"rollout": {"group_size": 1}}, "rollout.group_size: .*greater than or equal to 2"),
        ({"optim": {"learning_rate": 0}}, "optim.learning_rate: .*greater than 0"),
        ({"iterations": "many"}, "iterations: .*integer"),
        ({"rolout": {}}, "rolout: Extra inputs are not permitted"),
        ({"ema": {"decay": 1.0}}, "ema.decay: .*less than 1"),
    ],
)
def test_an_impossible_config_says_how_to_mend_it(changes, sentence):
    with pytest.raises(UserError, match=sentence):
        make_config("paper", changes)


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
    with pytest.raises(UserError, match="choose one of paper, fast, tiny"):
        make_config("huge")


def test_all_faults_are_named_at_once():
    with pytest.raises(UserError) as caught:
        make_config("paper", {"video": {"frames": 34}, "lora": {"rank": 0}})
    assert "frames 34" in str(caught.value) and "lora.rank" in str(caught.value)


def test_a_config_survives_its_file(tmp_path):
    config = make_config("fast", {"seed": 3, "optim": {"betas": [0.8, 0.9]}})
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    assert read_config(tmp_path / "config.yaml") == config


@pytest.mark.parametrize("text", [b"a: [", b"- 1", b"", b"\xff\xfe", b"preset: paper\nspeed: 2"])
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
            "policy": {"text_encoder": "t", "vae": "v"},
        },
    ).with_absolute_paths()
    assert (config.publish, config.policy.text_encoder, config.policy.vae) == tuple(
        str(Path.cwd() / n) for n in ("loras", "t", "v")
    )
    assert make_config("tiny-phantom").with_absolute_paths().policy.source == "tinyworld-phantom"
    assert config.prompts == str(Path.cwd() / "a.csv")
    assert config.start_lora == str(Path.home() / "x")
    assert config.reward.base_model == str(Path.cwd() / "b")
    assert config.policy.source == "tinyworld" and config.evaluation_prompts is None
