"""The frozen LoRAs that are part of a policy, such as a distilled LoRA that it is sampled with."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from torch import nn

from ..config import PolicyConfig, PolicyKind
from ..errors import UserError
from ..files import sha256_of
from ..lora.formats import LoRA, read_lora, read_lora_header
from ..lora.several import merge_loras


def read_frozen(config: PolicyConfig) -> list[tuple[LoRA, float]]:
    """The LoRAs in `policy.loras` with their strengths. Raises UserError for one that cannot be read."""
    return [(read_lora(file), strength) for file, strength in config.frozen_loras]


def merge_frozen(transformer: nn.Module, config: PolicyConfig) -> None:
    """Make the LoRAs in `policy.loras` part of the transformer's weights. Raises UserError for one that does not fit.

    What has a probability and what the KL compares with are then the policy with them, and layers stay as they are.
    """
    merge_loras(transformer, read_frozen(config))


def check_frozen(config: PolicyConfig, kind: PolicyKind) -> None:
    """Raises UserError for a LoRA in `policy.loras` that is not one for this kind of policy, by its header."""
    for file, _ in config.frozen_loras:
        made_for = read_lora_header(file).metadata.get("policy")
        if made_for not in (None, kind):
            raise UserError(
                f"policy.loras: {file} was trained for {made_for}, and the policy is a {kind} model; give one for it"
            )


def describe_frozen(config: PolicyConfig) -> list[dict[str, str | float]]:
    """`file` (its name), `strength` and `sha256` of every LoRA in `policy.loras`."""
    found = []
    for file, strength in config.frozen_loras:
        path = read_lora_header(file).path
        found.append({"file": Path(file).name, "strength": strength, "sha256": sha256_of(path)})
    return found


def policy_name(kind: PolicyKind, config: PolicyConfig) -> str:
    """The policy that a checkpoint belongs to: its kind, and the content and strengths of its frozen LoRAs."""
    frozen = describe_frozen(config)
    if not frozen:
        return kind
    digest = hashlib.sha256(json.dumps([(one["sha256"], one["strength"]) for one in frozen]).encode()).hexdigest()
    names = ", ".join(f"{one['file']}:{one['strength']:g}" for one in frozen)
    return f"{kind} with {names} ({digest[:16]})"
