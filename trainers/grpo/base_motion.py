"""How much the base policy moves, as the measure of what the trained policy has left of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch

from ..config import TrainConfig
from ..diffusion.noise import derive_seed
from ..diffusion.sampling import decode_videos, sample_latents
from ..lora.inject import lora_disabled
from ..memory.placement import TRANSFORMER, VAE, Placement
from ..policies.base import Guidance, Policy, VideoSize
from ..prompts import PromptItem
from ..rewards.motion import motion_energy


class BaseMotion:
    """The `motion_energy` of a video of the base policy (the LoRA off) of each item, sampled when it is first needed.

    The video depends on the run's seed and the item alone, and is sampled by itself: it is the same in every process,
    with any micro-batch, before and after a resume.
    """

    def __init__(
        self,
        policy: Policy,
        items: Sequence[PromptItem],
        config: TrainConfig,
        guidance: Guidance,
        placement: Placement,
        check: Callable[[], None],
    ) -> None:
        self.policy, self.items, self.config, self.guidance = policy, items, config, guidance
        self.placement, self.check = placement, check
        self._energies: dict[int, float] = {}

    def require(self, places: Iterable[int]) -> None:
        """Sample the videos of those items (by their places in the set) that are not known yet."""
        unknown = sorted(set(places) - self._energies.keys())
        if not unknown:
            return
        config, video = self.config, self.config.video
        size = VideoSize(video.height, video.width, video.frames)
        conditions = [self.policy.encode(self.items[place], size) for place in unknown]
        seeds = [derive_seed(config.seed, "base motion", self.items[place].id) for place in unknown]

        def sample(_: Iterable) -> Iterator[tuple[list[int], torch.Tensor, int]]:
            rollout = config.rollout
            found = sample_latents(
                self.policy, conditions, size, rollout.steps, rollout.shift, self.guidance, seeds, 1, self.check
            )
            return ((chunk, latents.cpu(), references) for chunk, latents, references in found)

        with lora_disabled(self.policy.transformer):
            videos = self.placement.pipeline(
                "base motion: videos",
                ("base motion: sample", TRANSFORMER, sample),
                ("base motion: decode", VAE, lambda sampled: decode_videos(self.policy, sampled)),
            )
        self._energies |= {unknown[index]: motion_energy(found) for index, found in videos}

    def __getitem__(self, place: int) -> float:
        """Of an item that `require` was called for."""
        return self._energies[place]
