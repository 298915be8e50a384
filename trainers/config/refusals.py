"""What a setting may be, and sentences about settings that cannot be used."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

LONGEST_VALUE = 60  # characters of a refused value that are shown


def fields(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Dotted names and fields of all settings below `model`, in their order; sections are entered, not listed."""
    for name, field in model.model_fields.items():
        section = section_of(field)
        if section is None or field.default is None:
            yield f"{prefix}{name}", field
        if section is not None:
            yield from fields(section, f"{prefix}{name}.")


def section_of(field: FieldInfo) -> type[BaseModel] | None:
    """The class of a field that is a section, such as `rollout` or the optional `evaluation.video`."""
    kinds = (field.annotation, *get_args(field.annotation))
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)


def allowed(field: FieldInfo) -> str:
    """What the setting may be: `integer from 1 to 1024`, `number above 0, at most 1`, `one of flow_sde, cps`."""
    return _allowed(field.annotation, field.metadata)


def explain(error: ValidationError, model: type[BaseModel]) -> str:
    """One sentence for every setting that was refused: its name, its value and what it may be; one a line."""
    return "\n  ".join(dict.fromkeys(_sentence(one, model) for one in error.errors(include_url=False)))


def _sentence(error: Any, model: type[BaseModel]) -> str:
    location = _named([part for part in error["loc"] if isinstance(part, str)], model)
    name = ".".join(location)
    if error["type"] == "extra_forbidden":
        return f"there is no setting `{name}`{_meant(location, model)}"
    field = _find(model, location)
    section = model if not location else field and section_of(field)
    if error["type"] == "value_error" and section is not None:
        return f"{name}: {error['ctx']['error']}" if name else str(error["ctx"]["error"])
    if field is None:
        return f"{name or 'the configuration'}: {error['msg']}"
    expected = "a section of settings" if section is not None else allowed(field)
    quote = "; put it in quotes" if error["type"] == "string_type" and error["input"] is not None else ""
    return f"{name} is {_shown(error['input'])}; expected: {expected}{quote}"


def _named(location: list[str], model: type[BaseModel] | None) -> list[str]:
    """The part of a location that names a setting: pydantic adds the alternatives of one that may be several things."""
    for count, name in enumerate(location, 1):
        field = model.model_fields.get(name) if model else None
        if field is not None and section_of(field) is None:
            return location[:count]
        model = section_of(field) if field is not None else None
    return location


def _meant(location: Sequence[str], model: type[BaseModel]) -> str:
    """The nearest names that exist, as the end of a sentence."""
    known = [name for name, _ in fields(model)]
    known += sorted({name.rpartition(".")[0] for name in known} - {""})
    near = get_close_matches(".".join(location), known, 1, 0.75)
    if not near:
        ends = {name.rpartition(".")[2] for name in known}
        end = get_close_matches(location[-1], ends, 1, 0.75)
        near = [name for name in known if end and name.rpartition(".")[2] == end[0]]
    return f"; did you mean {' or '.join(near)}?" if near else "; the command `settings` prints them all"


def _find(model: type[BaseModel], location: Sequence[str]) -> FieldInfo | None:
    field = None
    for name in location:
        if model is None or name not in model.model_fields:
            return None
        field = model.model_fields[name]
        model = section_of(field)
    return field


def _allowed(annotation: Any, metadata: Sequence[Any]) -> str:
    if get_origin(annotation) is Annotated:
        annotation, *inner = get_args(annotation)
        return _allowed(annotation, [*metadata, *inner])
    parts = get_args(annotation)
    if NoneType in parts:
        (kind,) = (part for part in parts if part is not NoneType)
        return f"{_allowed(kind, metadata)}, or null"
    if get_origin(annotation) is Literal:
        return f"one of {', '.join(map(str, parts))}" if len(parts) > 1 else str(parts[0])
    if get_origin(annotation) in (Union, UnionType):
        return " or ".join(_allowed(part, metadata) for part in parts)
    if get_origin(annotation) is tuple:
        return f"list of {len(parts)}, each {_allowed(parts[0], [])}"
    if get_origin(annotation) is list:
        return f"list, each {_allowed(parts[0], [])}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "section"
    if annotation is str and any(hasattr(limit, "pattern") for limit in _limits(metadata)):
        return "path"
    names = {bool: "true or false", int: "integer", float: "number", str: "text"}
    return f"{names[annotation]}{_range(metadata)}"


def _range(metadata: Sequence[Any]) -> str:
    """The limits among the metadata of a field, as the end of a phrase."""
    words = {"gt": "above", "ge": "from", "lt": "below", "le": "at most"}
    found = _limits(metadata)
    limits = {name: getattr(limit, name) for limit in found for name in words if hasattr(limit, name)}
    if {"ge", "le"} <= limits.keys():
        return f" from {_number(limits['ge'])} to {_number(limits['le'])}"
    return ",".join(f" {word} {_number(limits[name])}" for name, word in words.items() if name in limits)


def _limits(metadata: Sequence[Any]) -> list[Any]:
    return [limit for item in metadata for limit in (item.metadata if isinstance(item, FieldInfo) else [item])]


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:g}"


def _shown(value: Any) -> str:
    try:
        text = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    except ValueError:  # an integer of thousands of digits
        return "a number of thousands of digits"
    return f"`{text if len(text) <= LONGEST_VALUE else text[:LONGEST_VALUE] + '…'}`"
