"""Configurations of models, checked before anything is built from them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ..errors import UserError

LAYERS = 256
Width = Annotated[int, Field(ge=1, le=2**20)]
Epsilon = Annotated[float, Field(gt=0, lt=0.01)]
C = TypeVar("C", bound="ModelConfig")


class ModelConfig(BaseModel):
    """A model's config.json. Unknown keys are ignored: versions of diffusers and transformers differ in them."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True, allow_inf_nan=False)


class TransformerConfig(ModelConfig):
    """A Wan transformer's, by diffusers' names or by those of the original code; what is absent is None."""

    class_name: str | None = Field(None, alias="_class_name")
    patch_size: list[Annotated[int, Field(ge=1, le=16)]] | None = Field(None, min_length=3, max_length=3)
    num_attention_heads: int | None = Field(None, ge=1, le=1024)
    attention_head_dim: int | None = Field(None, ge=2, le=4096)
    in_channels: Width | None = None
    out_channels: Width | None = None
    text_dim: Width | None = None
    freq_dim: Width | None = None
    ffn_dim: Width | None = None
    num_layers: int | None = Field(None, ge=1, le=LAYERS)
    cross_attn_norm: bool | None = None
    qk_norm: Literal["rms_norm_across_heads", True] | None = None
    eps: Epsilon | None = None
    rope_max_seq_len: int | None = Field(None, ge=32, le=65536)
    vace_layers: list[Annotated[int, Field(ge=0, lt=LAYERS)]] | None = Field(None, min_length=1, max_length=LAYERS)
    vace_in_channels: Width | None = None
    dim: Width | None = None

    @model_validator(mode="before")
    @classmethod
    def _use_names_of_diffusers(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        renamed = dict(values)
        for original, name in ORIGINAL_NAMES.items():
            if original in renamed:
                renamed.setdefault(name, renamed[original])
        # ComfyUI keeps the number of control blocks under the same name, as the original keeps their layers.
        if type(renamed.get("vace_layers")) is int:
            del renamed["vace_layers"]
        return renamed

    @model_validator(mode="after")
    def _control_blocks_are_in_order(self) -> TransformerConfig:
        layers = self.vace_layers
        if layers and (layers[0] != 0 or layers != sorted(set(layers)) or layers[-1] >= (self.num_layers or LAYERS)):
            raise ValueError(f"vace_layers {layers} must rise from 0 and stay below num_layers")
        return self


ORIGINAL_NAMES = {
    "num_heads": "num_attention_heads",
    "in_dim": "in_channels",
    "out_dim": "out_channels",
    "vace_in_dim": "vace_in_channels",
}


class VaeConfig(ModelConfig):
    """AutoencoderKLWan's."""

    class_name: Literal["AutoencoderKLWan"] | None = Field(None, alias="_class_name")
    base_dim: int = Field(96, ge=1, le=1024)
    decoder_base_dim: int | None = Field(None, ge=1, le=1024)
    z_dim: Width = 16
    dim_mult: list[Annotated[int, Field(ge=1, le=64)]] = Field([1, 2, 4, 4], min_length=1, max_length=8)
    num_res_blocks: int = Field(2, ge=1, le=16)
    attn_scales: list[float] = Field([], max_length=8)
    temperal_downsample: list[bool] = [False, True, True]
    latents_mean: list[float] | None = None
    latents_std: list[Annotated[float, Field(gt=0)]] | None = None
    is_residual: bool = False
    in_channels: Width = 3
    out_channels: Width = 3
    patch_size: Width | None = None

    @model_validator(mode="after")
    def _lists_have_the_right_length(self) -> VaeConfig:
        if len(self.temperal_downsample) != len(self.dim_mult) - 1:
            raise ValueError("temperal_downsample must have one entry less than dim_mult")
        for name in ("latents_mean", "latents_std"):
            values = getattr(self, name)
            if values is not None and len(values) != self.z_dim:
                raise ValueError(f"{name} must have {self.z_dim} entries, as z_dim says")
        return self


class TextConfig(ModelConfig):
    """A UMT5 encoder's."""

    model_type: str | None = None
    vocab_size: Width | None = None
    d_model: Width | None = None
    d_kv: Width | None = None
    d_ff: Width | None = None
    num_layers: int | None = Field(None, ge=1, le=LAYERS)
    num_heads: int | None = Field(None, ge=1, le=1024)
    relative_attention_num_buckets: Width | None = None
    relative_attention_max_distance: Annotated[int, Field(ge=2, le=2**20)] | None = None
    layer_norm_epsilon: Epsilon | None = None
    feed_forward_proj: Literal["gated-gelu"] | None = None


def check_config(kind: type[C], values: Any, source: object) -> C:
    """The configuration that `values` state. Raises UserError that names `source` and the first wrong value."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        given = repr(first["input"]) if place else ""
        given = given if len(given) <= 80 else f"{given[:77]}..."
        named = f"{place} is {given}: " if place else ""
        raise UserError(f"{source}: {named}{first['msg']}; use the model's own configuration") from error


def check_agreement(config: ModelConfig, found: dict[str, Any], source: object) -> None:
    """Raises UserError when `config` states another number than the weights show (`found`)."""
    for name in type(config).model_fields:
        stated = getattr(config, name)
        if stated is not None and name in found and stated != found[name]:
            raise UserError(
                f"{source} says {name} {stated}, and the weights show {found[name]}; "
                "use weights and configuration of the same model"
            )


def count_layers(names: Iterable[str], pattern: re.Pattern, source: object) -> int:
    """How many layers the names have, which `pattern` finds with the number as its first group.

    Raises UserError when they are not numbered from 0 without a gap, or too many.
    """
    numbers = {int(match[1]) for name in names if (match := pattern.match(name))}
    if not numbers or len(numbers) <= max(numbers) or len(numbers) > LAYERS:
        raise UserError(
            f"{source} has {len(numbers)} layers, numbered up to {max(numbers, default=0)}; "
            f"1 to {LAYERS} without a gap are expected, so give a complete model"
        )
    return len(numbers)
