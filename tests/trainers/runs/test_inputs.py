"""What a run's configuration names: prompt sets, their negative prompts, and the judge."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from trainers.config import WAN_NEGATIVE_PROMPT, make_config
from trainers.errors import UserError
from trainers.runs.inputs import check_prompts, resolve_prompts, run_inputs

FEW = {"iterations": 1, "evaluation": {"items": 2}}


@pytest.fixture
def published(tmp_path) -> str:
    """A CSV with the two columns of the published trainer, and one with a negative prompt of its own."""
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(tmp_path / "a.png")
    rows = [f"a.png,prompt {index}," for index in range(17)] + ["a.png,prompt 17,blurry"]
    (tmp_path / "set.csv").write_text("\n".join(["ref_paths,prompt,negative", *rows]))
    return str(tmp_path / "set.csv")


@pytest.mark.parametrize("preset", ["paper", "fast", "paper-phantom", "fast-phantom"])
def test_rows_without_a_negative_prompt_get_the_preset_s_in_training_and_evaluation(published, preset):
    items, held_out = resolve_prompts(make_config(preset, {"prompts": published, "held_out": 2}))
    assert {item.negative for item in items} == {WAN_NEGATIVE_PROMPT}
    assert [item.negative for item in held_out] == [WAN_NEGATIVE_PROMPT, "blurry"]


def test_a_run_s_own_negative_prompt_is_used_and_tinyworld_has_none(published):
    config = make_config("paper", {"prompts": published, "held_out": 2, "negative_prompt": "static"})
    assert {item.negative for item in resolve_prompts(config)[0]} == {"static"}
    assert {item.negative for item in resolve_prompts(make_config("tiny", FEW))[0]} == {""}


def test_the_negative_prompt_moves_the_velocity(published):
    """So the default of the published recipe is part of what `paper` trains."""
    import torch

    from trainers.policies.base import Guidance, VideoSize
    from trainers.policies.load import load_policy

    policy, size = load_policy("tinyworld"), VideoSize(48, 80, 5)
    latents = torch.randn(1, *policy.latent_shape(size, 1), generator=torch.Generator().manual_seed(0))
    velocities = []
    for negative in ("", WAN_NEGATIVE_PROMPT):
        config = make_config("paper", {"prompts": published, "held_out": 2, "negative_prompt": negative})
        conditions = policy.batch([policy.encode(resolve_prompts(config)[0][0], size)])
        velocities.append(
            policy.velocity(latents, torch.tensor([800.0]), conditions, Guidance(config.rollout.guidance))
        )
    assert (velocities[1] - velocities[0]).norm() > 0.05 * velocities[0].norm()


@pytest.mark.parametrize("size, judged", [((48, 80), True), ((32, 48), False)])
def test_the_oracle_judges_tinyworld_s_items_in_their_own_size(size, judged):
    video = dict(zip(("height", "width"), size, strict=True))
    assert (run_inputs(make_config("tiny", FEW | {"video": video})).judge is not None) == judged


def test_other_items_have_no_judge(published):
    config = make_config("tiny", {"prompts": published, "held_out": 2})
    assert run_inputs(config).judge is None


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"video": {"height": 64}}, "video is 80x64, but TinyWorld's videos are 80x48; set video.width=80"),
        ({"evaluation": {"video": {"width": 96}}}, "evaluation.video is 96x48, but TinyWorld's videos are 80x48"),
        ({"held_out": 2}, "--held-out takes rows off a CSV"),
        ({"rollout": {"groups_per_update": 600}}, "tinyworld has 512 rows to train on but an update needs 600 groups"),
        ({"prompts": "none.csv"}, "none.csv"),
        ({"evaluation_prompts": "none.csv"}, "none.csv"),
        ({"prompts": "none.csv", "evaluation_prompts": "tinyworld"}, "none.csv"),
        ({"prompts": "a.csv", "evaluation_prompts": "b.csv", "held_out": 1}, "give only one of them"),
    ],
)
def test_prompts_that_cannot_be_used_are_refused_without_rendering_any(monkeypatch, changes, sentence):
    monkeypatch.setattr("trainers.runs.inputs._tinyworld", None)
    with pytest.raises(UserError, match=sentence):
        check_prompts(make_config("tiny", changes))


def test_prompts_that_can_be_used_pass_without_rendering_any(monkeypatch, published):
    monkeypatch.setattr("trainers.runs.inputs._tinyworld", None)
    check_prompts(make_config("tiny"))
    check_prompts(make_config("paper", {"prompts": published, "held_out": 2}))
    check_prompts(make_config("tiny", {"evaluation_prompts": str(Path(published))}))
