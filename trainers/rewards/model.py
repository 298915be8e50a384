"""Qwen2.5-VL with a reward head: one number per sequence, with gradient."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, autocast, nn
from torch.nn import Linear

from ..errors import UserError
from ..weights import find_damage, require_complete
from .pixels import Grid
from .vision import vision_embeddings


@dataclass(frozen=True)
class Batch:
    """B items, padded on the right.

    `ids` int64 [B, L], `positions` int64 [3, B, L], `reward_index` int64 [B], `image_rows` and `video_rows` float32
    [patches, 1176] with one grid per picture in reading order. `image_embeddings` [tokens, hidden] replace the rows
    of the images where they are known.
    """

    ids: Tensor
    positions: Tensor
    reward_index: Tensor
    video_rows: Tensor
    video_grids: list[Grid]
    image_rows: Tensor | None = None
    image_grids: list[Grid] | None = None
    image_embeddings: Tensor | None = None

    def to(self, device: torch.device | str) -> Batch:
        moved = {k: v.to(device, non_blocking=True) for k, v in vars(self).items() if isinstance(v, Tensor)}
        return replace(self, **moved)


class RewardModel(nn.Module):
    """`visual` and `language_model` are transformers' modules, `rm_head` a float32 linear map without bias.

    The three names do not change with the version of transformers, whose own nesting of these modules does.
    """

    def __init__(self, visual: nn.Module, language_model: nn.Module, image_token: int, video_token: int):
        super().__init__()
        self.visual, self.language_model = visual, language_model
        self.image_token, self.video_token = image_token, video_token
        width = language_model.get_input_embeddings().embedding_dim
        self.rm_head = Linear(width, 1, bias=False, dtype=torch.float32)
        nn.init.normal_(self.rm_head.weight, std=width**-0.5)

    def embed_pictures(self, rows: Tensor, grids: list[Grid]) -> Tensor:
        """Embeddings [tokens, hidden] of pictures, in the order of their grids."""
        return vision_embeddings(self.visual, rows, grids)

    def hidden(self, batch: Batch) -> Tensor:
        """Last hidden state after the final norm, at the reward token: [B, hidden]."""
        embeddings = self.language_model.get_input_embeddings()(batch.ids)
        images = batch.image_embeddings
        if images is None and batch.image_grids:
            images = self.embed_pictures(batch.image_rows, batch.image_grids)
        videos = self.embed_pictures(batch.video_rows, batch.video_grids)
        for token, vectors in ((self.image_token, images), (self.video_token, videos)):
            if vectors is not None:
                mask = (batch.ids == token).unsqueeze(-1)
                embeddings = embeddings.masked_scatter(mask, vectors.to(embeddings.dtype))
        # Attention is causal and padding stands on the right, so no real token ever sees it; a mask of ones keeps every
        # version of transformers from guessing packed sequences out of the positions, and lets sdpa skip the mask.
        states = self.language_model(
            inputs_embeds=embeddings,
            position_ids=batch.positions,
            attention_mask=torch.ones_like(batch.ids),
            use_cache=False,
        ).last_hidden_state
        return states[torch.arange(len(states), device=states.device), batch.reward_index]

    def forward(self, batch: Batch) -> Tensor:
        """Rewards float32 [B], a Bradley-Terry score without a zero."""
        hidden = self.hidden(batch)
        with autocast(hidden.device.type, enabled=False):
            return self.rm_head(hidden.float()).squeeze(-1)

    def cast(self, dtype: torch.dtype) -> RewardModel:
        """The body in `dtype`; the head stays float32, where bfloat16 would quantise scores near 3 to steps of 1/64."""
        self.visual.to(dtype)
        self.language_model.to(dtype)
        return self


def load_base(
    folder: Path, vocabulary: int, image_token: int, video_token: int, dtype: torch.dtype, attention: str = "sdpa"
) -> RewardModel:
    """A base Qwen2.5-VL as a reward model: its embedding is resized to `vocabulary` rows, its head is new.

    Raises UserError when the folder holds no Qwen2.5-VL that transformers can read, lacks a weight other than heads, or
    holds numbers that are not finite or a matrix of zeros.
    """
    from transformers import Qwen2_5_VLForConditionalGeneration

    try:
        with _without_progress_bar():
            model, found = Qwen2_5_VLForConditionalGeneration.from_pretrained(
                folder,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                attn_implementation=attention,
                output_loading_info=True,
                **_dtype_argument(dtype),
            )
    except torch.cuda.OutOfMemoryError:
        raise
    except Exception as error:  # transformers raises almost anything for a broken folder
        raise UserError(
            f"the base model in {folder} cannot be loaded ({error}); give a complete Qwen2.5-VL folder"
        ) from error
    require_complete(
        (model, {"missing_keys": [key for key in found["missing_keys"] if key != "lm_head.weight"]}), folder
    )
    for name, weight in model.named_parameters():
        if damage := find_damage(name, weight.detach()):
            raise UserError(f"the base model in {folder} holds {damage} in {name}; download it again")
    return as_reward(model, vocabulary, image_token, video_token)


def as_reward(model: nn.Module, vocabulary: int, image_token: int, video_token: int) -> RewardModel:
    """The parts of transformers' Qwen2_5_VLForConditionalGeneration as a reward model; see `load_base`."""
    embedding = model.get_input_embeddings()
    if vocabulary < embedding.num_embeddings:
        # transformers' own way makes a new embedding of random numbers first, which takes half a minute.
        embedding.weight = nn.Parameter(embedding.weight.detach()[:vocabulary])
        embedding.num_embeddings = vocabulary
    else:
        model.resize_token_embeddings(vocabulary, mean_resizing=False)
    inner = model.model
    visual = inner.visual if hasattr(inner, "visual") else model.visual
    language_model = getattr(inner, "language_model", inner)
    return RewardModel(visual, language_model, image_token, video_token).eval()


@contextmanager
def _without_progress_bar() -> Iterator[None]:
    """Hide transformers' progress bar, which would break into ours."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _dtype_argument(dtype: torch.dtype) -> dict[str, Any]:
    import transformers

    major, minor = (int(part) for part in transformers.__version__.split(".")[:2])
    return {"dtype" if (major, minor) >= (4, 56) else "torch_dtype": dtype}
