"""A LoRA's alpha where the file has no `.alpha` tensors: in the file's header, or in PEFT's adapter_config.json."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import UserError

ADAPTER_METADATA = "lora_adapter_metadata"  # diffusers' header entry: PEFT's configuration as JSON
LARGEST = 4 << 20  # characters of JSON; a real configuration has some ten thousand
_ALPHAS = ("lora_alpha", "network_alpha", "alpha")
_SETTINGS = (*_ALPHAS, "r", "alpha_pattern", "rank_pattern", "use_rslora", "use_dora")
_FLAT = re.compile(
    rf"(?P<prefix>(?:transformer\.|diffusion_model\.|base_model\.model\.)?)(?P<name>{'|'.join(_SETTINGS)})"
)
_NAME = re.compile(r"\^?\w+(?:\.\w+)*")
_FLAGS = {"true": True, "1": True, "false": False, "0": False}


@dataclass(frozen=True)
class AlphaSettings:
    """What one place says of alpha.

    `source`: that place, for messages; `special`: PEFT's alpha_pattern, the end of a module's name (or `^` and the
    whole name) -> its place in the order and the alpha.
    """

    source: str
    alpha: float
    use_rslora: bool
    special: Mapping[str, tuple[int, float]]

    def of(self, names: Iterable[str], rank: int) -> float:
        """alpha of a module with these names, for the scale alpha / rank; the first fitting pattern counts (PEFT)."""
        patterns = [pattern for name in names for pattern in (f"^{name}", *_endings(name))]
        fitting = [self.special[pattern] for pattern in patterns if pattern in self.special]
        alpha = min(fitting)[1] if fitting else self.alpha
        # rsLoRA divides by the root of the rank.
        return alpha * math.sqrt(rank) if self.use_rslora else alpha


def read_config(text: str, source: str) -> AlphaSettings:
    """The settings in the text of an adapter_config.json. Raises UserError when they are damaged, or not a LoRA's."""
    try:
        values = _parse_json(text)
        kind = values.get("peft_type")
        if kind not in (None, "LORA"):
            raise UserError(f"{source} describes a {str(kind)[:40]}, which is not supported; train a plain LoRA")
        return _settings(values, source)
    except UserError:
        raise
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise _unreadable(source, error) from error


def read_header(metadata: Mapping[str, str], source: str) -> list[AlphaSettings]:
    """What a file's header says of alpha: as diffusers writes it, and in entries such as `lora_alpha`.

    Raises UserError when it is damaged.
    """
    found, flat = [], {}
    for key, value in metadata.items():
        if match := _FLAT.fullmatch(key):
            flat.setdefault(match["prefix"], {})[match["name"]] = value
    try:
        if ADAPTER_METADATA in metadata:
            values = _of_transformer(_parse_json(metadata[ADAPTER_METADATA]))
            found += [_settings(values, f"`{ADAPTER_METADATA}` in {source}")] if values else []
        for prefix, values in flat.items():
            if name := next((name for name in _ALPHAS if name in values), None):
                found.append(_settings(values, f"`{prefix}{name}` in {source}"))
    except UserError:
        raise
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise _unreadable(source, error) from error
    return found


def without_settings(metadata: Mapping[str, str]) -> dict[str, str]:
    """A header without its entries about rank and alpha."""
    return {key: value for key, value in metadata.items() if key != ADAPTER_METADATA and not _FLAT.fullmatch(key)}


def _settings(values: Mapping[str, Any], source: str) -> AlphaSettings:
    """Raises ValueError or TypeError for a value that is missing or none of its kind."""
    if _flag(values.get("use_dora")):
        raise UserError(f"{source} describes a DoRA, which is not supported; train or convert it as a plain LoRA")
    alphas = {_number(values[name], name) for name in _ALPHAS if name in values}
    if len(alphas) != 1:
        raise ValueError(f"it names {len(alphas)} values for lora_alpha")
    for rank in (values.get("r", 1), *_pattern(values, "rank_pattern").values()):
        if not (_number(rank, "rank") >= 1 and float(rank).is_integer()):
            raise ValueError(f"rank {rank} is not a whole number above 0")
    special: dict[str, tuple[int, float]] = {}
    for place, (pattern, alpha) in enumerate(_pattern(values, "alpha_pattern").items()):
        special.setdefault(_literal(pattern), (place, _number(alpha, "alpha_pattern")))
    return AlphaSettings(source, alphas.pop(), _flag(values.get("use_rslora")), special)


def _of_transformer(values: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of the transformer in a pipeline's metadata; those of a bare transformer have no prefix."""
    prefixed = {key.removeprefix("transformer."): v for key, v in values.items() if key.startswith("transformer.")}
    return prefixed or {key: value for key, value in values.items() if "." not in key}


def _parse_json(text: str) -> dict[str, Any]:
    if len(text) > LARGEST:
        raise ValueError(f"it has {len(text)} characters of JSON")
    values = json.loads(text)
    if not isinstance(values, dict):
        raise TypeError("it is not a JSON object")
    return values


def _pattern(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = values.get(name) or {}
    if isinstance(value, str):
        value = _parse_json(value)
    if not isinstance(value, dict):
        raise TypeError(f"{name} is not a JSON object")
    return value


def _literal(pattern: str) -> str:
    """A pattern that is the name of a module or the end of one; `^` stays in front of a whole name.

    PEFT takes patterns as regular expressions, with which a file could keep its reader busy for ever.
    """
    plain = pattern.replace("\\.", ".").removesuffix("$")
    if not _NAME.fullmatch(plain):
        raise ValueError(f"alpha_pattern `{pattern[:80]}` is not the name of a module")
    return plain


def _endings(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[start:]) for start in range(len(parts))]


def _number(value: Any, name: str) -> float:
    if isinstance(value, bool) or not math.isfinite(number := float(value)):
        raise ValueError(f"{name} is {value}")
    return number


def _flag(value: Any) -> bool:
    if value is None or isinstance(value, bool):
        return bool(value)
    if str(value).lower() not in _FLAGS:
        raise ValueError(f"`{str(value)[:80]}` is neither true nor false")
    return _FLAGS[str(value).lower()]


def _unreadable(source: str, error: Exception) -> UserError:
    reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)[:200]
    return UserError(
        f"cannot read the LoRA's alpha from {source} ({reason}); it should hold lora_alpha as PEFT writes it"
    )
