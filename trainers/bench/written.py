"""Random weights as files, in the layouts that `train` reads: for trials of whole runs without downloads."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from ..config import TINYWORLD_WEIGHTS, PolicyKind
from ..policies.load import TEXT_LENGTH
from ..policies.transformer_file import CLASSES
from ..rewards.names import PREFIX, released_name
from ..tinyworld.models import build_tokenizer
from .models import fill_randomly
from .sizes import REWARD, TEXT_ENCODER, Size, transformer_config

PROMPT = "two people wave"
PEOPLE, ROWS = 8, 48
RANK = 16  # of the reward's LoRA
MADE = "made.json"
"""Written last: a folder that has it is complete."""


@dataclass(frozen=True)
class Sizes:
    """Arguments of the classes: transformer, VAE, UMT5, Qwen2.5-VL."""

    kind: PolicyKind
    transformer: dict[str, Any]
    vae: dict[str, Any]
    text_encoder: dict[str, Any]
    reward: dict[str, Any]


def published(size: Size, kind: PolicyKind) -> Sizes:
    """Those of the published models, with UMT5-XXL and Qwen2.5-VL-3B."""
    return Sizes(kind, transformer_config(size, kind), {}, TEXT_ENCODER, REWARD)


def write_models(
    folder: Path, sizes: Sizes, device: torch.device, report: Callable[[str], None] = lambda text: None
) -> dict[str, Any]:
    """Write a policy, a reward and a prompt set below `folder`, made on `device`, in bfloat16 (VAE: float32).

    What is there completely is kept. Returns the settings of a run that name them; `report` gets a line per model.
    """
    made = folder / MADE
    policy, reward = folder / "policy", folder / "reward"
    if not made.is_file():
        for name, write in (
            ("transformer", lambda place: _write_transformer(place, sizes, device)),
            ("vae", lambda place: _write_vae(place, sizes, device)),
            ("text_encoder", lambda place: _write_text_encoder(place, sizes, device)),
        ):
            report(f"writing {name}")
            (policy / name).mkdir(parents=True, exist_ok=True)
            write(policy / name)
        tokenizer = build_tokenizer([PROMPT])
        tokenizer.model_max_length = TEXT_LENGTH
        tokenizer.save_pretrained(policy / "tokenizer")
        report("writing reward")
        _write_reward(reward, sizes.reward, device)
        _write_prompts(folder)
        if device.type == "cuda":
            torch.cuda.empty_cache()
        made.write_text(json.dumps({"kind": sizes.kind}) + "\n", encoding="utf-8")
    return {
        "policy": {"source": str(policy), "dtype": "bfloat16"},
        "reward": {
            "source": str(reward / "identity_reward"),
            "base_model": str(reward / "base_model"),
            "dtype": "bfloat16",
        },
        "prompts": str(folder / "prompts.csv"),
        "held_out": 2,
    }


def _write_transformer(folder: Path, sizes: Sizes, device: torch.device) -> None:
    import diffusers

    name = next(name for name, kind in CLASSES.items() if kind == sizes.kind)
    model = _random(lambda: getattr(diffusers, name)(**sizes.transformer), torch.bfloat16, device)
    model.save_config(folder)
    save_file(_state(model), folder / "diffusion_pytorch_model.safetensors")


def _write_vae(folder: Path, sizes: Sizes, device: torch.device) -> None:
    from diffusers import AutoencoderKLWan

    model = _random(lambda: AutoencoderKLWan(**sizes.vae), torch.float32, device)
    model.save_config(folder)
    save_file(_state(model), folder / "diffusion_pytorch_model.safetensors")


def _write_text_encoder(folder: Path, sizes: Sizes, device: torch.device) -> None:
    from transformers import UMT5Config, UMT5EncoderModel

    config = UMT5Config(**sizes.text_encoder)
    model = _random(lambda: UMT5EncoderModel(config), torch.bfloat16, device)
    config.save_pretrained(folder)
    state = {name: weight for name, weight in _state(model).items() if name != "encoder.embed_tokens.weight"}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def _write_reward(folder: Path, sizes: dict[str, Any], device: torch.device) -> None:
    """A base model and a checkpoint that trained its head, its embedding and a LoRA of one projection."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    base, checkpoint = folder / "base_model", folder / "identity_reward" / "checkpoint-1"
    for place in (base, checkpoint):
        place.mkdir(parents=True, exist_ok=True)
    vocabulary = sizes["vocab_size"] - 1  # the reward token is added when it is loaded
    _write_tokenizer(base, vocabulary)
    described = json.loads((TINYWORLD_WEIGHTS / "reward" / "base_model" / "config.json").read_text(encoding="utf-8"))
    described |= {**sizes, "vocab_size": vocabulary, "torch_dtype": "bfloat16"}
    (base / "config.json").write_text(json.dumps(described, indent=1), encoding="utf-8")
    model = _random(
        lambda: Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(**{**sizes, "vocab_size": vocabulary})),
        torch.bfloat16,
        device,
    )
    inner, state = model.model, {}
    visual = inner.visual if hasattr(inner, "visual") else model.visual
    language = getattr(inner, "language_model", inner)
    for prefix, part in (("visual.", visual), ("language_model.", language)):
        own = {name: weight for name, weight in _state(part).items() if not name.startswith("visual.")}
        state |= {released_name(prefix + name): weight for name, weight in own.items()}
    save_file(state, base / "model.safetensors", metadata={"format": "pt"})
    width, dtype = sizes["hidden_size"], torch.bfloat16
    module = f"{PREFIX}model.layers.0.self_attn.q_proj"
    factors = {
        f"{module}.lora_A.weight": torch.randn(RANK, width, dtype=dtype) / width,
        f"{module}.lora_B.weight": torch.randn(width, RANK, dtype=dtype) / width,
    }
    save_file(factors, checkpoint / "adapter_model.safetensors")
    full = {
        f"{PREFIX}model.embed_tokens.weight": torch.randn(vocabulary + 1, width, dtype=dtype) / width**0.5,
        f"{PREFIX}rm_head.weight": torch.randn(1, width, dtype=torch.float32) / width**0.5,
    }
    save_file(full, checkpoint / "non_lora_state_dict.safetensors")
    adapter = {"peft_type": "LORA", "r": RANK, "lora_alpha": RANK, "target_modules": [module.removeprefix(PREFIX)]}
    (checkpoint / "adapter_config.json").write_text(json.dumps(adapter), encoding="utf-8")
    config = {"model_config": {"freeze_vision_tower": True, "tune_merger": False}}
    (checkpoint.parent / "model_config.json").write_text(json.dumps(config), encoding="utf-8")


def _write_tokenizer(folder: Path, vocabulary: int) -> None:
    """TinyWorld's, with unused tokens up to the size of the real vocabulary."""
    source = TINYWORLD_WEIGHTS / "reward" / "base_model"
    tokenizer = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))
    tokens = tokenizer["model"]["vocab"]
    tokens |= {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    tokens |= {f"unused{index}": index for index in range(len(tokens), vocabulary)}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    (folder / "tokenizer_config.json").write_bytes((source / "tokenizer_config.json").read_bytes())


def _write_prompts(folder: Path) -> None:
    rng = np.random.default_rng(0)
    for index in range(PEOPLE):
        Image.fromarray(rng.integers(0, 255, (480, 480, 3), np.uint8)).save(folder / f"face{index}.png")
    rows = [f"face{i % PEOPLE}.png;face{(i + 1 + i // PEOPLE) % PEOPLE}.png,{PROMPT} {i}" for i in range(ROWS)]
    (folder / "prompts.csv").write_text("\n".join(["ref_paths,prompt", *rows]) + "\n", encoding="utf-8")


def _random(build: Callable[[], nn.Module], dtype: torch.dtype, device: torch.device) -> nn.Module:
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False):
        model = build()
    return fill_randomly(model, dtype, device)


def _state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: weight.detach().cpu().contiguous() for name, weight in model.named_parameters()}
