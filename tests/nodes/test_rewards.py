"""Scores and comparisons as nodes: the trainers' numbers on ComfyUI's tensors, in outputs, pictures and history."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

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


def test_the_prompt_is_not_part_of_the_score(run_node, reward, case):
    people, clip, _ = case
    with_prompt, without = (
        run_node("IdentityGRPOScore", reward=reward, images=clip, references={"ref0": people}, prompt=p)[0]
        for p in ("a wave \ud83d", "")
    )
    assert with_prompt == without


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


@pytest.mark.parametrize("shape, message", [((0, 48, 80, 3), "has no frame"), ((3, 4, 1000, 3), "too narrow")])
def test_a_video_that_cannot_be_read_is_refused_by_its_name(run_node, reward, case, shape, message):
    people, clip, _ = case
    with pytest.raises(ValueError, match=f"`video_b`.*{message}"):
        run_node(
            "IdentityGRPOCompare", reward=reward, video_a=clip, video_b=torch.zeros(shape), references={"ref0": people}
        )


def test_a_reference_that_is_too_narrow_is_refused(run_node, reward, case):
    with pytest.raises(
        ValueError,
        match="^a reference image cannot be used: it has 300x1 pixels.*crop it to the person",
    ):
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


def test_the_verdict_a_picture_and_the_numbers_are_in_the_history(node_output, reward, case):
    people, right, wrong = case
    output = node_output(
        "IdentityGRPOCompare", reward=reward, video_a=wrong, video_b=right, references={"ref0": people}
    )
    shown, (win, tie, _) = as_history(output.ui), output.args
    assert shown["images"] and "B preserves the identities better" in shown["text"][0]
    (numbers,) = shown["identity_grpo"]
    assert (numbers["win"], numbers["tie"]) == (win, tie)
    scores = [score(node_output, reward, clip, people) for clip in (wrong, right)]
    assert [numbers["score_a"], numbers["score_b"]] == pytest.approx(scores, abs=1e-6)


@pytest.mark.parametrize("frames, said", [(1, "`images` has 1 frame, and the reward reads 4"), (4, "")])
def test_a_clip_of_fewer_frames_than_the_reward_reads_is_scored_with_a_warning(node_output, reward, case, frames, said):
    people, clip, _ = case
    output = node_output("IdentityGRPOScore", reward=reward, images=clip[:frames], references={"ref0": people})
    (text,) = as_history(output.ui)["text"]
    assert text.partition("\nWarning: ")[2].startswith(said) and ("Warning" in text) == bool(said)


def test_a_still_in_the_place_of_a_video_is_named_in_a_comparison(node_output, reward, case):
    people, clip, _ = case
    videos = {"video_a": clip, "video_b": clip[:1]}
    output = node_output("IdentityGRPOCompare", reward=reward, references={"ref0": people}, **videos)
    assert "\nWarning: `video_b` has 1 frame, and the reward reads 4" in as_history(output.ui)["text"][0]


def score(node_output, reward, clip, people) -> float:
    output = node_output("IdentityGRPOScore", reward=reward, images=clip, references={"ref0": people})
    (numbers,) = as_history(output.ui)["identity_grpo"]
    assert numbers == {"score": output.args[0]}
    return numbers["score"]


def as_history(shown) -> dict:
    """What `GET /history` answers for a node: through JSON, as ComfyUI sends it."""
    return json.loads(json.dumps(shown if isinstance(shown, dict) else shown.as_dict(), allow_nan=False))


BROKEN = {"NaN": float("nan"), "infinity": float("-inf")}


@pytest.mark.parametrize("kind", BROKEN)
@pytest.mark.parametrize("name", ["images", "references.ref1"])
def test_numbers_that_are_not_finite_get_no_score(run_node, reward, case, kind, name):
    """A black picture, which NaN becomes as uint8, scores like any other."""
    people, clip, _ = case
    images, person = clip.clone(), people[:1].clone()
    (images if name == "images" else person)[0, 5, 5, 1] = BROKEN[kind]
    with pytest.raises(ValueError, match=f"`{name}` holds numbers that are not finite \\({kind}\\)"):
        run_node("IdentityGRPOScore", reward=reward, images=images, references={"ref0": people, "ref1": person})


@pytest.mark.parametrize("name", ["video_a", "video_b"])
def test_a_video_of_nan_is_not_compared(run_node, reward, case, name):
    people, clip, other = case
    videos = {"video_a": clip, "video_b": other} | {name: torch.full_like(clip, float("nan"))}
    with pytest.raises(ValueError, match=f"`{name}` holds numbers that are not finite"):
        run_node("IdentityGRPOCompare", reward=reward, references={"ref0": people}, **videos)


def test_a_score_that_is_not_finite_is_an_error(run_node, reward, case, monkeypatch):
    people, clip, _ = case
    monkeypatch.setattr(reward.reward.model, "forward", lambda batch: torch.tensor([float("nan")]))
    with pytest.raises(ValueError, match="score of `images` is nan"):
        run_node("IdentityGRPOScore", reward=reward, images=clip, references={"ref0": people})


def test_one_channel_scores_as_grey_rgb(run_node, reward, case):
    people, clip, _ = case
    grey, person = clip[..., :1], people[..., :1]
    found, expected = (
        run_node("IdentityGRPOScore", reward=reward, images=i, references={"ref0": p})[0]
        for i, p in ((grey, person), (grey.repeat(1, 1, 1, 3), person.repeat(1, 1, 1, 3)))
    )
    assert found == expected


@pytest.mark.parametrize("fps", [float("nan"), float("inf"), 0.0])
def test_an_impossible_rate_that_a_link_brings_is_refused(run_node, pack, reward, case, fps):
    people, clip, _ = case
    with pytest.raises(ValueError, match="fps is"):
        run_node("IdentityGRPOScore", reward=reward, images=clip, references={"ref0": people}, fps=pack.Linked(fps))


@pytest.fixture
def own_reward(pack, repository):
    """A folder of models/identity_reward with the golden case's reward, whose base is not beside it."""
    import folder_paths

    folder = Path(folder_paths.get_folder_paths("identity_reward")[0]) / "own"
    shutil.copytree(repository / "tests" / "golden" / "identity_reward" / "identity_reward", folder)
    yield folder
    shutil.rmtree(folder)


def test_one_broken_reward_is_one_error_on_the_checkpoint(run_node, pack, own_reward):
    """And is found before anything runs."""
    (own_reward / "model_config.json").write_text('{"data_config": {"num_frames": "five"}}', encoding="utf-8")
    with pytest.raises(pack.Refused, match="num_frames") as refused:
        run_node("IdentityGRPOLoadReward", checkpoint="own")
    assert [name for name, _ in refused.value.problems] == ["checkpoint"]


def test_an_incomplete_reward_is_refused_before_it_loads(run_node, pack, own_reward):
    shutil.rmtree(own_reward / "checkpoint-21")
    with pytest.raises(pack.Refused, match="checkpoint-N"):
        run_node("IdentityGRPOLoadReward", checkpoint="own")


def test_a_missing_base_model_is_refused_before_a_score_needs_it(run_node, own_reward):
    with pytest.raises(ValueError, match="'base_model' .* is not on this machine"):
        run_node("IdentityGRPOLoadReward", checkpoint="own")


@pytest.mark.parametrize("name", ["checkpoint", "base_model"])
def test_a_folder_that_is_not_offered_is_one_error_on_its_input(run_node, pack, name):
    with pytest.raises(pack.Refused) as refused:
        run_node("IdentityGRPOLoadReward", **{name: "../elsewhere"})
    assert [problem for problem, _ in refused.value.problems] == [name]


@pytest.mark.parametrize("name", ["checkpoint", "base_model", "dtype", "device"])
def test_a_choice_that_a_link_brings_is_checked(run_node, pack, name):
    with pytest.raises(ValueError, match="`/etc`"):
        run_node("IdentityGRPOLoadReward", **{name: pack.Linked("/etc")})
