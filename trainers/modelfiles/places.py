"""Where the weights of a model lie: a file, shards, an index of shards, or a folder."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from ..errors import UserError, shorten
from ..files import read_regular

JSON_LIMIT = 64 * 2**20  # bytes; an index of shards can have some MB
STANDARD_NAMES = ("diffusion_pytorch_model", "model")
"""How diffusers and transformers name the weights in a model's folder."""
INDEX = ".safetensors.index.json"
SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{1,5})-of-(?P<count>\d{1,5})\.safetensors")


REWARD_CONFIG = "model_config.json"
WHOLE_REWARD = ("model.safetensors", "model.pth")
"""All weights of a reward in one file."""


def reward_folder(place: Path) -> Path | None:
    """The folder of the reward that lies at `place`, which may be one of its checkpoints or files; else None."""
    place = Path(os.path.abspath(place))
    for folder in (place, *place.parents[:2]):
        first = "".join(place.relative_to(folder).parts[:1])
        own = first.startswith("checkpoint-") or first in ("", REWARD_CONFIG, *WHOLE_REWARD)
        if own and os.path.isfile(folder / REWARD_CONFIG) and _is_of_reward(folder / REWARD_CONFIG):
            return folder
    return None


def _is_of_reward(config: Path) -> bool:
    """Other models may have a file of this name too."""
    try:
        return isinstance(read_json(config).get("model_config"), dict)
    except UserError:
        return False


def weight_files(place: Path, remedy: str) -> list[Path]:
    """The .safetensors files of the model at `place`: a folder, a file, an index of shards, or any one shard.

    Raises UserError that names the shards that are missing, or when a folder has no weights or those of several models.
    """
    if os.path.isdir(place):
        return _files_of_folder(place, remedy)
    if place.name.endswith(INDEX):
        return _complete(place, _names_in_index(place))
    shard = SHARD.fullmatch(place.name)
    if not shard or not int(shard["count"]):
        return [place]
    digits, count = len(shard["number"]), shard["count"]
    numbers = range(1, int(count) + 1)
    return _complete(place, [f"{shard['stem']}-{number:0{digits}}-of-{count}.safetensors" for number in numbers])


def _files_of_folder(folder: Path, remedy: str) -> list[Path]:
    for name in STANDARD_NAMES:
        for end in (".safetensors", INDEX):
            if os.path.isfile(folder / (name + end)):
                return weight_files(folder / (name + end), remedy)
    found = {tuple(weight_files(path, remedy)) for path in sorted(folder.glob("*.safetensors"))}
    if len(found) == 1:
        return list(found.pop())
    if found:
        names = shorten(files[0].name for files in found)
        raise UserError(f"{folder} holds the weights of several models ({names}); give the path of one file")
    raise UserError(f"{folder} holds no .safetensors file; {remedy}")


def _names_in_index(index: Path) -> list[str]:
    mapped = read_json(index).get("weight_map")
    names = sorted(set(mapped.values())) if isinstance(mapped, dict) and all(map(_is_name, mapped.values())) else []
    if not names:
        raise UserError(f"{index} does not list the shards of a model (weight_map); download it again")
    return names


def _is_name(value: object) -> bool:
    """Whether this is the name of a file in the same folder."""
    return isinstance(value, str) and value.endswith(".safetensors") and not {"/", "\\", "\0"} & set(value)


def _complete(place: Path, names: list[str]) -> list[Path]:
    missing = [name for name in names if not os.path.exists(place.with_name(name))]
    if missing:
        raise UserError(
            f"{place} belongs to a model in {len(names)} files, of which {len(missing)} are missing: "
            f"{shorten(missing)}; download them into the same folder"
        )
    return [place.with_name(name) for name in names]


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises UserError when there is none, or when this is no regular file."""
    try:
        if os.path.getsize(path) > JSON_LIMIT:
            raise OSError(f"it has more than {JSON_LIMIT} bytes")
        values = json.loads(read_regular(path).decode())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"cannot read {path} ({error}); give the model's folder with its own {path.name}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} holds a {type(values).__name__}, an object was expected; give the model's own file")
    return values
