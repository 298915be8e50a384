"""What passes between the pack's nodes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Generic, TypeVar

from comfy_api.latest import io

if TYPE_CHECKING:
    from ..trainers.config import PolicyConfig, PolicyKind, RewardConfig
    from ..trainers.policies.base import Policy
    from ..trainers.rewards.identity import IdentityReward
    from .folders import LoraFile
    from .memory import Managed

T = TypeVar("T")

WanPolicyType = io.Custom("WAN_POLICY")  # a LazyPolicy
RewardType = io.Custom("IDENTITY_REWARD")  # a LazyReward
PromptSetType = io.Custom("PROMPT_SET")  # a trainers.prompts.PromptSet
FaceNetworksType = io.Custom("FACE_NETWORKS")  # a FaceFiles
TrainingRunType = io.Custom("TRAINING_RUN")  # a trainers.runs.folder.RunFolder

POLICY_TITLES = {"vace": "VACE", "phantom": "Phantom"}  # names of the kinds of policy


class OnUse(Generic[T]):
    """A value that `make` returns at its first use; after an error it is made again at the next."""

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make

    @cached_property
    def value(self) -> T:
        return self._make()


@dataclass(frozen=True)
class LazyPolicy:
    """A video model, loaded at its first use into ComfyUI's memory management; copies with other LoRAs share it.

    `config` names its files: a run is started from them without loading anything here. `loras`: what acts on it, each
    with its strength.
    """

    kind: PolicyKind
    config: PolicyConfig
    model: OnUse[tuple[Policy, Managed]]
    loras: tuple[tuple[LoraFile, float], ...] = ()

    @property
    def policy(self) -> Policy:
        return self.model.value[0]

    @property
    def managed(self) -> Managed:
        return self.model.value[1]


@dataclass(frozen=True)
class LazyReward:
    """An identity reward, loaded at its first use into ComfyUI's memory management. `config` names its files.

    `run_settings`: sections of a run's configuration that go with it, where other rewards are combined with it.
    """

    config: RewardConfig
    model: OnUse[tuple[IdentityReward, Managed]]
    run_settings: dict = field(default_factory=dict)

    @property
    def reward(self) -> IdentityReward:
        return self.model.value[0]

    @property
    def managed(self) -> Managed:
        return self.model.value[1]


@dataclass(frozen=True)
class FaceFiles:
    """ONNX files of a user's own face detector and embedder; None: those of this pack."""

    detector: str | None = None
    embedder: str | None = None
