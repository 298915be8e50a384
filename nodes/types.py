"""What passes between the pack's nodes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from comfy_api.latest import io

if TYPE_CHECKING:
    from ..trainers.config import PolicyConfig, RewardConfig
    from ..trainers.policies.base import Policy
    from ..trainers.rewards.identity import IdentityReward
    from .folders import LoraFile
    from .memory import Managed

WanPolicy = io.Custom("WAN_POLICY")  # a LoadedPolicy
Reward = io.Custom("IDENTITY_REWARD")  # a LoadedReward
PromptSet = io.Custom("PROMPT_SET")  # a trainers.prompts.PromptSet
TrainingRun = io.Custom("TRAINING_RUN")  # a trainers.runs.folder.RunFolder

KINDS = {"vace": "VACE", "phantom": "Phantom"}  # how a policy's kind is written


@dataclass(frozen=True)
class LoadedPolicy:
    """A video model in ComfyUI's memory management; copies with another LoRA share the model.

    `config` says from which files it came, so that a run can be started on the same ones.
    """

    policy: Policy
    managed: Managed
    config: PolicyConfig
    lora: LoraFile | None = None
    strength: float = 1.0


@dataclass(frozen=True)
class LoadedReward:
    """An identity reward in ComfyUI's memory management, and the files it came from."""

    reward: IdentityReward
    managed: Managed
    config: RewardConfig
