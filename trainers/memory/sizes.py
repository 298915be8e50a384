"""How large the parts of a run are, read from the headers of their files; no weights are loaded."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..config import PolicyKind, TrainConfig
from ..errors import UserError
from ..modelfiles.weights import open_weights
from ..policies.parts import find_parts
from ..policies.transformer_file import describe_transformer
from ..rewards.alignment import find_clip
from ..rewards.folder import find_reward

REMEDY = "download it again"
ITEM_SIZE = {"float32": 4, "bfloat16": 2}
TEXT_BLOCK = re.compile(r"(?:^|\.)(?:blocks?|blk)\.\d+\.")
FIRST_CONVOLUTION = re.compile(r"encoder\.(conv1|conv_in)\.weight$")
GATE = re.compile(r"(visual\.)?(?:layers|blocks)\.0\.mlp\.gate_proj\.weight$")
QWEN = {False: (11008, 2048), True: (3420, 1280)}
"""Shapes of the feed-forward of Qwen2.5-VL-3B's language model (False) and vision tower (True)."""
ADAPTED = 8  # attention projections of a block that get a LoRA
KEPT_OF_LORA = 5  # the LoRA in float32, its gradient, AdamW's two averages, the moving average


@dataclass(frozen=True)
class Sizes:
    """Bytes of each part on a device, and what the working memory depends on.

    `transformer_blocks`, `text_blocks`: bytes of all blocks that can be swapped, `largest_block` and
    `largest_text_block` of one. `lora`: with gradient, optimiser and average. Of the transformer: `width` of the hidden
    states, `blocks`, `control_blocks`, `patch` of its tokens, `item` bytes of a number. `vae_width`: channels of the
    VAE's first layer. `reward_token`, `reward_patch`: working memory of scoring per token and per patch. `rewards`: of
    the models of other rewards than the identity reward, which stay on the device.
    """

    kind: PolicyKind
    transformer: int
    transformer_blocks: int
    largest_block: int
    lora: int
    text_encoder: int
    text_blocks: int
    largest_text_block: int
    vae: int
    reward: int
    reward_token: int
    reward_patch: int
    width: int
    blocks: int
    control_blocks: int
    patch: tuple[int, ...]
    item: int
    vae_width: int
    rewards: int = 0


def read_sizes(config: TrainConfig) -> Sizes:
    """The sizes of a run's models. Raises UserError when a file is missing or cannot be read."""
    policy = config.policy
    parts = find_parts(policy.source, policy.text_encoder, policy.vae, policy.vace_module)
    found, item = describe_transformer(parts.transformer, parts.vace_module), ITEM_SIZE[policy.dtype]
    width, ffn = found.width, found.config["ffn_dim"]
    blocks, controls = found.config["num_layers"], len(found.config.get("vace_layers", ()))
    # Two attentions of four projections and a feed-forward; a control block has one or two projections more.
    # Those that stay as stored have one byte. With FP8 products others have a second copy, of one byte a number.
    linear = (blocks + controls) * (8 * width**2 + 2 * width * ffn)
    stored = found.stored if policy.weights == "stored" else 0
    share = min(1.0, stored / linear)
    products = share + (1 - share) * (item + policy.fp8)
    block = int((8 * width**2 + 2 * width * ffn) * products)
    control = block + width**2 * item
    text = _shapes(parts.text_encoder, "the text encoder")
    layers: dict[str, int] = {}
    for key, shape in text.items():
        if layer := TEXT_BLOCK.search(key):
            layers[layer[0]] = layers.get(layer[0], 0) + math.prod(shape) * item
    vae = _shapes(parts.vae, "the VAE")
    reward, token, patch = _reward_bytes(find_reward(config.reward)[1], ITEM_SIZE[config.reward.dtype])
    return Sizes(
        found.kind,
        found.parameters * item + int(linear * (1 - share)) * policy.fp8 - stored * (item - 1),
        blocks * block + controls * control,
        (control if controls else block) + width**2 * item * bool(controls),
        ADAPTED * (blocks + controls) * 2 * width * config.lora.rank * 4 * KEPT_OF_LORA,
        _numbers(text) * item,
        sum(layers.values()),
        max(layers.values(), default=0),
        _numbers(vae) * 4,
        reward,
        token,
        patch,
        width,
        blocks,
        controls,
        tuple(found.config["patch_size"]),
        item,
        next((shape[0] for key, shape in vae.items() if FIRST_CONVOLUTION.search(key)), 96),
        _other_rewards(config),
    )


def _other_rewards(config: TrainConfig) -> int:
    """A CLIP model is float32."""
    alignment = config.rewards.alignment
    return _numbers(_shapes(find_clip(alignment), "the CLIP model")) * 4 if alignment.weight else 0


def _reward_bytes(base: Path, item: int) -> tuple[int, int, int]:
    """Of the base model without its head for text, of a token in one of its layers, and of a patch of a picture.

    A token needs its three feed-forward states and eight of the width, a patch three and twenty.
    """
    try:
        shapes = _shapes(base, "the base model", lambda key: not key.startswith("lm_head"))
    except UserError:
        # transformers also reads other formats, whose headers are not read here: then it is taken for Qwen2.5-VL-3B.
        return sum(path.stat().st_size for path in base.glob("*.bin")), *_working(QWEN, item)
    gates = {bool(GATE.search(key)[1]): shape for key, shape in shapes.items() if GATE.search(key)}
    return _numbers(shapes) * item, *_working({**QWEN, **gates}, item)


def _working(gates: dict[bool, tuple[int, ...]], item: int) -> tuple[int, int]:
    (inner, width), (patch_inner, patch_width) = gates[False], gates[True]
    return (3 * inner + 8 * width) * item, (3 * patch_inner + 20 * patch_width) * item


def _shapes(place: Path, kind: str, wanted: Callable[[str], bool] = lambda key: True) -> dict[str, tuple[int, ...]]:
    with open_weights(place, kind, REMEDY) as weights:
        return {key: weights.shape(key) for key in weights.keys if wanted(key)}


def _numbers(shapes: dict[str, tuple[int, ...]]) -> int:
    return sum(math.prod(shape) for shape in shapes.values())
