"""The models of a run on their device: loaded one after the other, so that no two large ones meet there by chance."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from ..config import TrainConfig
from ..memory.blocks import BlockSwap
from ..memory.placement import REWARD, TRANSFORMER, VAE, Placement, move_rest
from ..memory.plan import GIB, MemoryPlan, Workload, choose, require_sharding
from ..memory.sizes import read_sizes
from ..policies.base import Policy, VideoSize
from ..policies.blocks import running_blocks
from ..policies.encodings import prune
from ..policies.load import load_policy_in_parts
from ..prompts import PromptItem
from ..rewards.identity import IdentityReward
from ..rewards.load import load_reward


@dataclass(frozen=True)
class Models:
    """The policy with its LoRA and the reward, under `placement`."""

    policy: Policy
    reward: IdentityReward
    placement: Placement


def plan_memory(
    config: TrainConfig,
    device: torch.device,
    references: int,
    processes: int = 1,
    least: Callable[[int], int] = lambda available: available,
) -> MemoryPlan:
    """The plan for this device as it is now, before anything is loaded; `references`: the most that an item has.

    `processes`: of the run; `least` makes of the memory available here the least that one of them has. Without CUDA
    nothing is estimated, and `auto` keeps all models where they are. Raises UserError when no plan fits, or not the one
    that is asked for.
    """
    if device.type != "cuda":
        name = "resident" if config.memory.plan == "auto" else config.memory.plan
        if name == "sharded":
            require_sharding(config, processes)
        return MemoryPlan(name, recompute_all=name == "block_swap")
    work = Workload(config, read_sizes(config), references, processes)
    return choose(work, least(available_bytes(config, device)))


def available_bytes(config: TrainConfig, device: torch.device) -> int:
    """GPU memory that a run may use: `memory.limit`, else what is free."""
    if config.memory.limit is not None:
        return int(config.memory.limit * GIB)
    return torch.cuda.mem_get_info(device)[0]


def load_models(
    config: TrainConfig,
    device: torch.device,
    encodings: Path,
    plan: MemoryPlan,
    adapt: Callable[[Policy, TrainConfig], None],
    encode: Callable[[Policy, Placement], None],
    reward_device: torch.device | None = None,
) -> Models:
    """Load what `config` names. `adapt` makes the policy ready for its work (with its LoRA), by the settings it gets.

    `encode` encodes all items (see `encode_items`), before the reward is loaded and the transformer is moved; encoded
    texts and references are kept in the folder `encodings`. `reward_device`: that the reward has to itself. With
    `memory.limit` PyTorch enforces the limit. Raises UserError for missing or broken files.
    """
    if device.type == "cuda" and config.memory.limit is not None:
        index = torch.cuda.current_device() if device.index is None else device.index
        total = torch.cuda.get_device_properties(index).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, config.memory.limit * GIB / total), index)

    def place_text_encoder(encoder: nn.Module) -> nn.Module:
        if not plan.swap_text:
            return encoder.to(device)
        blocks = list(encoder.encoder.block)
        BlockSwap(blocks, device)
        move_rest(encoder, blocks, device)
        return encoder

    placement = Placement(plan, device)
    policy = load_policy_in_parts(config.policy, encodings, device, place_text_encoder)
    policy.vae.pixels = plan.vae_pixels
    encode(policy, placement)
    reward = load_reward(config.reward, reward_device or device)
    if reward_device is None:
        placement.add(REWARD, reward.model)
    else:
        placement.add_own(REWARD, reward_device)
    if plan.recompute_all:
        config = config.model_copy(update={"optim": config.optim.model_copy(update={"gradient_checkpointing": 1.0})})
    adapt(policy, config)
    placement.add(TRANSFORMER, policy.transformer, running_blocks(policy.transformer))
    return Models(policy, reward, placement)


def encode_items(
    policy: Policy,
    placement: Placement,
    wanted: Sequence[tuple[Sequence[PromptItem], VideoSize]],
    encodings: Path,
    check: Callable[[], None] = lambda: None,
    report: Callable[[float], None] = lambda done: None,
) -> None:
    """Encode all texts and references, each set of items for videos of a size, unless an earlier run has.

    The text encoder is loaded only for texts that are not known, and freed after. `check` is called before every item
    and may raise to stop; `report` gets the fraction that is done. Raises UserError for a reference that cannot be
    read.
    """
    items = [(item, size) for some, size in wanted for item in some]
    texts = list(dict.fromkeys(text for item, _ in items for text in (item.prompt, item.negative)))
    unknown = [text for text in texts if not policy.text.knows([text])]
    steps = len(unknown) + len(items)
    with placement.phase("encode texts"):
        for number, text in enumerate(unknown):
            check()
            policy.text.encode([text])
            report((number + 1) / steps)
    policy.text.encoder.release()
    gc.collect()
    placement.add(VAE, policy.vae.model)
    with placement.phase("encode references", VAE):
        for number, (item, size) in enumerate(items):
            check()
            policy.encode(item, size)
            report((len(unknown) + number + 1) / steps)
    prune(encodings)
