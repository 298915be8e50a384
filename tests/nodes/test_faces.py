"""The face nodes on real faces: the report's own numbers, and the best of several videos."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image

NAMES = ("obama", "collins", "hopper")


@pytest.fixture(scope="module")
def portraits(repository) -> dict[str, torch.Tensor]:
    """IMAGEs [1, 200, 200, 3] of three people."""
    folder = repository / "tests" / "trainers" / "faces" / "pictures"
    found = {}
    for name in NAMES:
        picture = Image.open(folder / f"{name}.jpg").convert("RGB").resize((200, 200))
        found[name] = torch.from_numpy(np.array(picture)).float()[None] / 255
    return found


@pytest.fixture(scope="module")
def references(portraits) -> dict[str, torch.Tensor]:
    return {"ref0": portraits["obama"], "ref1": portraits["collins"]}


def video(portraits, left: str, right: str) -> torch.Tensor:
    """Two people beside each other, one frame: every frame costs, and those of a video are tested in trainers/."""
    return torch.cat([portraits[left], portraits[right]], 2)


@pytest.fixture(scope="module")
def right(portraits) -> torch.Tensor:
    return video(portraits, "obama", "collins")


@pytest.fixture(scope="module")
def wrong(portraits) -> torch.Tensor:
    return video(portraits, "obama", "hopper")


@pytest.fixture(scope="module")
def output(node_output, wrong, references):
    return node_output("IdentityGRPOFaceReport", images=wrong, references=references, fps=3.0)


def test_half_the_people_are_half_the_score(output):
    assert output.args[0] == pytest.approx(0.5, abs=0.02)


def test_the_lines_name_the_missing_person(output):
    assert "person 2 is missing in 100%" in output.args[1]


def test_the_numbers_are_in_the_history(output):
    shown = output.ui if isinstance(output.ui, dict) else output.ui.as_dict()
    (numbers,) = json.loads(json.dumps(shown, allow_nan=False))["identity_grpo"]
    assert numbers["headline"] == output.args[0] and numbers["people"][1]["missing"] == 1


def test_the_picture_is_an_image(output):
    assert output.args[2].ndim == 4 and output.args[2].shape[-1] == 3


def test_the_best_video_is_kept(run_node, right, wrong, references):
    clips = {"clip0": wrong, "clip1": right}
    best, index, ranking, _, video = run_node("IdentityGRPOKeepBest", clips=clips, references=references, fps=12.5)
    assert torch.equal(best, right) and index == 2 and ranking.startswith("1. video 2: faces 1.00")
    parts = video.get_components()
    assert torch.equal(parts.images, right) and parts.frame_rate == 12.5


def test_a_clip_of_two_videos_is_split(run_node, right, wrong, references):
    clips = {"clip0": torch.cat([right, wrong])}
    best, index, *_ = run_node("IdentityGRPOKeepBest", clips=clips, references=references, videos_per_clip=2)
    assert torch.equal(best, right) and index == 1


def test_a_clip_that_cannot_be_split_is_refused(run_node, right, references):
    with pytest.raises(ValueError, match=r"`clips.clip0` has 3 frames.*videos_per_clip"):
        clips = {"clip0": right.expand(3, -1, -1, -1)}
        run_node("IdentityGRPOKeepBest", clips=clips, references=references, videos_per_clip=2)


def test_the_reward_alone_looks_at_no_faces(run_node, references):
    """Drawn people have no faces that the detector finds."""
    from trainers.tinyworld.prompts import scenes_of, tiny_prompt_set
    from trainers.tinyworld.render import render, to_frames

    items = tiny_prompt_set("held_out", 2)
    one, two = to_frames(render(scenes_of(items))).float() / 255
    people = torch.stack([torch.from_numpy(r) for r in items[0].references]).float() / 255
    (reward,) = run_node("IdentityGRPOLoadReward")
    given = {"clips": {"clip0": two, "clip1": one}, "references": {"ref0": people}, "reward": reward}
    _, index, ranking, *_ = run_node("IdentityGRPOKeepBest", **given, rank_by="reward")
    assert index == 2 and "faces" not in ranking


@pytest.mark.parametrize("rank_by", ["reward", "both"])
def test_a_ranking_by_a_reward_that_is_not_connected_is_refused(run_node, right, references, rank_by):
    with pytest.raises(ValueError, match="needs a reward"):
        run_node("IdentityGRPOKeepBest", clips={"clip0": right}, references=references, rank_by=rank_by)


def test_a_reference_without_a_face_is_refused(run_node, right):
    with pytest.raises(ValueError, match="`references.ref0` shows no face"):
        run_node("IdentityGRPOFaceReport", images=right, references={"ref0": torch.full((1, 64, 64, 3), 0.5)})


def test_a_video_without_frames_is_refused(run_node, references):
    with pytest.raises(ValueError, match="`images` has no frame"):
        run_node("IdentityGRPOFaceReport", images=torch.zeros(0, 64, 64, 3), references=references)


def test_cancel_ends_a_report(run_node, right, references):
    import comfy.model_management as management

    management.interrupt_current_processing(True)
    with pytest.raises(management.InterruptProcessingException):
        run_node("IdentityGRPOFaceReport", images=right, references=references)


# --- Sample Until Right -----------------------------------------------------------------------------------------------

TINY = {
    "prompt": "two people wave",
    "negative": "",
    "width": 80,
    "height": 48,
    "frames": 5,
    "steps": 2,
    "cfg": 1.0,
    "shift": 3.0,
}


@pytest.fixture(scope="module")
def policy(run_node):
    return run_node("IdentityGRPOLoadModel")[0]


@pytest.fixture
def videos(pack, monkeypatch, right, wrong):
    """A sampler that gives the wrong people with seed 5 and the right ones with any other; the seeds it was given."""
    from comfy_api.latest import io

    seeds = []

    def sample(kind, scales, policy, people, seed, **inputs):
        seeds.append(seed)
        return io.NodeOutput(wrong if seed == 5 else right, {"samples": torch.full((1,), float(seed))})

    module = sys.modules[pack.nodes["IdentityGRPOSampleUntilRight"].__module__]
    monkeypatch.setattr(module, "sample", sample)
    return seeds


def test_it_ends_at_the_first_right_video(run_node, policy, videos, right, references):
    given = {"policy": policy, "references": references, "seed": 5, "max_tries": 4, "fps": 12.0, **TINY}
    images, latent, seed, score, picture, video = run_node("IdentityGRPOSampleUntilRight", **given)
    assert video.get_components().frame_rate == 12 and torch.equal(video.get_components().images, right)
    assert videos == [5, 6] and seed == 6 and torch.equal(images, right)
    assert latent["samples"].item() == 6 and score > 0.9 and picture.ndim == 4


def test_without_success_the_best_is_given_and_named_so(node_output, policy, videos, references):
    swapped = dict(zip(references, reversed(references.values()), strict=True)) | {"ref1": references["ref1"]}
    given = {"policy": policy, "references": swapped, "seed": 4, "max_tries": 2, "least_score": 1.0, **TINY}
    output = node_output("IdentityGRPOSampleUntilRight", **given)
    shown = output.ui if isinstance(output.ui, dict) else output.ui.as_dict()
    assert videos == [4, 5] and output.args[2] in (4, 5)
    assert "none of 2 videos is right" in shown["text"][0] and shown["identity_grpo"][0]["tries"] == 2


def test_it_samples_with_the_model(run_node, policy, references):
    """TinyWorld draws its people: no face is seen, and the first of equal videos is kept."""
    given = {"policy": policy, "references": references, "seed": 1, "max_tries": 1, **TINY}
    images, _, seed, score, *_ = run_node("IdentityGRPOSampleUntilRight", **given)
    assert images.shape == (5, 48, 80, 3) and seed == 1 and score == 0


def test_pictures_without_a_face_are_refused_before_anything_is_sampled(run_node, policy, videos):
    given = {"policy": policy, "references": {"ref0": torch.full((1, 64, 64, 3), 0.5)}, **TINY}
    with pytest.raises(ValueError, match="`references.ref0` shows no face"):
        run_node("IdentityGRPOSampleUntilRight", **given)
    assert videos == []
