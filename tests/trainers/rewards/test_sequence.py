"""The token sequence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from trainers.errors import UserError
from trainers.rewards.identity import IdentityReward
from trainers.rewards.sequence import INSTRUCTION, REWARD_TOKEN, Sequencer


@pytest.fixture(scope="module")
def case(repository: Path) -> Path:
    return repository / "tests" / "golden" / "identity_reward"


def test_the_text_is_the_released_one_without_vision_labels(case: Path) -> None:
    sequencer = Sequencer.load(case / "base_model", 2)
    ids = sequencer.build([(1, 2, 2), (1, 2, 2)], (2, 2, 2), 1.0).ids.tolist()
    once = [token for i, token in enumerate(ids) if token != sequencer.video_token or ids[i - 1] != token]
    stated = json.loads((case / "items.json").read_text(encoding="utf-8"))["collapsed_chat_text_item0"]
    assert sequencer.tokenizer.decode(once, skip_special_tokens=False) == stated


def test_the_instruction_names_its_source(repository: Path) -> None:
    described = json.loads((repository / "trainers" / "rewards" / "instruction.json").read_text(encoding="utf-8"))
    assert described["license"] == "MIT" and "identity-grpo" in described["source"]
    assert INSTRUCTION.count(REWARD_TOKEN) == 1


def test_the_reward_token_comes_last_in_the_vocabulary(case: Path) -> None:
    sequencer = Sequencer.load(case / "base_model", 2)
    assert sequencer.reward_token == sequencer.vocabulary - 1


def test_positions_follow_time_height_and_width(reward: IdentityReward) -> None:
    sequence = reward.collator.sequencer.build([(1, 2, 4)], (2, 4, 2), 1.65)
    ids, positions = sequence.ids, sequence.positions
    image = positions[:, ids == reward.collator.sequencer.image_token]
    start = int(image[0, 0])
    assert (image - start).tolist() == [[0, 0], [0, 0], [0, 1]]
    clip = positions[:, ids == reward.collator.sequencer.video_token]
    start = int(clip[0, 0])
    assert (clip - start).tolist() == [[0, 0, 3, 3], [0, 1, 0, 1], [0, 0, 0, 0]]
    after = positions[:, int((ids == reward.collator.sequencer.video_token).nonzero().max()) + 1]
    assert after.tolist() == [start + 4] * 3
    assert ids[sequence.reward_index] == reward.collator.sequencer.reward_token


def test_a_foreign_tokenizer_is_refused(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models

    Tokenizer(models.BPE()).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UserError, match="lacks .*give a Qwen2.5-VL"):
        Sequencer.load(tmp_path, 2)


def test_a_base_without_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="tokenizer.json is missing"):
        Sequencer.load(tmp_path, 2)
