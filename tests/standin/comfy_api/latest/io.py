"""Schemas and nodes. An option that core does not know is an error here too."""

from __future__ import annotations

import copy
import inspect
from collections import Counter
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

NAMES = {
    "raw_link": "rawLink",
    "force_input": "forceInput",
    "dynamic_prompts": "dynamicPrompts",
    "display_mode": "display",
}
PLAIN = {"display_name", "optional", "tooltip", "lazy", "extra_dict", "raw_link", "advanced"}
WIDGET = PLAIN | {"default", "socketless"}
NUMBER = WIDGET | {"min", "max", "step", "display_mode", "force_input"}


class Input:
    """An input with the options in `ALLOWED`; every option is an attribute too."""

    IO_TYPE = ""
    ALLOWED = PLAIN

    def __init__(self, id: str, /, **options) -> None:
        if unknown := set(options) - self.ALLOWED:
            raise TypeError(f"{type(self).__qualname__} has no options {sorted(unknown)}")
        self.id, self.options = id, dict.fromkeys(self.ALLOWED) | {"optional": False} | options

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name not in self.__dict__.get("options", ()):
            raise AttributeError(name)
        return self.options[name]

    def as_dict(self) -> dict:
        given = {k: v for k, v in self.options.items() if k != "extra_dict" and v is not None}
        given |= self.options["extra_dict"] or {}
        return {NAMES.get(k, k): v.value if isinstance(v, Enum) else v for k, v in given.items()}

    def get_io_type(self) -> str:
        return self.IO_TYPE

    def get_all(self) -> list[Input]:
        return [self]


class Output:
    IO_TYPE = ""

    def __init__(
        self,
        id: str | None = None,
        display_name: str | None = None,
        tooltip: str | None = None,
        is_output_list: bool = False,
    ) -> None:
        self.id, self.display_name, self.tooltip, self.is_output_list = id, display_name or id, tooltip, is_output_list

    @property
    def io_type(self) -> str:
        return self.IO_TYPE


def _type(io_type: str, allowed: set[str] = PLAIN) -> type:
    """What node authors write as `io.<Name>`: with an `Input` and an `Output`."""
    given = type("Input", (Input,), {"IO_TYPE": io_type, "ALLOWED": allowed})
    taken = type("Output", (Output,), {"IO_TYPE": io_type})
    return type(io_type, (), {"io_type": io_type, "Input": given, "Output": taken})


def Custom(io_type: str) -> type:
    return _type(io_type)


Boolean = _type("BOOLEAN", WIDGET | {"label_on", "label_off", "force_input"})
Int = _type("INT", NUMBER | {"control_after_generate"})
Float = _type("FLOAT", NUMBER | {"round"})
String = _type("STRING", WIDGET | {"multiline", "placeholder", "dynamic_prompts", "force_input"})
Combo = _type("COMBO", WIDGET | {"options", "control_after_generate", "upload", "image_folder", "remote"})
Image, Mask, Latent, Conditioning = _type("IMAGE"), _type("MASK"), _type("LATENT"), _type("CONDITIONING")
Model, Vae, Clip, Video, LoraModel = _type("MODEL"), _type("VAE"), _type("CLIP"), _type("VIDEO"), _type("LORA_MODEL")
AnyType = _type("*")


class NumberDisplay(str, Enum):
    number = "number"
    slider = "slider"


class Hidden(str, Enum):
    unique_id = "UNIQUE_ID"
    prompt = "PROMPT"
    extra_pnginfo = "EXTRA_PNGINFO"
    dynprompt = "DYNPROMPT"


class Autogrow:
    """Slots of one kind, as many as are connected; a node receives them as a dictionary."""

    io_type = "COMFY_AUTOGROW_V3"

    class TemplatePrefix:
        def __init__(self, input: Input, prefix: str, min: int = 1, max: int = 10) -> None:
            assert min >= 0 and 1 <= max <= 100
            self.input, self.prefix, self.min, self.max = copy.copy(input), prefix, min, max
            self.names = [f"{prefix}{i}" for i in range(max)]

        def as_dict(self) -> dict:
            return {"input": _v1([self.input]), "prefix": self.prefix, "min": self.min, "max": self.max}

    class Input(Input):
        IO_TYPE = "COMFY_AUTOGROW_V3"
        ALLOWED = PLAIN - {"advanced", "raw_link"} | {"template"}

        def as_dict(self) -> dict:
            return super().as_dict() | {"template": self.template.as_dict()}


@dataclass
class Schema:
    node_id: str
    display_name: str | None = None
    category: str = "sd"
    inputs: list[Input] = field(default_factory=list)
    outputs: list[Output] = field(default_factory=list)
    hidden: list[Hidden] = field(default_factory=list)
    description: str = ""
    search_aliases: list[str] = field(default_factory=list)
    is_input_list: bool = False
    is_output_node: bool = False
    is_deprecated: bool = False
    is_experimental: bool = False
    not_idempotent: bool = False
    enable_expand: bool = False

    def validate(self) -> None:
        for what, ids in (("Input", [i.id for i in self.inputs]), ("Output", [o.id for o in self.outputs])):
            if twice := [i for i, count in Counter(ids).items() if count > 1]:
                raise ValueError(f"{what} ids must be unique, but {twice} are not.")

    def finalize(self) -> None:
        if self.is_output_node:
            self.hidden = list(dict.fromkeys([*self.hidden, Hidden.prompt, Hidden.extra_pnginfo]))
        for index, output in enumerate(self.outputs):
            output.id = output.id or f"_{index}_{output.io_type}_"


class NodeOutput:
    def __init__(self, *args: Any, ui=None, expand: dict | None = None, block_execution: str | None = None) -> None:
        self.args, self.ui, self.expand, self.block_execution = args, ui, expand, block_execution

    @property
    def result(self) -> tuple | None:
        return self.args or None


class _HiddenValues:
    def __init__(self, values: dict) -> None:
        self._values = values

    def __getattr__(self, name: str) -> Any:
        return self._values.get(Hidden[name]) if name in Hidden.__members__ else None


class _Function:
    """Which method the executor calls: `execute` behind a check of what it returns."""

    def __get__(self, _, cls) -> str:
        return "EXECUTE_NORMALIZED_ASYNC" if inspect.iscoroutinefunction(cls.execute) else "EXECUTE_NORMALIZED"


class ComfyNode:
    SCHEMA: Schema | None = None
    hidden: _HiddenValues | None = None
    FUNCTION = _Function()

    @classmethod
    def define_schema(cls) -> Schema:
        raise NotImplementedError

    @classmethod
    def execute(cls, **kwargs) -> NodeOutput:
        raise NotImplementedError

    @classmethod
    def validate_inputs(cls, **kwargs) -> bool | str:
        raise NotImplementedError

    @classmethod
    def fingerprint_inputs(cls, **kwargs) -> Any:
        raise NotImplementedError

    @classmethod
    def GET_SCHEMA(cls) -> Schema:
        schema = cls.define_schema()
        schema.finalize()
        schema.validate()
        cls.SCHEMA = schema
        return schema

    @classmethod
    def PREPARE_CLASS_CLONE(cls, v3_data: dict | None) -> type[ComfyNode]:
        return type(cls.__name__, (cls,), {"hidden": _HiddenValues((v3_data or {}).get("hidden_inputs", {}))})

    @classmethod
    def EXECUTE_NORMALIZED(cls, **kwargs) -> NodeOutput:
        return _normal(cls.execute(**kwargs))

    @classmethod
    async def EXECUTE_NORMALIZED_ASYNC(cls, **kwargs) -> NodeOutput:
        return _normal(await cls.execute(**kwargs))

    @classmethod
    def GET_NODE_INFO_V1(cls) -> dict:
        """The node's entry in `/object_info`, as far as the tests ask for it."""
        schema = cls.GET_SCHEMA()
        given = _v1(schema.inputs) | ({"hidden": {h.name: (h.value,) for h in schema.hidden}} if schema.hidden else {})
        return {
            "input": given,
            "input_order": {kind: list(inputs) for kind, inputs in given.items()},
            "output": [o.io_type for o in schema.outputs],
            "output_name": [o.display_name or o.io_type for o in schema.outputs],
            "output_tooltips": [o.tooltip for o in schema.outputs],
            "output_node": schema.is_output_node,
            "name": schema.node_id,
            "display_name": schema.display_name,
            "category": schema.category,
            "description": schema.description,
            "search_aliases": schema.search_aliases or None,
        }


def _normal(result: Any) -> NodeOutput:
    if result is None or isinstance(result, tuple):
        return NodeOutput(*result or ())
    if not isinstance(result, NodeOutput):
        raise TypeError(f"Invalid return type from node: {type(result)}")
    return result


def _v1(inputs: list[Input]) -> dict:
    kinds: dict = {"required": {}}
    for given in inputs:
        options = {k: v for k, v in given.as_dict().items() if k != "optional"}
        kinds.setdefault("optional" if given.optional else "required", {})[given.id] = (given.get_io_type(), options)
    return kinds
