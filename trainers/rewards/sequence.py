"""The token sequence that the reward reads, and its mRoPE positions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer
from torch import Tensor

from ..errors import UserError
from .config_files import TokenizerFile, read_config_file
from .geometry import time_position
from .pixels import MERGE, Grid

REWARD_TOKEN = "<|SA_reward|>"
INSTRUCTION = json.loads((Path(__file__).parent / "instruction.json").read_text(encoding="utf-8"))["text"]
HEAD = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
IMAGE, VIDEO = (
    ("<|vision_start|>", "<|image_pad|>", "<|vision_end|>"),
    ("<|vision_start|>", "<|video_pad|>", "<|vision_end|>"),
)
TAIL = INSTRUCTION + "<|im_end|>\n<|im_start|>assistant\n"


@dataclass(frozen=True)
class TokenSequence:
    """One item's `ids` int64 [L], `positions` int64 [3, L] (time, height, width), and place of the reward token."""

    ids: Tensor
    positions: Tensor
    reward_index: int


class Sequencer:
    """Builds sequences with a Qwen2.5-VL tokenizer to whose end the reward token was added.

    The text between pictures is tokenised piece by piece, with the same result as in one piece: pictures stand between
    special tokens, and a byte-level tokenizer never joins across those. There are no "Picture 1: " labels, which
    transformers adds from 4.52 on: the reward was trained without.
    """

    def __init__(self, tokenizer: Tokenizer, tokens_per_second: float):
        self.tokenizer, self.tokens_per_second = tokenizer, tokens_per_second
        self.vocabulary = tokenizer.get_vocab_size(with_added_tokens=True)
        self.image_token, self.video_token = (tokenizer.token_to_id(part[1]) for part in (IMAGE, VIDEO))
        self.reward_token = tokenizer.token_to_id(REWARD_TOKEN)
        self.padding = tokenizer.token_to_id("<|endoftext|>")
        self._built: dict[tuple, TokenSequence] = {}

    @classmethod
    def load(cls, folder: Path, tokens_per_second: float) -> Sequencer:
        """From a base model's folder. Raises UserError when its tokenizer is missing, broken, or not Qwen2.5-VL's."""
        path = folder / "tokenizer.json"
        read_config_file(path, TokenizerFile, "download Qwen2.5-VL again, all of it")
        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises plain Exception
            raise UserError(f"{path} cannot be read ({error}); download Qwen2.5-VL again") from error
        tokenizer.no_padding()
        tokenizer.no_truncation()
        needed = (*IMAGE, VIDEO[1], "<|im_start|>", "<|im_end|>", "<|endoftext|>")
        if lacking := [token for token in needed if tokenizer.token_to_id(token) is None]:
            raise UserError(f"{path} lacks {', '.join(lacking)}; give a Qwen2.5-VL as the base model")
        if max(tokenizer.get_vocab().values()) >= tokenizer.get_vocab_size():
            raise UserError(f"{path} numbers its tokens with gaps; give a Qwen2.5-VL as the base model")
        tokenizer.add_special_tokens([AddedToken(REWARD_TOKEN, normalized=False, special=True)])
        return cls(tokenizer, tokens_per_second)

    def build(self, images: Sequence[Grid], video: Grid, seconds: float) -> TokenSequence:
        """The sequence for references and a clip with these patch grids; a step of the clip's grid lasts `seconds`."""
        times = tuple(time_position(step, seconds, self.tokens_per_second) for step in range(video[0]))
        key = (tuple(images), video, times)
        if key not in self._built:
            if len(self._built) > 256:
                self._built.clear()
            self._built[key] = self._build(*key)
        return self._built[key]

    def _build(self, images: tuple[Grid, ...], video: Grid, times: tuple[int, ...]) -> TokenSequence:
        ids: list[int] = []
        positions: list[Tensor] = []
        offset = 0

        def text(pieces: str) -> None:
            nonlocal offset
            new = self.tokenizer.encode(pieces, add_special_tokens=False).ids
            ids.extend(new)
            positions.append(torch.arange(offset, offset + len(new)).expand(3, -1))
            offset += len(new)

        def vision(grid: Grid, token: int, times: Sequence[int]) -> None:
            nonlocal offset
            h, w = grid[1] // MERGE, grid[2] // MERGE
            axes = torch.meshgrid(torch.tensor(times), torch.arange(h), torch.arange(w), indexing="ij")
            block = torch.stack([a.flatten() for a in axes]) + offset
            ids.extend([token] * block.shape[1])
            positions.append(block)
            offset = int(block.max()) + 1

        text(HEAD)
        for grid in images:
            text(IMAGE[0])
            vision(grid, self.image_token, [0])
            text(IMAGE[2])
        text(VIDEO[0])
        vision(video, self.video_token, times)
        text(VIDEO[2])
        text(TAIL)
        return TokenSequence(torch.tensor(ids), torch.cat(positions, 1), ids.index(self.reward_token))
