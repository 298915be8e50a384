"""A text encoder and its tokenizer, from where they lie."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import UserError


def load_text_encoder(path: str | Path, dtype: torch.dtype) -> tuple[nn.Module, Any]:
    """A frozen UMT5EncoderModel of a folder, and its tokenizer, which lies in or beside it.

    Raises UserError for what is no such folder.
    """
    from transformers import AutoTokenizer, UMT5EncoderModel

    path = Path(path)
    if path.is_file():
        raise UserError(f"{path} is a single file, which cannot be read as a text encoder; give a transformers folder of UMT5")
    places = (path / "tokenizer", path.parent / "tokenizer")
    tokenizer = next((place for place in places if place.is_dir()), path)
    try:
        model = UMT5EncoderModel.from_pretrained(path, local_files_only=True)
        return model.to(dtype).eval().requires_grad_(False), AutoTokenizer.from_pretrained(tokenizer, local_files_only=True)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise UserError(f"cannot load the text encoder from {path}: {error}") from error
