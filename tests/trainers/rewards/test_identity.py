"""Scores: repeatable, without gradient, and the same in every batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from trainers.errors import UserError
from trainers.rewards.identity import Collator, IdentityReward, open_base, preference_probabilities

Images = list[list[Tensor]]


def test_scores_repeat_bit_by_bit(reward: IdentityReward, clips: list[Tensor], references: Images) -> None:
    assert torch.equal(reward.score(clips, references), reward.score(clips, references))


def test_a_clip_scores_the_same_alone_and_in_a_padded_batch(
    reward: IdentityReward, clips: list[Tensor], references: Images
) -> None:
    together = reward.score(clips, references)
    alone = torch.cat([reward.score([clip], [images]) for clip, images in zip(clips, references, strict=True)])
    assert (together - alone).abs().max() < 1e-5
    assert together.unique().numel() == 3


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_the_batch_size_does_not_matter(
    reward: IdentityReward, clips: list[Tensor], references: Images, batch_size: int
) -> None:
    expected = reward.score(clips, references, batch_size=3)
    assert (reward.score(clips, references, batch_size=batch_size) - expected).abs().max() < 1e-5


def test_scoring_leaves_no_graph(reward: IdentityReward, clips: list[Tensor], references: Images) -> None:
    """rl_anchors 21: the reference scored with gradients on, in threads where torch's flag was not set."""
    reward.model.requires_grad_(True)
    assert torch.is_grad_enabled()
    assert not reward.score(clips, references).requires_grad


def test_the_training_path_gives_the_same_scores_with_gradient(
    reward: IdentityReward, clips: list[Tensor], references: Images
) -> None:
    reward.model.requires_grad_(True)
    scores = reward.model(reward.collator.collate(clips, references, 10.0))
    assert (scores.detach() - reward.score(clips, references)).abs().max() < 1e-5
    scores.sum().backward()
    assert all(
        p.grad is not None and p.grad.abs().sum() > 0
        for p in (
            reward.model.rm_head.weight,
            reward.model.visual.patch_embed.proj.weight,
            reward.model.language_model.layers[0].mlp.up_proj.weight,
        )
    )


def test_the_rate_enters_the_score(reward: IdentityReward, clips: list[Tensor], references: Images) -> None:
    slow, fast = (reward.score(clips[:1], references[:1], fps=fps).item() for fps in (2.0, 10.0))
    assert slow != fast


def test_each_clip_may_have_its_own_rate(reward: IdentityReward, clips: list[Tensor], references: Images) -> None:
    mixed = reward.score(clips[:2], references[:2], fps=[2.0, 10.0])
    apart = [reward.score([clips[i]], [references[i]], fps=fps).item() for i, fps in enumerate((2.0, 10.0))]
    assert mixed.tolist() == pytest.approx(apart, abs=1e-5)


def test_the_order_of_references_enters_the_score(
    reward: IdentityReward, clips: list[Tensor], references: Images
) -> None:
    reversed_order = reward.score(clips[:1], [references[0][::-1]])
    assert reversed_order.item() != reward.score(clips[:1], references[:1]).item()


def test_scores_do_not_depend_on_what_was_scored_before(
    reward: IdentityReward, clips: list[Tensor], references: Images
) -> None:
    """Bit by bit: a resumed run has scored other references before."""
    fresh = reward.to("cpu").score(clips, references)
    for known in (references[:1], [references[-1][:1]]):
        reward.to("cpu").score(clips[:1], known)
        assert torch.equal(reward.score(clips, references), fresh)


def test_arrays_and_tensors_score_alike(reward: IdentityReward, clips: list[Tensor], references: Images) -> None:
    arrays = reward.score([c.numpy() for c in clips], [[r.numpy() for r in images] for images in references])
    assert torch.equal(arrays, reward.score(clips, references))


def test_a_reference_that_changes_under_its_name_is_read_again(
    reward: IdentityReward, clips: list[Tensor], tmp_path: Path
) -> None:
    path = tmp_path / "person.png"
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (60, 60, 3), np.uint8)).save(path)
    before = reward.score(clips[:1], [[path]]).item()
    Image.fromarray(rng.integers(0, 256, (90, 90, 3), np.uint8)).save(path)
    assert reward.score(clips[:1], [[path]]).item() != before


def test_references_changed_in_place_are_read_again(
    reward: IdentityReward, clips: list[Tensor], references: Images
) -> None:
    before = reward.score(clips[:1], references[:1]).item()
    references[0][0].fill_(7)
    assert reward.score(clips[:1], references[:1]).item() != before


def test_a_half_precision_body_keeps_a_float32_head(base_model: Path, clips: list[Tensor], references: Images) -> None:
    """rl_anchors 23: a bfloat16 head quantises rewards near 3 to steps of 1/64 and makes false ties."""
    torch.manual_seed(0)
    model, sequencer = open_base(base_model, torch.bfloat16)
    assert model.rm_head.weight.dtype == torch.float32
    assert next(model.visual.parameters()).dtype == torch.bfloat16
    scores = IdentityReward(model, Collator(sequencer)).score(clips, references)
    assert scores.dtype == torch.float32
    assert not torch.equal(scores, scores.to(torch.bfloat16).float())


def test_casting_spares_the_head(reward: IdentityReward) -> None:
    reward.model.cast(torch.float16)
    assert reward.model.rm_head.weight.dtype == torch.float32
    assert next(reward.model.language_model.parameters()).dtype == torch.float16


def test_a_clip_without_references_is_refused(reward: IdentityReward, clips: list[Tensor]) -> None:
    with pytest.raises(UserError, match="at least one"):
        reward.score(clips[:1], [[]])


def test_a_missing_reference_file_is_named(reward: IdentityReward, clips: list[Tensor], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="gone.png does not exist"):
        reward.score(clips[:1], [[tmp_path / "gone.png"]])


def test_the_same_pixels_under_another_palette_or_orientation_are_another_reference(
    reward: IdentityReward, clips: list[Tensor]
) -> None:
    """The cache of references must not take one for the other."""
    levels = np.random.default_rng(0).integers(0, 256, (60, 90), np.uint8)
    grey, inverted = (Image.fromarray(levels).convert("P") for _ in range(2))
    inverted.putpalette([255 - level for level in range(256) for _ in range(3)])
    turned = Image.fromarray(levels)
    turned.getexif()[0x0112] = 6  # the camera was held upright
    scores = [reward.score(clips[:1], [[picture]]).item() for picture in (grey, inverted, turned)]
    pixels = [np.repeat(plane[..., None], 3, 2) for plane in (levels, 255 - levels, np.rot90(levels, -1))]
    reward.to("cpu")  # empties the cache
    assert scores == [reward.score(clips[:1], [[np.ascontiguousarray(p)]]).item() for p in pixels]


@pytest.mark.parametrize(
    "clip",
    [
        torch.full((4, 8, 8, 3), float("nan")),
        torch.zeros(4, 8, 8, 3),
        torch.zeros(0, 8, 8, 3, dtype=torch.uint8),
        torch.zeros(8, 8, 3, dtype=torch.uint8),
    ],
)
def test_clips_of_another_form_are_refused(reward: IdentityReward, references: Images, clip: Tensor) -> None:
    with pytest.raises(ValueError, match="uint8"):
        reward.score([clip], references[:1])


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_score_that_is_not_finite_is_an_error_that_names_the_clip(
    reward: IdentityReward, clips: list[Tensor], references: Images, number: float
) -> None:
    """A NaN compares as equal to everything, and would be ranked."""
    calls = iter([torch.tensor([1.0, 2.0]), torch.tensor([number])])
    reward.model.forward = lambda batch: next(calls)
    with pytest.raises(UserError, match=f"score of clip 3 of 3 is {number}.*float32"):
        reward.score(clips, references, batch_size=2)


def test_a_score_that_overflows_in_the_network_is_an_error(
    reward: IdentityReward, clips: list[Tensor], references: Images
) -> None:
    with torch.no_grad():
        reward.model.language_model.norm.weight.fill_(3e38)
    with pytest.raises(UserError, match="score of portrait.mp4 is"):
        reward.score(clips[:1], references[:1], names=["portrait.mp4"])


def test_no_clips_give_no_scores(reward: IdentityReward) -> None:
    assert reward.score([], []).shape == (0,)


def test_probabilities_of_a_comparison_sum_to_one_and_mirror() -> None:
    a, b = torch.tensor([0.0, 2.0, -30.0]), torch.tensor([0.0, -1.0, 40.0])
    win_a, tie, win_b = preference_probabilities(a, b)
    assert torch.allclose(win_a + tie + win_b, torch.ones(3, dtype=torch.float64))
    mirrored = preference_probabilities(b, a)
    assert torch.equal(win_a, mirrored[2]) and torch.allclose(tie, mirrored[1])
    assert win_a[0] == pytest.approx(1 / 6) and tie[0] == pytest.approx(4 / 6)


def test_probabilities_follow_the_paper() -> None:
    """P(A) = e^a / (e^a + t e^b); P(tie) = (t^2 - 1) e^a e^b / ((e^a + t e^b)(t e^a + e^b))."""
    a, b, theta = 0.7, -0.4, 3.0
    ea, eb = np.exp(a), np.exp(b)
    win_a, tie, _ = preference_probabilities(a, b, theta)
    assert win_a == pytest.approx(ea / (ea + theta * eb))
    assert tie == pytest.approx((theta**2 - 1) * ea * eb / ((ea + theta * eb) * (theta * ea + eb)))
