"""The models to be measured: TinyWorld's own, or those of a published size with random weights.

Random weights are made on the device in the type they are used in: no file is read, and there is no float32 copy.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn

from ..config import PolicyKind, TrainConfig
from ..grpo.lockstep import Lockstep
from ..grpo.prepare import prepare
from ..grpo.ranks import Ranks
from ..memory.plan import require_sharding
from ..memory.shards import shard_blocks
from ..policies.blocks import running_blocks
from ..policies.fp8 import add_fp8, block_layers, quantise
from ..policies.load import POLICIES, TEXT_LENGTH, LazyTextEncoder, policy_of
from ..policies.stored import StoredLinear
from ..policies.transformer_file import CLASSES
from ..policies.wan import WanVideoPolicy
from ..rewards.collator import Collator
from ..rewards.identity import IdentityReward
from ..rewards.load import load_reward
from ..rewards.model import RewardModel
from ..rewards.sequence import HEAD, IMAGE, REWARD_TOKEN, TAIL, VIDEO, Sequencer
from ..tinyworld.models import build_tokenizer
from .sizes import REWARD, TEXT_ENCODER, Size, transformer_config, vae_config


def make_policy(
    size: Size, kind: PolicyKind, config: TrainConfig, device: torch.device, ranks: Ranks | None = None
) -> WanVideoPolicy:
    """The policy with a LoRA to be trained, as a run of `config` prepares it, in one or several processes.

    Of the memory plans only `sharded` is followed: else the transformer is on the device as a whole.
    """
    policy = policy_of(config.policy, device) if size == "tiny" else _random_policy(size, kind, config, device)
    prepare(policy, config, context=ranks and ranks.context)
    transformer = policy.transformer
    if config.memory.plan == "sharded":
        require_sharding(config, ranks.count if ranks else 1)
        shard_blocks(transformer, running_blocks(transformer), device)
    if ranks and ranks.count > 1:
        ranks.lockstep = Lockstep(transformer)
    return policy


def make_reward(size: Size, config: TrainConfig, device: torch.device) -> IdentityReward:
    """The identity reward: TinyWorld's, or one of Qwen2.5-VL-3B's size with sdpa attention."""
    if size == "tiny":
        return load_reward(config.reward, device)
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    def build() -> nn.Module:
        return Qwen2_5_VLForConditionalGeneration._from_config(Qwen2_5_VLConfig(**REWARD), attn_implementation="sdpa")

    model = _without_weights(build)
    inner = model.model
    # Versions of transformers differ in where these lie.
    visual = inner.visual if hasattr(inner, "visual") else model.visual
    language = getattr(inner, "language_model", inner)
    dtype = getattr(torch, config.reward.dtype)
    for part in (visual, language):
        fill_randomly(part, dtype, device)
    sequencer = Sequencer(_reward_tokenizer(), REWARD["vision_config"]["tokens_per_second"])
    reward = RewardModel(visual, language, sequencer.image_token, sequencer.video_token)
    return IdentityReward(reward.requires_grad_(False).to(device), Collator(sequencer))


@torch.no_grad()
def fill_randomly(model: nn.Module, dtype: torch.dtype, device: torch.device) -> nn.Module:
    """Give the weightless model random weights on `device`, frozen, in evaluation mode; returns it.

    Matrices and kernels are normal with variance 1 / inputs, norms 1, biases 0, so that activations stay finite at any
    depth. What the class keeps in float32 is float32, the rest `dtype`.
    """
    generator = torch.Generator(device).manual_seed(0)
    wide = set(getattr(model, "_keep_in_fp32_modules", None) or ())
    for name, module in model.named_modules():
        for own, empty in list(module.named_parameters(recurse=False)):
            kind = torch.float32 if wide & {*name.split("."), own} else dtype
            weight = torch.empty(empty.shape, dtype=kind, device=device)
            if weight.numel() == max(weight.shape, default=1):
                weight.fill_(0.0 if own == "bias" else 1.0)
            else:
                inputs = weight.shape[-1] if weight.ndim < 3 else math.prod(weight.shape[1:])
                weight.normal_(std=inputs**-0.5, generator=generator)
            setattr(module, own, nn.Parameter(weight, requires_grad=False))
        for own, buffer in module.named_buffers(recurse=False):
            module.register_buffer(own, buffer.to(device), own not in module._non_persistent_buffers_set)
    return model.eval()


def random_transformer(size: Size, kind: PolicyKind, dtype: torch.dtype, device: torch.device) -> nn.Module:
    """A transformer of diffusers with random weights, without a LoRA."""
    import diffusers

    name = next(name for name, its_kind in CLASSES.items() if its_kind == kind)
    model = _without_weights(lambda: getattr(diffusers, name)(**transformer_config(size, kind)))
    return fill_randomly(model, dtype, device)


def random_vae(size: Size, device: torch.device) -> nn.Module:
    """Wan's VAE in float32 with random weights."""
    from diffusers import AutoencoderKLWan

    return fill_randomly(_without_weights(lambda: AutoencoderKLWan(**vae_config(size))), torch.float32, device)


def _random_policy(size: Size, kind: PolicyKind, config: TrainConfig, device: torch.device) -> WanVideoPolicy:
    from transformers import UMT5Config, UMT5EncoderModel

    dtype = getattr(torch, config.policy.dtype)

    def make_encoder() -> nn.Module:
        encoder = _without_weights(lambda: UMT5EncoderModel(UMT5Config(**TEXT_ENCODER)))
        # One tensor, as in the loaded model.
        encoder.encoder.embed_tokens = encoder.shared
        return fill_randomly(encoder, dtype, device)

    transformer = random_transformer(size, kind, dtype, device)
    if config.policy.weights == "stored":
        _store_in_fp8(transformer)
    if config.policy.fp8:
        add_fp8(transformer)
    return POLICIES[kind](
        transformer,
        random_vae(size, device),
        LazyTextEncoder(make_encoder),
        build_tokenizer(["two people wave"]),
        TEXT_LENGTH,
    )


@torch.no_grad()
def _store_in_fp8(transformer: nn.Module) -> None:
    """Keep the layers of its blocks in FP8 with a scale for every row, as those of a file in FP8 are kept."""
    for name, linear in block_layers(transformer):
        weight, scale = quantise(linear.weight)
        layer = StoredLinear(linear, weight, scale)
        layer.weight, layer.scale = nn.Parameter(weight, requires_grad=False), scale
        transformer.set_submodule(name, layer)


def _without_weights(build: Callable[[], nn.Module]) -> nn.Module:
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False):
        return build()


def _reward_tokenizer():
    """A tokenizer with the special tokens of Qwen2.5-VL that makes one token of each word of the instruction."""
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

    splitter = pre_tokenizers.Whitespace()
    words = sorted({word for word, _ in splitter.pre_tokenize_str(HEAD + TAIL)})
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0} | {w: i for i, w in enumerate(words, 1)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = splitter
    special = ["<|im_start|>", "<|im_end|>", "<|endoftext|>", *IMAGE, VIDEO[1], REWARD_TOKEN]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    return tokenizer
