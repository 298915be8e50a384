"""How large the parts of a run are, read from the headers of their files; no weights are loaded."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..config import PolicyKind, TrainConfig
from ..errors import UserError
from ..policies.load import describe_transformer, find_parts
from ..policies.weight_files import open_weights
from ..rewards.load import find_reward

REMEDY = "download it again"
ITEM_SIZE = {"float32": 4, "bfloat16": 2}
TEXT_BLOCK = re.compile(r"(?:^|\.)blocks?\.\d+\.")
FIRST_CONVOLUTION = re.compile(r"encoder\.(conv1|conv_in)\.weight$")
ADAPTED = 8  # attention projections of a block that get a LoRA
KEPT_OF_LORA = 5  # the LoRA in float32, its gradient, AdamW's two averages, the moving average


@dataclass(frozen=True)
class Sizes:
    """Bytes of each part on a device, and what the working memory depends on.

    `transformer_blocks`, `text_blocks`: bytes of all blocks that can be swapped, `largest_block` and
    `largest_text_block` of one. `lora`: with gradient, optimiser and average. Of the transformer: `width` of the hidden
    states, `blocks`, `control_blocks`, `patch` of its tokens, `item` bytes of a number. `vae_width`: channels of the
    VAE's first layer.
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
    width: int
    blocks: int
    control_blocks: int
    patch: tuple[int, ...]
    item: int
    vae_width: int


def read_sizes(config: TrainConfig) -> Sizes:
    """The sizes of a run's models. Raises UserError when a file is missing or cannot be read."""
    parts = find_parts(config.policy.source, config.policy.text_encoder, config.policy.vae)
    found, item = describe_transformer(parts.transformer), ITEM_SIZE[config.policy.dtype]
    width, ffn = found.width, found.config["ffn_dim"]
    blocks, controls = found.config["num_layers"], len(found.config.get("vace_layers", ()))
    # Two attentions of four projections and a feed-forward; a control block has one or two projections more.
    block = (8 * width**2 + 2 * width * ffn) * item
    control = block + width**2 * item
    text = _shapes(parts.text_encoder, "the text encoder")
    layers: dict[str, int] = {}
    for key, shape in text.items():
        if layer := TEXT_BLOCK.search(key):
            layers[layer[0]] = layers.get(layer[0], 0) + math.prod(shape) * item
    vae = _shapes(parts.vae, "the VAE")
    return Sizes(
        found.kind,
        found.parameters * item,
        blocks * block + controls * control,
        (control if controls else block) + width**2 * item * bool(controls),
        ADAPTED * (blocks + controls) * 2 * width * config.lora.rank * 4 * KEPT_OF_LORA,
        _numbers(text) * item,
        sum(layers.values()),
        max(layers.values(), default=0),
        _numbers(vae) * 4,
        _reward_bytes(find_reward(config.reward)[1], ITEM_SIZE[config.reward.dtype]),
        width,
        blocks,
        controls,
        tuple(found.config["patch_size"]),
        item,
        next((shape[0] for key, shape in vae.items() if FIRST_CONVOLUTION.search(key)), 96),
    )


def _reward_bytes(base: Path, item: int) -> int:
    """Of the base model, whose heads for text are not loaded."""
    try:
        return _numbers(_shapes(base, "the base model", lambda key: not key.startswith("lm_head"))) * item
    except UserError:
        # transformers also reads other formats, whose headers are not read here.
        return sum(path.stat().st_size for path in base.glob("*.bin"))


def _shapes(place: Path, kind: str, wanted: Callable[[str], bool] = lambda key: True) -> dict[str, tuple[int, ...]]:
    with open_weights(place, kind, REMEDY) as weights:
        return {key: weights.shape(key) for key in weights.keys if wanted(key)}


def _numbers(shapes: dict[str, tuple[int, ...]]) -> int:
    return sum(math.prod(shape) for shape in shapes.values())
