"""The stand-in has no name and no parameter that ComfyUI does not have: its sources are compared with the real one."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import importlib.util
import inspect
from pathlib import Path

import pytest

STANDIN = Path(__file__).parents[1] / "standin"
FILES = sorted(STANDIN.rglob("*.py"))


def real(path: Path):
    """ComfyUI's module of the same name."""
    name = ".".join(path.relative_to(STANDIN).with_suffix("").parts).removesuffix(".__init__")
    if name.startswith("comfy_api.latest."):
        return getattr(importlib.import_module("comfy_api.latest"), name.rpartition(".")[2])
    return importlib.import_module(name)


def public(body: list[ast.stmt]) -> list[ast.stmt]:
    return [
        n
        for n in body
        if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) and not n.name.startswith("_")
    ]


def parameters(function: ast.FunctionDef) -> list[str]:
    return [a.arg for a in (*function.args.posonlyargs, *function.args.args) if a.arg not in ("self", "cls")]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(STANDIN)))
def test_every_public_name_is_core_s_and_takes_the_same(real_comfyui, path):
    module = real(path)
    for node in public(ast.parse(path.read_text(encoding="utf-8")).body):
        theirs = getattr(module, node.name)
        methods = (
            [n for n in public(node.body) if isinstance(n, ast.FunctionDef)] if isinstance(node, ast.ClassDef) else []
        )
        for function, found in [(m, getattr(theirs, m.name)) for m in methods] or [(node, theirs)]:
            if isinstance(function, ast.FunctionDef) and not isinstance(found, property):
                known = inspect.signature(found).parameters
                wild = any(p.kind == p.VAR_KEYWORD for p in known.values())
                assert wild or set(parameters(function)) <= set(known), (node.name, function.name, list(known))


def test_inputs_take_no_more_than_core_s(real_comfyui):
    spec = importlib.util.spec_from_file_location("standin_io", STANDIN / "comfy_api" / "latest" / "io.py")
    ours = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(importlib.sys.modules, "standin_io", ours)
        spec.loader.exec_module(ours)
    theirs = real(STANDIN / "comfy_api" / "latest" / "io.py")
    compared = {name: kind.Input for name, kind in vars(ours).items() if hasattr(kind, "Input") and name != "Input"}
    assert len(compared) > 10
    for name, given in compared.items():
        known = inspect.signature(getattr(theirs, name).Input.__init__).parameters
        assert set(known) >= given.ALLOWED, (name, given.ALLOWED - set(known))
        assert getattr(theirs, name).io_type == given.IO_TYPE
    assert {f.name for f in dataclasses.fields(ours.Schema)} <= {f.name for f in dataclasses.fields(theirs.Schema)}
