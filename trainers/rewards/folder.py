"""The released layout of an identity reward on disk, and finding its files; without torch, so that a wrong path is
refused at once.

`model_config.json`, and per checkpoint `checkpoint-N/adapter_model.safetensors` with `adapter_config.json` (LoRA of the
language model) and `non_lora_state_dict.pth` or `.safetensors` (vision tower, token embedding, `rm_head`). Or all of
the model's weights in one `model.pth` or `.safetensors`, in `checkpoint-N` or beside `model_config.json`, as the same
trainer writes with `save_full_model`.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from ..config import TINYWORLD_WEIGHTS, RewardConfig
from ..errors import UserError
from ..modelfiles.places import WHOLE_REWARD
from .config_files import AdapterFile, RewardFile, read_config_file

ADAPTER = "adapter_model.safetensors"
UNPACK = "unpack the whole released archive"


@dataclass(frozen=True)
class Checkpoint:
    """A reward's folder, its configuration, and its newest complete checkpoint.

    `single`: the file with all weights, in place of an adapter's and the others'. `adapter` is None where no LoRA is
    configured.
    """

    folder: Path
    config: RewardFile
    weights: Path
    adapter: AdapterFile | None
    single: Path | None = None


def find_reward(config: RewardConfig) -> tuple[Path, Path]:
    """The folders of the checkpoint and its base model, without loading them.

    Raises UserError when files are missing or a configuration is invalid.
    """
    source = Path(config.source)
    if config.source == "tinyworld":
        source = TINYWORLD_WEIGHTS / "reward" / "identity_reward"
    return source, find_base(find_checkpoint(source), config.base_model)


def find_checkpoint(folder: Path | str) -> Checkpoint:
    """The newest complete `checkpoint-N` of a reward's folder, or the one whose `model.pth` or `.safetensors` is given.

    Raises UserError for missing or invalid files.
    """
    folder = Path(folder)
    if folder.name in WHOLE_REWARD and os.path.isfile(folder):
        file, folder = folder, folder.parent if _has(folder.parent, "model_config.json") else folder.parent.parent
        config = read_config_file(folder / "model_config.json", RewardFile, "put the reward's own file there")
        return Checkpoint(folder, config, file.parent, config.adapter(folder / "model_config.json"), file)
    if os.path.isfile(folder):
        raise UserError(
            f"{folder} is not the folder of an identity reward{_what(folder)}; give the one that holds "
            "model_config.json"
        )
    try:
        children = list(folder.iterdir())
    except OSError as error:
        raise UserError(
            f"the identity reward {folder} cannot be opened ({error.strerror or error}); "
            "give the folder that holds model_config.json"
        ) from None
    config = read_config_file(
        folder / "model_config.json", RewardFile, "give the folder of the released reward, or train one"
    )
    numbered = [
        (int(match[1]), child)
        for child in children
        if (match := re.fullmatch(r"checkpoint-(\d+)", child.name)) and (_has(child, ADAPTER) or _single_file(child))
    ]
    newest = max(numbered)[1] if numbered else folder
    single = None if _has(newest, ADAPTER) else _single_file(newest)
    if single:
        return Checkpoint(folder, config, newest, config.adapter(folder / "model_config.json"), single)
    if not numbered:
        raise UserError(f"{folder} has no checkpoint-N with {ADAPTER} or {WHOLE_REWARD[1]}; {UNPACK}")
    return Checkpoint(folder, config, newest, read_config_file(newest / "adapter_config.json", AdapterFile, UNPACK))


def find_base(checkpoint: Checkpoint, base_model: Path | str | None = None) -> Path:
    """The folder or file of the base model: `base_model` if given, else the one that the checkpoint names.

    A name is looked up in the checkpoint's folder, beside it, as a path, and in the local Hugging Face cache, never
    on the network. Raises UserError.
    """
    if base_model is not None:
        if os.path.isfile(base_model) or os.path.isfile(Path(base_model) / "config.json"):
            return Path(base_model)
        raise UserError(f"the base model {base_model} holds no config.json; give a Qwen2.5-VL folder or file")
    name = checkpoint.config.model.model_name_or_path
    if not name:
        raise UserError(f"{checkpoint.folder / 'model_config.json'} names no base model; give one (base_model)")
    for candidate in (checkpoint.folder / name, checkpoint.folder.parent / name, Path(name)):
        if os.path.isfile(candidate / "config.json"):
            return candidate
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        from huggingface_hub import snapshot_download

        try:
            return Path(snapshot_download(name, local_files_only=True))
        except (OSError, ValueError):
            pass
    raise UserError(
        f"the base model {name!r} of the reward {checkpoint.folder} is not on this machine; download it "
        f"(hf download {name}), or give its folder (base_model)"
    )


def _what(file: Path) -> str:
    from ..modelfiles.inspection import inspect_file  # imports torch

    try:
        return f" ({inspect_file(file)})"
    except UserError:
        return ""


def _has(folder: Path, name: str) -> bool:
    return os.path.isfile(folder / name)


def _single_file(folder: Path) -> Path | None:
    return next((folder / name for name in WHOLE_REWARD if _has(folder, name)), None)
