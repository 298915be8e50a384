"""Text alignment by a small CLIP of the real class with random weights."""

from __future__ import annotations

import pytest
import torch

from trainers.config import AlignmentRewardConfig
from trainers.errors import UserError
from trainers.rewards.alignment import TextAlignment, find_clip
from trainers.tinyworld.models import build_tokenizer

PROMPTS = ["two people wave", "one person jumps " * 60]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from transformers import CLIPConfig, CLIPModel

    tokenizer = build_tokenizer(PROMPTS)
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {"vocab_size": len(tokenizer), "max_position_embeddings": 20, "eos_token_id": tokenizer.eos_token_id}
    config = CLIPConfig(
        text_config=size | text, vision_config=size | {"image_size": 32, "patch_size": 16}, projection_dim=8
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = CLIPModel(config)
    folder = tmp_path_factory.mktemp("clip")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def videos() -> torch.Tensor:
    return torch.randint(0, 256, (2, 9, 48, 80, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def alignment(folder) -> TextAlignment:
    return TextAlignment.load(AlignmentRewardConfig(weight=1.0, source=str(folder)), "cpu")


def test_a_video_scores_the_same_alone_and_among_others(alignment, videos):
    together = alignment(videos, PROMPTS)
    assert together == [alignment(videos[i : i + 1], PROMPTS[i : i + 1])[0] for i in range(2)]
    assert all(-1 <= value <= 1 for value in together) and together[0] != together[1]


def test_the_score_is_the_mean_cosine_of_the_frames_that_are_read(alignment, videos):
    read = [0, 3, 5, 8]
    each = [alignment(videos[:1, index : index + 1], PROMPTS[:1])[0] for index in read]
    assert alignment(videos[:1], PROMPTS[:1])[0] == pytest.approx(sum(each) / 4, abs=1e-5)


def test_it_depends_on_the_prompt(alignment, videos):
    first, other = alignment(videos[[0, 0]], PROMPTS)
    assert first != other


@pytest.mark.parametrize("text, sentence", [(None, "no readable config.json"), ('{"model_type": "bert"}', "`bert`")])
def test_what_is_no_clip_is_refused(tmp_path, text, sentence):
    if text:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=sentence):
        find_clip(AlignmentRewardConfig(weight=1.0, source=str(tmp_path)))


def test_a_clip_without_weights_is_refused_with_its_folder(tmp_path, folder):
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    with pytest.raises(UserError, match="cannot be loaded"):
        TextAlignment.load(AlignmentRewardConfig(weight=1.0, source=str(tmp_path)), "cpu")
