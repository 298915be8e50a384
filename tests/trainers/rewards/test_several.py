"""What a run is trained on, by its configuration."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from trainers.config import make_config
from trainers.errors import UserError
from trainers.faces import users
from trainers.prompts import PromptItem
from trainers.rewards.load import load_reward
from trainers.rewards.motion import motion_energy
from trainers.rewards.scoring import score_videos
from trainers.rewards.several import Rewards, find_rewards
from trainers.runs.inputs import run_inputs

PICTURES = Path(__file__).parents[1] / "faces" / "pictures"


@pytest.fixture(scope="module")
def portrait() -> np.ndarray:
    return np.array(Image.open(PICTURES / "obama.jpg").convert("RGB").resize((200, 200)))


@pytest.fixture(scope="module")
def items(portrait) -> list[PromptItem]:
    return [PromptItem("one", "he talks", (portrait,))] * 2


@pytest.fixture(scope="module")
def videos(portrait) -> torch.Tensor:
    """The reference image itself, and a grey picture."""
    pasted = torch.from_numpy(portrait).expand(2, -1, -1, -1)
    return torch.stack([pasted, torch.full_like(pasted, 120)])


def config_of(small_models, **rewards):
    return make_config("tiny", {**small_models, "rewards": rewards})


@pytest.fixture(scope="module")
def identity(small_models):
    return load_reward(config_of(small_models).reward)


def test_without_weights_the_identity_reward_is_alone_and_unchanged(small_models, identity, items, videos):
    config = config_of(small_models)
    rewards = Rewards(config, identity, items, torch.device("cpu"))
    assert (rewards.names, rewards.weights, rewards.needs_motion) == (("identity",), (1.0,), False)
    assert torch.equal(rewards.score(videos, items)[:, 0], score_videos(identity, videos, items, config.reward))


def test_every_reward_has_a_column_in_the_order_of_the_names(small_models, identity, items, videos):
    """The pasted reference image is a copy in every frame; a picture without a face copies nothing."""
    config = config_of(small_models, copy_paste={"weight": 0.5}, motion={"weight": 0.25}, identity={"weight": 0.0})
    rewards = Rewards(config, identity, items, torch.device("cpu"))
    assert rewards.names == ("identity", "motion", "copy_paste") and rewards.weights == (0.0, 0.25, 0.5)
    moving = videos.clone()
    moving[1, 1, :100] = 250
    energy = motion_energy(moving[1])
    found = rewards.score(moving, items, [energy, energy])
    assert found.dtype == torch.float64 and found[:, 1:].tolist() == [[0.0, 0.0], [1.0, 1.0]]


def test_a_reference_image_without_a_face_is_named_before_anything_is_sampled(small_models, identity, items):
    grey = PromptItem("grey", "nobody", (np.full((64, 64, 3), 90, np.uint8),))
    config = config_of(small_models, copy_paste={"weight": 1.0})
    with pytest.raises(UserError, match="reference image 1 of item `grey` shows no face"):
        Rewards(config, identity, [*items, grey], torch.device("cpu"))


@pytest.mark.parametrize("reward", ["faces", "copy_paste"])
def test_drawn_people_cannot_be_looked_for_by_the_face_networks(reward):
    changes = {"rewards": {reward: {"weight": 1.0}}, "faces": {"embedder": "other.onnx"}}
    with pytest.raises(UserError, match=rf"rewards.{reward} looks for faces, and TinyWorld has drawn people"):
        make_config("tiny", changes)


@pytest.mark.parametrize("embedder", [None, "same.onnx"])
def test_the_face_report_is_no_reward_where_its_embedder_judges(small_models, embedder):
    changes = {"rewards": {"faces": {"weight": 1.0, "embedder": embedder}}, "faces": {"embedder": embedder}}
    with pytest.raises(UserError, match="rewards.faces trains on the face embedder that judges") as caught:
        make_config("tiny", small_models | changes)
    assert "models/insightface" in str(caught.value)


def test_the_face_report_is_a_reward_where_another_embedder_judges(small_models, identity, items, videos):
    """A grey picture shows nobody: 0."""
    changes = {"rewards": {"faces": {"weight": 1.0}}, "faces": {"embedder": "other.onnx"}}
    rewards = Rewards(make_config("tiny", small_models | changes), identity, items, torch.device("cpu"))
    assert rewards.names == ("identity", "faces")
    assert rewards.score(videos, items)[:, 1].tolist() == [1.0, 0.0]


def test_the_face_report_is_no_reward_where_nothing_can_judge(small_models, monkeypatch):
    """The held-out pictures are noise."""
    monkeypatch.setattr(users, "load_recogniser", lambda *_: users.BUILT_IN)
    changes = {"rewards": {"faces": {"weight": 1.0}}, "faces": {"embedder": "other.onnx"}}
    changes |= {"rollout": {"groups_per_update": 2}}
    with pytest.raises(UserError, match="nothing can judge"):
        run_inputs(make_config("tiny", small_models | changes))


def test_nothing_to_train_on_is_refused():
    with pytest.raises(UserError, match=r"rewards: identity.weight 0 leaves nothing to train on"):
        make_config("tiny", {"rewards": {"identity": {"weight": 0.0}}})


def test_text_alignment_without_its_model_is_refused(small_models, tmp_path):
    with pytest.raises(UserError, match="alignment.source is missing"):
        make_config("tiny", {"rewards": {"alignment": {"weight": 1.0}}})
    config = config_of(small_models, alignment={"weight": 1.0, "source": str(tmp_path)})
    with pytest.raises(UserError, match=r"rewards.alignment.source: .* no readable config.json"):
        find_rewards(config)


def test_the_folder_of_the_clip_model_is_made_absolute(small_models):
    config = config_of(small_models, alignment={"source": "clip"}).with_absolute_paths()
    assert config.rewards.alignment.source == str(Path.cwd() / "clip")
