"""What a run trains on: the identity reward, and the others to which its configuration gives a weight."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..config import TrainConfig
from ..errors import UserError
from ..faces.items import ItemReports
from ..faces.report import FaceReport
from ..faces.users import load_recogniser
from ..prompts import PromptItem
from .alignment import TextAlignment, find_clip
from .folder import find_reward
from .identity import IdentityReward
from .motion import motion_left
from .scoring import score_videos


class Rewards:
    """Scores videos by every reward of a run.

    `names`, `weights`: of the rewards in the order of the scores; the identity reward is the first, whatever its weight
    is. `needs_motion`: whether `score` needs the motion of the base policy's videos.
    """

    def __init__(
        self,
        config: TrainConfig,
        identity: IdentityReward,
        items: Sequence[PromptItem],
        device: torch.device,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """Load the rewards beside `identity`. `items`: those of which videos will be scored; `check` may raise.

        Raises UserError for missing or broken files, and for a reference image without a face where faces count.
        """
        self.config, self.identity = config, identity
        weights = config.rewards.weights
        self.names = tuple(name for name, weight in weights.items() if weight or name == "identity")
        self.weights = tuple(weights[name] for name in self.names)
        self.needs_motion = "motion" in self.names
        self._alignment = TextAlignment.load(config.rewards.alignment, device) if "alignment" in self.names else None
        self._reports = None
        if _sees_faces(config):
            recogniser = load_recogniser(config.faces.detector, config.rewards.faces.embedder)
            self._reports = ItemReports.find(items, config.reward.fps, device, recogniser, check)

    def score(self, videos: Sequence[Tensor], items: Sequence[PromptItem], base_motion: Sequence[float] = ()) -> Tensor:
        """Scores float64 [n, rewards] on the CPU of n videos uint8 [F, H, W, 3].

        `base_motion`: `motion_energy` of the base policy's video of each item, where it is needed. Raises UserError
        naming the item whose identity reward is not finite.
        """
        found = {"identity": score_videos(self.identity, videos, items, self.config.reward)}
        if self.needs_motion:
            found["motion"] = motion_left(videos, base_motion, self.config.rewards.motion.enough)
        if self._reports:
            reports = self._reports(videos, items)
            found["faces"] = [report.headline or 0.0 for report in reports]
            found["copy_paste"] = [1 - _copied(report) for report in reports]
        if self._alignment:
            found["alignment"] = self._alignment(videos, [item.prompt for item in items])
        return torch.stack([torch.as_tensor(found[name], dtype=torch.float64) for name in self.names], 1)


def find_rewards(config: TrainConfig) -> None:
    """Raises UserError for a reward that cannot be computed, before anything is loaded."""
    find_reward(config.reward)
    if config.rewards.alignment.weight:
        find_clip(config.rewards.alignment)
    load_recogniser(config.faces.detector, config.faces.embedder)
    trained, judge = config.rewards.faces.embedder, config.faces.embedder
    if config.rewards.faces.weight and trained:
        load_recogniser(None, trained)
        if judge and os.path.samefile(trained, judge):
            raise UserError(
                f"rewards.faces.embedder {trained} and faces.embedder {judge} are one file, so the trained embedder "
                "would judge; give another one to either"
            )


def _sees_faces(config: TrainConfig) -> bool:
    return bool(config.rewards.faces.weight or config.rewards.copy_paste.weight)


def _copied(report: FaceReport) -> float:
    """Mean over the people of the share of their frames that copy the reference image."""
    return sum(person.pasted or 0.0 for person in report.people) / len(report.people)
