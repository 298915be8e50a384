"""The JSON files of a reward and of its base model, validated before anything is loaded."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from ..errors import UserError
from .geometry import MAX_PIXELS, SIDE

LARGEST_FILE = 16 * 2**20  # bytes; Qwen's tokenizer.json has 11 million, the others a few thousand
SHOWN = 60  # characters of a wrong value that a message repeats

Size = Annotated[int, Field(ge=1, le=2**20)]
Layers = Annotated[int, Field(ge=1, le=512)]
Epsilon = Annotated[float, Field(gt=0, lt=0.01)]
Theta = Annotated[float, Field(ge=100, le=1e10)]  # Qwen2.5-VL has 1e6
LARGEST_SCALE = 64  # alpha / r


class File(BaseModel):
    """Known keys have the right types, without conversion; unknown keys are kept."""

    model_config = ConfigDict(strict=True, frozen=True, extra="allow", protected_namespaces=())


T = TypeVar("T", bound=File)


class DataSection(File):
    """How clips were prepared when the reward was trained. Fixed values are those that the score is computed with."""

    num_frames: Annotated[float, Field(ge=1, le=1024)] = 5.0
    max_frame_pixels: Annotated[int, Field(ge=SIDE * SIDE, le=2**26)] = MAX_PIXELS
    fps: None = None
    sample_type: Literal["uniform"] = "uniform"
    prompt_template_type: Literal["subject_alignment_special"] = "subject_alignment_special"


class ModelSection(File):
    """The base model, the parts of it that were trained in full, and the kind of head."""

    model_name_or_path: Annotated[str, Field(max_length=500)] | None = None
    freeze_vision_tower: bool = True
    tune_merger: bool = False
    output_dim: Literal[1] = 1
    reward_token: Literal["special"] = "special"

    @field_validator("model_name_or_path")
    @classmethod
    def _on_this_machine(cls, name: str | None) -> str | None:
        # Windows sends the user's credentials to another machine as soon as a folder of it is opened.
        if name and name.replace("\\", "/").startswith("//"):
            raise ValueError("a folder on another machine must be given as base_model")
        return name


class AdapterFile(File):
    """`adapter_config.json` of a plain LoRA."""

    peft_type: Literal["LORA"]
    r: Annotated[int, Field(ge=1, le=2**16)]
    lora_alpha: Annotated[float, Field(gt=0, le=2**16)]
    target_modules: list[str] | str | None = None

    @model_validator(mode="after")
    def _plain(self) -> AdapterFile:
        kinds = ("use_dora", "use_rslora", "use_qalora", "rank_pattern", "alpha_pattern", "fan_in_fan_out")
        if special := [name for name in (*kinds, "layer_replication") if (self.model_extra or {}).get(name)]:
            raise ValueError(f"uses {', '.join(special)}, which identity rewards do not have")
        if self.scale > LARGEST_SCALE:
            raise ValueError(f"lora_alpha {self.lora_alpha:g} is more than {LARGEST_SCALE} times the rank {self.r}")
        return self

    @property
    def scale(self) -> float:
        """alpha / r."""
        return self.lora_alpha / self.r


class LoraSection(File):
    """The LoRA that the reward was trained with, where there is no `adapter_config.json`."""

    lora_r: Annotated[int, Field(ge=1, le=2**16)]
    lora_alpha: Annotated[float, Field(gt=0, le=2**16)]
    use_rslora: Literal[False] = False


class RewardFile(File):
    """`model_config.json`."""

    data: DataSection = Field(DataSection(), alias="data_config")
    model: ModelSection = Field(ModelSection(), alias="model_config")

    def adapter(self, source: Path) -> AdapterFile | None:
        """What an `adapter_config.json` of this training would say; None where `peft_lora_config` is missing.

        `source` is for the message. Raises UserError when that section is invalid.
        """
        section = (self.model_extra or {}).get("peft_lora_config")
        if section is None:
            return None
        try:
            lora = LoraSection.model_validate(section)
            return AdapterFile(peft_type="LORA", r=lora.lora_r, lora_alpha=lora.lora_alpha)
        except ValidationError as error:
            raise UserError(f"{source}, peft_lora_config: {_first_problem(error)}; use the reward's own file") from None


class Rope(File):
    mrope_section: Annotated[list[Size], Field(min_length=3, max_length=3)] | None = None
    rope_theta: Theta | None = None
    type: Literal["mrope", "default"] | None = None
    rope_type: Literal["mrope", "default"] | None = None


class TextSection(File):
    """Sizes of the language model. What is absent has transformers' default."""

    hidden_size: Size | None = None
    intermediate_size: Size | None = None
    num_hidden_layers: Layers | None = None
    num_attention_heads: Size | None = None
    num_key_value_heads: Size | None = None
    vocab_size: Annotated[int, Field(ge=1, le=2**24)] | None = None
    hidden_act: Literal["silu"] | None = None
    rms_norm_eps: Epsilon | None = None
    rope_theta: Theta | None = None
    use_sliding_window: Literal[False] | None = None
    rope_scaling: Rope | None = None
    rope_parameters: Rope | None = None

    @model_validator(mode="after")
    def _heads_fit(self) -> TextSection:
        width, heads = self.hidden_size, self.num_attention_heads
        if width and heads and width % heads:
            raise ValueError(f"hidden_size {width} is not a multiple of num_attention_heads {heads}")
        if heads and self.num_key_value_heads and heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads {heads} is not a multiple of num_key_value_heads {self.num_key_value_heads}"
            )
        return self


class VisionSection(File):
    """Sizes of the vision tower; the patches are those that `pixels` makes."""

    depth: Layers | None = None
    hidden_size: Size | None = None
    intermediate_size: Size | None = None
    out_hidden_size: Size | None = None
    num_heads: Size | None = None
    hidden_act: Literal["silu"] | None = None
    window_size: Annotated[int, Field(ge=SIDE, le=2**16)] | None = None
    fullatt_block_indexes: list[int] | None = None
    tokens_per_second: Annotated[float, Field(ge=0.1, le=100)] | None = None
    patch_size: Literal[14] = 14
    spatial_merge_size: Literal[2] = 2
    temporal_patch_size: Literal[2] = 2
    in_channels: Literal[3] = 3

    @model_validator(mode="after")
    def _heads_fit(self) -> VisionSection:
        if self.hidden_size and self.num_heads and self.hidden_size % (4 * self.num_heads):
            raise ValueError(f"hidden_size {self.hidden_size} is not a multiple of 4 num_heads {self.num_heads}")
        beyond = [i for i in self.fullatt_block_indexes or [] if not 0 <= i < (self.depth or i + 1)]
        if beyond:
            raise ValueError(f"fullatt_block_indexes has {beyond[0]}, and the tower {self.depth} blocks")
        return self


class BaseFile(TextSection):
    """`config.json` of a Qwen2.5-VL; newer versions of transformers put the sizes into `text_config`."""

    model_type: Literal["qwen2_5_vl"]
    text_config: TextSection | None = None
    vision_config: VisionSection | None = None
    quantization_config: None = None

    @model_validator(mode="after")
    def _rope_fits(self) -> BaseFile:
        sections = [section for section in (self.text_config, self) if section]
        width, heads = (
            next((getattr(section, name) for section in sections if getattr(section, name)), None)
            for name in ("hidden_size", "num_attention_heads")
        )
        ropes = [rope for section in sections for rope in (section.rope_parameters, section.rope_scaling) if rope]
        splits = [rope.mrope_section for rope in ropes if rope.mrope_section]
        if not splits:
            raise ValueError("rope_scaling has no mrope_section")
        if width and heads and any(2 * sum(split) != width // heads for split in splits):
            raise ValueError(f"mrope_section {splits[0]} does not add up to half of a head's {width // heads}")
        made = self.vision_config and self.vision_config.out_hidden_size
        if width and made and made != width:
            raise ValueError(f"vision_config.out_hidden_size {made} is not the language model's hidden_size {width}")
        return self


class BytePairModel(BaseModel):
    """Byte-level BPE as Qwen's. Dropout would make the ids random; prefixes make the tokenizers library crash."""

    type: Literal["BPE"] = "BPE"
    dropout: None = None
    continuing_subword_prefix: Literal[""] | None = None
    end_of_word_suffix: Literal[""] | None = None


class TokenizerFile(File):
    """`tokenizer.json`, which the tokenizers library checks for the rest."""

    model: BytePairModel


def read_config_file(path: Path, kind: type[T], remedy: str) -> T:
    """The content of a JSON file. Raises UserError, which ends with `remedy`, for one that is missing or invalid."""
    try:
        # Never a pipe or a device: reading those need not end.
        if not path.is_file():
            raise UserError(f"{path} is missing; {remedy}")
        if os.path.getsize(path) > LARGEST_FILE:
            raise UserError(f"{path} is larger than {LARGEST_FILE >> 20} MiB, which no such file is; {remedy}")
        return kind.model_validate_json(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}); {remedy}") from None
    except ValidationError as error:
        raise UserError(f"{path}: {_first_problem(error)}; {remedy}") from None


def _first_problem(error: ValidationError) -> str:
    problem: dict[str, Any] = dict(error.errors(include_url=False)[0])
    place = ".".join(map(str, problem["loc"]))
    message = problem["msg"].removeprefix("Value error, ")
    if not place or problem["type"] in ("missing", "json_invalid"):
        return f"`{place}` is missing" if problem["type"] == "missing" else message
    value = repr(problem["input"])
    return f"`{place}` is {value if len(value) <= SHOWN else value[:SHOWN] + '…'}: {message}"
