"""The pack as ComfyUI loads it: in a real ComfyUI if this interpreter can run one, else in the stand-in.

Never both in one process. `COMFYUI_TESTS=real` or `stand-in` decides; without it the real one is used if possible.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import inspect
import os
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import comfy_host
from trainers.commands.comfyui import find_comfyui, missing_requirements

REPOSITORY = Path(__file__).parents[2]
STANDIN = REPOSITORY / "tests" / "standin"
WIDGETS = {"INT": int, "FLOAT": (int, float), "STRING": str, "BOOLEAN": bool, "COMBO": (str, int, float)}


class Refused(ValueError):
    """ComfyUI's refusal of a queued graph. `problems`: input and text of each error that it shows, in order."""

    def __init__(self, problems: list[tuple[str, str]]) -> None:
        super().__init__("; ".join(f"{name}: {text}" for name, text in problems))
        self.problems = problems


@dataclass(frozen=True)
class Linked:
    """A value that reaches a widget through a link: not known to `validate_inputs`, not checked by core."""

    value: Any


def pytest_report_header() -> str:
    return f"nodes are tested in {host() or 'the stand-in for ComfyUI (tests/standin)'}"


@cache
def host() -> Path | None:
    """The ComfyUI to be imported here; None for the stand-in."""
    wanted = os.environ.get("COMFYUI_TESTS")
    comfyui = None if wanted == "stand-in" else find_comfyui()
    lacking = missing_requirements(comfyui, Path(sys.executable)) if comfyui else []
    if wanted == "real" and (comfyui is None or lacking):
        raise pytest.UsageError(
            f"COMFYUI_TESTS=real, but {sys.executable} lacks {', '.join(lacking) or 'a ComfyUI folder'}"
        )
    return None if lacking else comfyui


def pytest_collection_modifyitems(config, items) -> None:
    """Tests that need the real ComfyUI are left to e2e/test_nodes_there.py, if that can run here."""
    if host() is None and comfy_host.tests_lack() is None:
        there = [i for i in items if "real_comfyui" in i.fixturenames]
        items[:] = [i for i in items if i not in there]
        config.hook.pytest_deselected(items=there)


@pytest.fixture(scope="session")
def comfyui(tmp_path_factory) -> Path | None:
    """ComfyUI's folder, its modules importable and its files in an empty base folder; None for the stand-in."""
    folder = host()
    # Before the checkout, whose folder `nodes` would hide ComfyUI's module of that name.
    sys.path.insert(0, str(folder or STANDIN))
    from comfy.cli_args import args

    args.cpu, args.base_directory = True, str(tmp_path_factory.mktemp("comfyui"))
    if folder:
        # As main.py does first: ComfyUI's nodes.py adds comfy/ to the path, whose utils.py would hide this package.
        importlib.import_module("utils.install_util")
    import server

    server.PromptServer(asyncio.new_event_loop())
    return folder


@pytest.fixture(scope="session")
def real_comfyui(comfyui) -> Path:
    """ComfyUI's folder, for tests that need core itself."""
    if comfyui is None:
        pytest.skip(f"needs the real ComfyUI: {comfy_host.tests_lack()}")
    return comfyui


@pytest.fixture(scope="session")
def pack(comfyui) -> SimpleNamespace:
    """The checkout loaded as package `identity_grpo`: `nodes` by id, `extension`, `UserError`, `Refused`, `Linked`."""
    spec = importlib.util.spec_from_file_location(
        "identity_grpo", REPOSITORY / "__init__.py", submodule_search_locations=[str(REPOSITORY)]
    )
    module = sys.modules["identity_grpo"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    async def load():
        extension = await module.comfy_entrypoint()
        await extension.on_load()
        return extension, await extension.get_node_list()

    extension, nodes = asyncio.run(load())
    return SimpleNamespace(
        module=module,
        extension=extension,
        nodes={n.GET_SCHEMA().node_id: n for n in nodes},
        UserError=importlib.import_module("identity_grpo.trainers.errors").UserError,
        Refused=Refused,
        Linked=Linked,
    )


@pytest.fixture(scope="module")
def two_held_out(pack):
    """Runs of TinyWorld's recipe measure two held-out items in place of 48."""
    presets = importlib.import_module("identity_grpo.trainers.config.presets").PRESETS
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(presets["tiny"]["evaluation"], "items", 2)
        yield


@pytest.fixture(scope="session")
def schema(pack):
    """`schema(node_id)`: the node's finished schema."""
    return lambda node_id: pack.nodes[node_id].GET_SCHEMA()


@pytest.fixture(scope="session")
def node_output(pack):
    """`node_output(node_id, **inputs)`: the result of one node, queued as core does: checks, fingerprint, execution.

    Required inputs that are left out take the default of their widget. Raises `pack.Refused` when core would not queue
    it.
    """

    def run(node_id: str, /, **inputs):
        node = pack.nodes[node_id]
        given = check(node, inputs)
        clone = node.PREPARE_CLASS_CLONE({"hidden_inputs": {}})
        with torch.inference_mode():
            result = getattr(clone, clone.FUNCTION)(**given)
            return asyncio.run(result) if inspect.isawaitable(result) else result

    return run


@pytest.fixture(scope="session")
def run_node(node_output):
    """`run_node(node_id, **inputs)`: the outputs of `node_output`, a tuple."""
    return lambda node_id, /, **inputs: node_output(node_id, **inputs).args


def check(node, inputs: dict) -> dict:
    """The inputs complete and checked as core checks them before it queues a graph (execution.validate_inputs).

    Raises Refused with every error that core would show.
    """
    declared = {i.id: i for i in node.GET_SCHEMA().inputs}
    if unknown := set(inputs) - set(declared):
        raise TypeError(f"{node.__name__} has no inputs {sorted(unknown)}")
    required = {name: given for name, given in declared.items() if not given.optional}
    inputs = {**{name: i for name in required if (i := default(required[name])) is not None}, **inputs}
    known = {
        name: value for name, value in inputs.items() if is_widget(declared[name]) and not isinstance(value, Linked)
    }
    judged = inspect.getfullargspec(node.validate_inputs).args if "validate_inputs" in overrides(node) else []
    groups = [name for name, given in declared.items() if given.get_io_type().startswith("COMFY_AUTOGROW")]
    problems: list[tuple[str, str]] = []
    for name, given in declared.items():
        if name not in inputs and not given.optional and name not in groups:
            problems.append((name, f"Required input is missing: {name}"))
        elif name in known:
            problems += ((name, text) for text in widget_problems(given, known[name], limits=name not in judged))
        elif name in groups:
            problems += missing_slots(given, inputs.get(name) or {})
    seen = {name: known.get(name) for name in inputs}
    # Core passes these whether they are named or not.
    slots = {name: dict.fromkeys(inputs.get(name) or {}) for name in groups}
    if judged:
        given = {name: value for name, value in seen.items() if name in judged and name not in groups}
        answer = node.validate_inputs(**given | slots)
        if answer is not True:
            problems += ((name, str(answer)) for name in given)
    if problems:
        raise Refused(problems)
    if "fingerprint_inputs" in overrides(node):
        node.fingerprint_inputs(**seen | slots)
    return {name: value.value if isinstance(value, Linked) else value for name, value in inputs.items()}


def overrides(node) -> set[str]:
    """Names of methods that the pack's own classes define."""
    return {name for base in node.__mro__ if base.__module__.startswith("identity_grpo.") for name in vars(base)}


def is_widget(given) -> bool:
    return given.get_io_type() in WIDGETS and not getattr(given, "force_input", None)


def default(given) -> Any:
    if not is_widget(given):
        return None
    options = given.as_dict()
    return options.get("default", next(iter(options.get("options", ())), None))


def widget_problems(given, value, limits: bool) -> list[str]:
    """What core has against a widget's value; `limits`: whether it checks range and options."""
    options, kind = given.as_dict(), given.get_io_type()
    if not isinstance(value, WIDGETS[kind]):
        return [f"Failed to convert an input value to a {kind} value: {given.id}"]
    if limits and "min" in options and value < options["min"]:
        return [f"Value {value} smaller than min of {options['min']}"]
    if limits and "max" in options and value > options["max"]:
        return [f"Value {value} bigger than max of {options['max']}"]
    if limits and kind == "COMBO" and value not in options["options"]:
        return [f"Value not in list: {given.id}: {value!r} not in {options['options']}"]
    return []


def missing_slots(given, slots: dict) -> list[tuple[str, str]]:
    template = given.template
    names = template.names if hasattr(template, "names") else [f"{template.prefix}{i}" for i in range(template.max)]
    if unknown := set(slots) - set(names):
        raise TypeError(f"{given.id} has no slots {sorted(unknown)}; it has {names}")
    return [
        (f"{given.id}.{name}", f"Required input is missing: {name}")
        for name in names[: template.min]
        if name not in slots
    ]
