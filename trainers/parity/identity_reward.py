"""Recompute a golden case of the identity reward."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from ..errors import UserError
from ..preference.loss import btt_loss
from ..rewards.geometry import frame_indices, seconds_per_step
from ..rewards.identity import IdentityReward
from ..rewards.model import Batch
from .checks import Check, compare

GREY_LEVEL = 1.01 / 255 / 0.26130258
"""One grey level after normalisation: the tolerance for another implementation of the resize."""


def load_frames(case: Path, item: dict[str, Any]) -> np.ndarray:
    """The item's clip uint8 [T, H, W, 3], rebuilt from its compact form. Raises UserError if its digest differs."""
    stored = load_file(case / item["video"])
    small, tile = stored["frames_small"].numpy(), stored["tile"].numpy()
    rows, columns = np.arange(item["height"]), np.arange(item["width"])
    scale = item["upsample"]
    frames = small[:, rows // scale][:, :, columns // scale]
    frames = frames + tile[rows[:, None] % tile.shape[0], columns % tile.shape[1]]
    if hashlib.sha256(frames.tobytes()).hexdigest() != item["frames_sha256"]:
        raise UserError(f"{case / item['video']} does not give the frames that items.json states; copy the case again")
    return frames


@dataclass(frozen=True)
class Item:
    """An item of the case, and our batch of it; `identical` when the batch's pixels equal the case's bit by bit."""

    name: str
    stated: dict[str, Any]
    tensors: dict[str, Tensor]
    clip: np.ndarray
    references: list[Path]
    fps: float
    batch: Batch
    identical: bool

    @classmethod
    def read(cls, case: Path, item: dict[str, Any], reward: IdentityReward) -> Item:
        clip, references = load_frames(case, item), [case / name for name in item["references"]]
        batch = reward.collator.collate([clip], [references], item["video_fps"])
        stated = item["expected"]
        digests = [
            hashlib.sha256(rows.contiguous().numpy().tobytes()).hexdigest()
            for rows in (batch.image_rows, batch.video_rows)
        ]
        identical = digests == [stated[key]["sha256"] for key in ("pixel_values", "pixel_values_videos")]
        tensors = load_file(case / "expected" / f"item{item['index']}.safetensors")
        return cls(f"item {item['index']}", stated, tensors, clip, references, item["video_fps"], batch, identical)

    @property
    def tolerance(self) -> float:
        """For embeddings and scores, as the case's README suggests."""
        return 2e-5 if self.identical else 2e-3


def verify_case(path: Path | str) -> list[Check]:
    """Checks of every expected quantity, computed on the CPU in float32.

    Tolerances are those of the case's README: exact for indices, sizes, ids and positions, 2e-5 for embeddings and
    scores where the pixels are bit-identical, 2e-3 where the resize differs by a grey level.
    """
    case = Path(path)
    reward = IdentityReward.load(case / "identity_reward")
    described = json.loads((case / "items.json").read_text(encoding="utf-8"))["items"]
    items = [Item.read(case, item, reward) for item in described]
    checks = [c for item in items for c in (*_check_inputs(item, reward), *_check_outputs(item, reward))]
    together = reward.score(
        [i.clip for i in items], [i.references for i in items], [i.fps for i in items], batch_size=len(items)
    )
    for item, score in zip(items, together.tolist(), strict=True):
        checks.append(
            compare(f"{item.name} score in a batch of all", score, item.stated["score_in_batch_of_all"], item.tolerance)
        )
    return checks + list(_check_loss(load_file(case / "btt.safetensors")))


def _check_inputs(item: Item, reward: IdentityReward) -> Iterator[Check]:
    name, stated, tensors, batch = item.name, item.stated, item.tensors, item.batch
    frames = reward.collator.frames
    yield compare(f"{name} frame indices", frame_indices(len(item.clip), frames), stated["frame_indices"], kind="exact")
    seconds = seconds_per_step(len(item.clip), item.fps, frames)
    yield compare(f"{name} seconds per step", [seconds], stated["second_per_grid_ts"], 1e-6, "relative")
    yield compare(f"{name} reference grids", batch.image_grids, tensors["image_grid_thw"], kind="exact")
    yield compare(f"{name} clip grid", batch.video_grids, tensors["video_grid_thw"], kind="exact")
    yield compare(f"{name} token ids", batch.ids[0], tensors["input_ids"], kind="exact")
    yield compare(f"{name} positions", batch.positions[:, 0], tensors["position_ids"], kind="exact")
    yield compare(f"{name} reward token", batch.reward_index, [stated["reward_token_position"]], kind="exact")
    for key, rows in (("pixel_values", batch.image_rows), ("pixel_values_videos", batch.video_rows)):
        expected = torch.cat([tensors[f"{key}_first_rows"], tensors[f"{key}_last_rows"]])
        yield compare(
            f"{name} {key} rows", torch.cat([rows[:4], rows[-4:]]), expected, 1e-6 if item.identical else GREY_LEVEL
        )
        yield compare(
            f"{name} {key} row means", rows.mean(1), tensors[f"{key}_row_mean"], 1e-6 if item.identical else 1e-3
        )


@torch.no_grad()
def _check_outputs(item: Item, reward: IdentityReward) -> Iterator[Check]:
    name, batch, model = item.name, item.batch, reward.model
    images = model.embed_pictures(batch.image_rows, batch.image_grids)
    yield compare(f"{name} reference embeddings", images, item.tensors["image_embeds"], item.tolerance)
    clip = model.embed_pictures(batch.video_rows, batch.video_grids)
    yield compare(f"{name} clip embeddings", clip, item.tensors["video_embeds"], item.tolerance)
    # The README gives no tolerance for the hidden state, whose entries are of order 1 with the rounding of every layer.
    yield compare(f"{name} hidden state", model.hidden(batch)[0], item.tensors["reward_hidden"], 2.5 * item.tolerance)
    score = reward.score([item.clip], [item.references], item.fps)[0]
    yield compare(f"{name} score", score, item.stated["score"], item.tolerance)


def _check_loss(case: dict[str, Tensor]) -> Iterator[Check]:
    a, b = case["reward_a"].requires_grad_(), case["reward_b"].requires_grad_()
    mean, per_pair = btt_loss(a, b, case["labels"])
    mean.backward()
    yield compare("btt loss per pair", per_pair, case["loss_per_pair"], 5e-6)
    yield compare("btt loss mean", mean, case["loss_mean"], 2e-6)
    yield compare("btt gradient A", a.grad, case["grad_reward_a"], 2e-6)
    yield compare("btt gradient B", b.grad, case["grad_reward_b"], 2e-6)
