"""Qwen2.5-VL's vision tower over many small pictures at once.

The parameters are those of transformers' module; only the order of computation differs. transformers attends window by
window in a Python loop, thousands of tiny calls for a batch of clips; here all windows of one size are one call.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .pixels import MERGE, Grid

UNIT = MERGE * MERGE
"""Patches that are merged into one token."""
Segments = tuple[tuple[int, int], ...]
"""(number of segments, patches in each) of consecutive segments of one size."""


@dataclass(frozen=True)
class GridLayout:
    """How one grid's patches are grouped.

    `positions`: row and column of every patch in the order of `patch_rows`, int64 [patches, 2]; `windows`: per window
    the indices of its merged units.
    """

    positions: Tensor
    windows: tuple[Tensor, ...]


@lru_cache(maxsize=256)
@torch.inference_mode(False)  # kept for calls with gradients too
def grid_layout(grid: Grid, units_per_window: int) -> GridLayout:
    """The layout of a grid whose windows are `units_per_window` merged units wide and high."""
    t, h, w = grid
    rows, columns = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    blocks = torch.stack([rows, columns], -1).view(h // MERGE, MERGE, w // MERGE, MERGE, 2).transpose(1, 2)
    units = torch.arange(t * h * w // UNIT).view(t, h // MERGE, w // MERGE)
    windows = tuple(
        cell.flatten()
        for step in units
        for row in step.split(units_per_window, 0)
        for cell in row.split(units_per_window, 1)
    )
    return GridLayout(blocks.reshape(-1, 2).repeat(t, 1), windows)


@dataclass(frozen=True)
class BatchLayout:
    """The layout of a batch of grids. Natural order: frame after frame; window order: windows sorted by size."""

    positions: Tensor
    to_windows: Tensor
    to_natural: Tensor
    frames: Segments
    windows: Segments


def _segments(sizes: Sequence[int]) -> Segments:
    found: list[list[int]] = []
    for size in sizes:
        if found and found[-1][1] == size:
            found[-1][0] += 1
        else:
            found.append([1, size])
    return tuple((n, size) for n, size in found)


@lru_cache(maxsize=32)
@torch.inference_mode(False)
def batch_layout(grids: tuple[Grid, ...], units_per_window: int, device: torch.device) -> BatchLayout:
    layouts = [grid_layout(grid, units_per_window) for grid in grids]
    starts = [0]
    for t, h, w in grids:
        starts.append(starts[-1] + t * h * w // UNIT)
    windows = [window + start for layout, start in zip(layouts, starts[:-1], strict=True) for window in layout.windows]
    windows.sort(key=len, reverse=True)
    order = torch.cat(windows)
    return BatchLayout(
        torch.cat([layout.positions for layout in layouts]).to(device),
        order.to(device),
        torch.argsort(order).to(device),
        _segments([h * w for t, h, w in grids for _ in range(t)]),
        _segments([len(window) * UNIT for window in windows]),
    )


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of x [patches, n, heads, width] by the angles of width/2 pairs, [patches, 1, 1, width/2]."""
    half, x32 = x.shape[-1] // 2, x.float()
    turned = x32 * torch.cat([cos, cos], -1)
    # In place, each half on its own: joining the halves anew costs a CPU more than the arithmetic.
    turned[..., :half].addcmul_(x32[..., half:], -sin)
    turned[..., half:].addcmul_(x32[..., :half], sin)
    return turned.to(x.dtype)


def _attend(attention: Any, x: Tensor, cos: Tensor, sin: Tensor, heads: int, segments: Segments) -> Tensor:
    projected = attention.qkv(x).view(x.shape[0], 3, heads, -1)
    queries, keys = _rotate(projected[:, :2], cos, sin).unbind(1)
    values = projected[:, 2]
    outputs, start = [], 0
    for n, size in segments:
        q, k, v = (
            part[start : start + n * size].view(n, size, heads, -1).transpose(1, 2) for part in (queries, keys, values)
        )
        outputs.append(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n * size, -1))
        start += n * size
    return attention.proj(torch.cat(outputs) if len(outputs) > 1 else outputs[0])


def _block(block: Any, x: Tensor, cos: Tensor, sin: Tensor, heads: int, segments: Segments) -> Tensor:
    x = x + _attend(block.attn, block.norm1(x), cos, sin, heads, segments)
    return x + block.mlp(block.norm2(x))


def vision_embeddings(tower: Any, rows: Tensor, grids: Sequence[Grid]) -> Tensor:
    """Embeddings [tokens, hidden] of pictures given as patch rows [patches, 1176], in the order of the grids.

    `tower` is transformers' `Qwen2_5_VisionTransformerPretrainedModel`. Blocks listed in `fullatt_block_indexes` attend
    within one temporal step of one picture, the others inside windows of `window_size` pixels. With the attribute
    `recompute` of the tower, its blocks keep no activations for the backward pass.
    """
    config = tower.config
    layout = batch_layout(tuple(grids), config.window_size // config.patch_size // MERGE, rows.device)
    heads = config.num_heads
    width = config.hidden_size // heads // 2
    frequencies = 1.0 / 10000.0 ** (torch.arange(0, width, 2, dtype=torch.float32, device=rows.device) / width)
    angles = (layout.positions[..., None].float() * frequencies).flatten(1)
    natural, windowed = (
        (turn.cos(), turn.sin()) for turn in (a[:, None, None] for a in (angles, _reorder(angles, layout.to_windows)))
    )

    # A product with the flattened kernel is what this convolution is, and much faster than cuDNN's for short rows.
    kernel = tower.patch_embed.proj.weight
    x = F.linear(rows.to(kernel.dtype), kernel.flatten(1))
    in_windows = False
    for index, block in enumerate(tower.blocks):
        full = index in config.fullatt_block_indexes
        if full == in_windows:
            x = _reorder(x, layout.to_natural if full else layout.to_windows)
            in_windows = not full
        arguments = (block, x, *(natural if full else windowed), heads, layout.frames if full else layout.windows)
        recompute = getattr(tower, "recompute", False) and torch.is_grad_enabled()
        x = checkpoint(_block, *arguments, use_reentrant=False) if recompute else _block(*arguments)
    merged = tower.merger(x)
    return merged[layout.to_natural] if in_windows else merged


def _reorder(x: Tensor, units: Tensor) -> Tensor:
    """Rows permuted in whole merged units."""
    return x.view(-1, UNIT, x.shape[-1])[units].flatten(0, 1)
