"""Scores and comparisons as nodes: the trainers' numbers, on ComfyUI's tensors, with pictures that say why."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(scope="module")
def reward(run_node):
    return run_node("IdentityGRPOLoadReward")[0]


@pytest.fixture(scope="module")
def case(run_node):
    """People of a held-out row, a clip of them as rendered, and one of other people: IMAGEs."""
    from trainers.tinyworld.prompts import scenes_of, tiny_prompt_set
    from trainers.tinyworld.render import render, to_frames

    items = tiny_prompt_set("held_out", 4)
    clips = to_frames(render(scenes_of(items))).float() / 255
    people = torch.stack([torch.from_numpy(r) for r in items[0].references]).float() / 255
    return people, clips[0], clips[1]


def test_the_score_is_the_rewards_own(run_node, reward, case):
    people, clip, _ = case
    score, picture = run_node("IdentityGRPOScore", reward=reward, images=clip, references={"ref0": people}, fps=10.0)
    frames, pictures = ((x * 255).round().byte() for x in (clip, people))
    assert score == pytest.approx(reward.reward.score([frames], [list(pictures.numpy())], 10.0).item(), abs=1e-5)
    assert picture.ndim == 4 and picture.shape[-1] == 3


def test_people_in_slots_of_their_own_score_as_a_batch(run_node, reward, case):
    people, clip, _ = case
    slots = {f"ref{i}": person[None] for i, person in enumerate(people)}
    together, apart = (
        run_node("IdentityGRPOScore", reward=reward, images=clip, references=r)[0] for r in ({"ref0": people}, slots)
    )
    assert together == pytest.approx(apart, abs=1e-6)


def test_the_frame_rate_is_part_of_the_score(run_node, reward, case):
    people, clip, _ = case
    slow, fast = (
        run_node("IdentityGRPOScore", reward=reward, images=clip, references={"ref0": people}, fps=f)[0]
        for f in (1.0, 30.0)
    )
    assert slow != fast


def test_the_prompt_is_not(run_node, reward, case):
    people, clip, _ = case
    told, silent = (
        run_node("IdentityGRPOScore", reward=reward, images=clip, references={"ref0": people}, prompt=p)[0]
        for p in ("a wave", "")
    )
    assert told == silent


def test_the_video_of_the_right_people_wins(run_node, reward, case):
    people, right, wrong = case
    win, tie, _ = run_node(
        "IdentityGRPOCompare", reward=reward, video_a=wrong, video_b=right, references={"ref0": people}
    )
    assert win > 0.5 and 0 <= tie <= 1 - win


def test_swapping_the_videos_swaps_the_chances(run_node, reward, case):
    people, right, wrong = case
    win, tie, _ = run_node(
        "IdentityGRPOCompare", reward=reward, video_a=wrong, video_b=right, references={"ref0": people}
    )
    lose, same, _ = run_node(
        "IdentityGRPOCompare", reward=reward, video_a=right, video_b=wrong, references={"ref0": people}
    )
    assert tie == pytest.approx(same) and win + tie + lose == pytest.approx(1)


@pytest.mark.parametrize("node", ["IdentityGRPOScore", "IdentityGRPOCompare"])
def test_nothing_connected_as_references_is_refused(run_node, pack, reward, case, node):
    _, clip, _ = case
    clips = {"images": clip} if node.endswith("Score") else {"video_a": clip, "video_b": clip}
    with pytest.raises((pack.Refused, ValueError), match="missing|no reference image"):
        run_node(node, reward=reward, references={}, **clips)


@pytest.mark.parametrize("shape, told", [((0, 48, 80, 3), "has no frame"), ((3, 4, 1000, 3), "too narrow")])
def test_a_video_that_cannot_be_looked_at_is_refused_by_its_name(run_node, reward, case, shape, told):
    people, clip, _ = case
    with pytest.raises(ValueError, match=f"`video_b`.*{told}"):
        run_node(
            "IdentityGRPOCompare", reward=reward, video_a=clip, video_b=torch.zeros(shape), references={"ref0": people}
        )


def test_a_person_too_narrow_to_be_seen_is_told_in_a_line(run_node, reward, case):
    with pytest.raises(ValueError, match="^Reference image: .*too narrow.*Crop it"):
        run_node("IdentityGRPOScore", reward=reward, images=case[1], references={"ref0": torch.rand(1, 1, 300, 3)})


@pytest.mark.parametrize("device", ["auto", "CPU"])
def test_cancel_ends_a_score_wherever_it_computes(run_node, case, device):
    import comfy.model_management as management

    people, clip, _ = case
    (reward,) = run_node("IdentityGRPOLoadReward", device=device)
    reached = []
    reward.reward.model.rm_head.register_forward_hook(lambda *_: reached.append(True))
    management.interrupt_current_processing(True)
    with pytest.raises(management.InterruptProcessingException):
        run_node("IdentityGRPOScore", reward=reward, images=clip, references={"ref0": people})
    assert not reached


def test_the_verdict_and_a_picture_are_shown(node_output, reward, case):
    people, right, wrong = case
    shown = node_output(
        "IdentityGRPOCompare", reward=reward, video_a=wrong, video_b=right, references={"ref0": people}
    ).ui
    shown = shown if isinstance(shown, dict) else shown.as_dict()
    assert shown["images"] and "B preserves the identities better" in shown["text"][0]


def test_an_incomplete_reward_is_refused_before_it_loads(run_node, pack):
    from pathlib import Path

    import folder_paths

    folder = Path(folder_paths.get_folder_paths("identity_reward")[0]) / "half"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model_config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(pack.Refused, match="checkpoint"):
        run_node("IdentityGRPOLoadReward", checkpoint="half")


def test_a_base_model_that_is_not_offered_is_refused_beside_the_built_in_reward_too(run_node, pack):
    with pytest.raises(pack.Refused, match="there is no base model"):
        run_node("IdentityGRPOLoadReward", base_model="../elsewhere")
