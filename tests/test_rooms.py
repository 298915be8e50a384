"""The rooms (folders of `trainers/`, and its foundation): which may import which; no import runs in a circle.

Read from the sources by `ast`, so that imports inside functions and those for type checking count as well.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

# Lowest first. A room may import the rooms of lower lines, and nothing of its own line but itself.
ORDER = (
    "foundation",
    "pictures downloads",
    "prompts",
    "modelfiles",
    "lora",
    "policies tinyworld faces",
    "diffusion rewards",
    "memory runs preference scenes",
    "grpo",
    "bench parity tinyworld.making faces.making",
    "commands",
    "cli",
)
LEVELS = {room: level for level, line in enumerate(ORDER) for room in line.split()}
FOUNDATION = {"errors", "config", "files", "processes", "ranks", "weights"}
INNER_ROOMS = {("tinyworld", "making"), ("faces", "making")}
# Modules that only a ComfyUI process has. `nodes` is the pack's own folder and core's module of the same name.
COMFYUI = {
    "comfy",
    "comfy_api",
    "comfy_api_nodes",
    "comfy_execution",
    "comfy_extras",
    "comfyui_version",
    "execution",
    "folder_paths",
    "latent_preview",
    "node_helpers",
    "nodes",
    "server",
}
# Run by ComfyUI's interpreter in a process of its own.
COMFYUI_PROGRAM = "bench.peers.comfyui_program"

Graph = dict[str, set[str]]


def modules(folder: Path) -> dict[str, ast.Module]:
    """Parsed modules by dotted name below `folder`; a package is named by its folder, the folder itself by ``."""
    found = {}
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = ast.parse(path.read_text(encoding="utf-8"))
    return found


def relative_imports(folder: Path) -> Graph:
    """Which modules of `folder` each of them imports, anywhere in it; names outside `folder` begin with `..`."""
    trees = modules(folder)
    packages = {name for name in trees if (folder.joinpath(*name.split(".")) / "__init__.py").exists()} | {""}
    return {name: set(_targets(name, name in packages, tree, set(trees))) for name, tree in trees.items()}


def _targets(name: str, is_package: bool, tree: ast.Module, known: set[str]) -> Iterator[str]:
    here = name.split(".") if name else []
    package = here if is_package else here[:-1]
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom) or not node.level:
            continue
        climb = node.level - 1
        if climb > len(package):
            yield from (f"..{node.module or alias.name}" for alias in node.names)
            continue
        base = package[: len(package) - climb] + (node.module.split(".") if node.module else [])
        for alias in node.names:
            inner = ".".join([*base, alias.name])
            yield inner if inner in known else ".".join(base)


def absolute_imports(folder: Path) -> dict[str, set[str]]:
    """Top-level names that each module imports absolutely."""
    found = {}
    for name, tree in modules(folder).items():
        names = found[name] = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names.add(node.module.partition(".")[0])
    return found


def room(module: str) -> str:
    parts = tuple(module.split("."))
    if parts[:2] in INNER_ROOMS:
        return ".".join(parts[:2])
    if parts[0] == "__main__":
        return "cli"
    return "foundation" if parts[0] in FOUNDATION else parts[0]


def climbing(graph: Graph) -> list[str]:
    """Imports that do not go down; a room without a place in ORDER is one as well."""
    edges = [(a, b) for a, targets in sorted(graph.items()) for b in sorted(targets) if a and b[:2] not in ("", "..")]
    return [f"{a} imports {b}" for a, b in edges if room(a) != room(b) and not _goes_down(room(a), room(b))]


def _goes_down(upper: str, lower: str) -> bool:
    return upper in LEVELS and lower in LEVELS and LEVELS[lower] < LEVELS[upper]


def circles(graph: Graph) -> list[str]:
    """Every group of modules that import each other, directly or through others (Tarjan's components)."""
    order: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    found: list[str] = []

    def visit(name: str) -> None:
        order[name] = lowest[name] = len(order)
        stack.append(name)
        for target in sorted(graph.get(name, ())):
            if target not in order:
                visit(target)
                lowest[name] = min(lowest[name], lowest[target])
            elif target in stack:
                lowest[name] = min(lowest[name], order[target])
        if lowest[name] == order[name]:
            members = stack[stack.index(name) :]
            del stack[stack.index(name) :]
            if len(members) > 1 or name in graph.get(name, ()):
                found.append(" <-> ".join(sorted(members)))

    for name in sorted(graph):
        if name not in order:
            visit(name)
    return found


def named(found: dict[str, Iterable[str]]) -> dict[str, list[str]]:
    return {name: sorted(names) for name, names in found.items() if names}


# --- the checkout ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["trainers", "nodes"])
def graph(request, repository) -> Graph:
    return relative_imports(repository / request.param)


def test_no_import_runs_in_a_circle(graph):
    assert circles(graph) == []


def test_no_import_climbs_from_a_room_to_one_above_it(repository):
    assert climbing(relative_imports(repository / "trainers")) == []


def test_the_order_has_every_room(repository):
    rooms = {room(name) for name in modules(repository / "trainers") if name}
    assert rooms == set(LEVELS)


def test_trainers_import_nothing_of_the_nodes_and_nothing_of_comfyui(repository):
    graph = relative_imports(repository / "trainers")
    assert named({name: {t for t in targets if t.startswith("..")} for name, targets in graph.items()}) == {}
    names = absolute_imports(repository / "trainers")
    assert names.pop(COMFYUI_PROGRAM) >= {"comfy"}
    forbidden = COMFYUI | {"trainers", "identity_grpo"}
    assert named({name: found & forbidden for name, found in names.items()}) == {}


def test_the_program_for_comfyuis_interpreter_is_apart(repository):
    graph = relative_imports(repository / "trainers")
    assert not graph[COMFYUI_PROGRAM]
    assert [name for name, targets in graph.items() if COMFYUI_PROGRAM in targets] == []


def test_the_door_imports_comfyui_only_through_the_nodes(repository):
    tree = ast.parse((repository / "__init__.py").read_text(encoding="utf-8"))
    imports = [n for n in ast.walk(tree) if isinstance(n, (ast.Import, ast.ImportFrom))]
    assert {ast.unparse(n) for n in imports} == {
        "from __future__ import annotations",
        "from .nodes import IdentityGrpoExtension",
    }


def test_nodes_do_not_use_the_command_line_or_the_golden_cases(repository):
    """A node calls the engine as the command line does, not through it."""
    graph = relative_imports(repository / "nodes")
    above = ("..trainers.commands", "..trainers.cli", "..trainers.parity", "..trainers.tinyworld.making")
    assert named({name: {t for t in targets if t.startswith(above)} for name, targets in graph.items()}) == {}


# --- the test itself -------------------------------------------------------------------------------------------------

MADE_UP = {
    "__init__.py": "",
    "errors.py": "",
    "lora/__init__.py": "",
    "lora/names.py": "from ..errors import UserError",
    "lora/formats.py": "def read():\n    from ..policies.wan import NAMES",
    "policies/__init__.py": "",
    "policies/wan.py": "from ..lora import names\nfrom ..lora.formats import read",
    "grpo/__init__.py": "",
    "grpo/trainer.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from ..commands.train import main",
    "commands/__init__.py": "",
    "commands/train.py": "import comfy.utils\nfrom ... import nodes\nfrom ..grpo import trainer",
}


@pytest.fixture
def made_up(tmp_path) -> Path:
    for name, text in MADE_UP.items():
        path = tmp_path / "trainers" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return tmp_path / "trainers"


def test_a_circle_is_found_inside_functions_and_type_checking_too(made_up):
    assert circles(relative_imports(made_up)) == [
        "commands.train <-> grpo.trainer",
        "lora.formats <-> policies.wan",
    ]


def test_a_climbing_import_is_found(made_up):
    assert climbing(relative_imports(made_up)) == [
        "grpo.trainer imports commands.train",
        "lora.formats imports policies.wan",
    ]


def test_a_room_without_a_place_in_the_order_is_found(made_up):
    (made_up / "attic").mkdir()
    (made_up / "attic" / "box.py").write_text("from ..errors import UserError", encoding="utf-8")
    assert "attic.box imports errors" in climbing(relative_imports(made_up))


def test_imports_of_the_nodes_and_of_comfyui_are_found(made_up):
    assert "..nodes" in relative_imports(made_up)["commands.train"]
    assert "comfy" in absolute_imports(made_up)["commands.train"]
