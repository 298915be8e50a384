"""A tiny base model of the reward's real class, and processes that train or compute together."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from trainers.tinyworld.making.reward_base import build_reward_base

from .grpo.small_run import Forge


@pytest.fixture(scope="session")
def base_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_reward_base(
        tmp_path_factory.mktemp("base") / "base_model",
        vision_width=32,
        vision_depth=2,
        vision_heads=2,
        vision_intermediate=48,
        width=32,
        depth=2,
        heads=2,
        key_value_heads=1,
        intermediate=48,
    )


@pytest.fixture(scope="module")
def small_clips() -> Iterator[None]:
    """Clips are not enlarged to the released model's 128 tokens a frame: for tests of training rewards."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trainers.rewards.pixels.VIDEO_MIN_PIXELS", 28 * 28)
        yield


@pytest.fixture(scope="session")
def forge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forge]:
    if os.name != "posix":
        pytest.skip("processes are forked")
    forge = Forge(tmp_path_factory.mktemp("forge"))
    yield forge
    forge.close()
