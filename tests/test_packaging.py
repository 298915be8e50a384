"""What the pack promises to ComfyUI, to pip and to the registry."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

tomllib = pytest.importorskip("tomllib", reason="Python 3.10 has no tomllib")

SCRIPT = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("any name", sys.argv[1], submodule_search_locations=[])
door = importlib.util.module_from_spec(spec)
spec.loader.exec_module(door)
assert callable(door.comfy_entrypoint)
print(sorted(m for m in ("torch", "numpy", "comfy_api", "trainers") if m in sys.modules))
"""


@pytest.fixture(scope="module")
def project(repository) -> dict:
    return tomllib.loads((repository / "pyproject.toml").read_text())


def sources(folder: Path) -> list[tuple[Path, ast.Module]]:
    return [(path, ast.parse(path.read_text(encoding="utf-8"))) for path in sorted(folder.rglob("*.py"))]


def imported(tree: ast.Module) -> set[str]:
    """Top-level names that a module imports absolutely."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {name.name.split(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(node.module.split(".")[0])
    return found


def test_the_door_imports_nothing_and_needs_no_comfyui(repository):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, repository / "__init__.py"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_trainers_import_each_other_relatively_and_never_comfyui(repository):
    forbidden = {"trainers", "identity_grpo", "nodes", "comfy", "comfy_api", "comfy_extras", "folder_paths", "server"}
    wrong = {str(path): imported(tree) & forbidden for path, tree in sources(repository / "trainers")}
    assert {path: names for path, names in wrong.items() if names} == {}


def test_every_import_is_declared(project, repository):
    lines = project["project"]["dependencies"] + [
        d for e in project["project"]["optional-dependencies"].values() for d in e
    ]
    declared = {re.split(r"[<>=\[ ]", line)[0].lower() for line in lines}
    # transformers and diffusers bring these themselves, and a build without them would not run them.
    declared |= {"tokenizers", "huggingface-hub"}
    used = set().union(*(imported(tree) for _, tree in sources(repository / "trainers"))) - set(sys.stdlib_module_names)
    distributions = packages_distributions()
    optional = {"av", "ftfy", "flash_attn"}
    missing = {
        m for m in used - optional if not {d.lower().replace("_", "-") for d in distributions.get(m, [m])} & declared
    }
    assert missing == set()


def test_nothing_dangerous_is_called(repository):
    wrong = []
    for path, tree in sources(repository / "trainers") + sources(repository / "nodes"):
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call):
                continue
            name, keywords = ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}
            if name in ("eval", "exec", "os.system", "pickle.load", "pickle.loads") or name.endswith(".cuda"):
                wrong.append((path.name, name))
            if (name == "torch.load" and keywords.get("weights_only") != "True") or keywords.get("shell") == "True":
                wrong.append((path.name, name))
    assert wrong == []


def test_comfyui_owns_torch(repository):
    lines = (repository / "requirements.txt").read_text().splitlines()
    assert not [line for line in lines if re.match(r"(torch|numpy|comfyui-frontend-package)\b", line)]


def test_torch_is_not_pinned(project):
    assert "torch" in project["project"]["dependencies"]


def test_requirements_are_the_project_s_own(project, repository):
    wanted = [line for line in (repository / "requirements.txt").read_text().splitlines() if not line.startswith("#")]
    assert set(wanted) <= set(project["project"]["dependencies"])


def test_the_registry_finds_what_it_asks_for(project):
    comfy = project["tool"]["comfy"]
    assert comfy["PublisherId"] and comfy["DisplayName"] and comfy["requires-comfyui"] == ">=0.11.0"
    assert (
        re.fullmatch(r"[a-z][a-z0-9-]{0,99}", project["project"]["name"])
        and "comfyui" not in project["project"]["name"]
    )
    assert re.fullmatch(r"\d+\.\d+\.\d+", project["project"]["version"])
    assert any(d.startswith("comfyui-frontend-package>=") for d in project["project"]["dependencies"])


# What comfy-test's syntax level refuses in any Python file.
REFUSED = re.compile(
    r"\.cuda\s*\(|\.to\s*\(\s*(torch\.device\s*\(\s*)?[\"']cuda|torch\.(cuda\.amp\.|amp\.)?autocast\b"
    r"|(?<![\w.])(torch\.)?nn\.(Linear|Conv[123]d|ConvTranspose[12]d|LayerNorm|GroupNorm|Embedding)\s*\("
)


def python_files(repository: Path) -> list[Path]:
    folders = (repository / name for name in ("nodes", "trainers", "tests"))
    return [p for folder in folders for p in sorted(folder.rglob("*.py")) if p.name != Path(__file__).name]


def test_the_registrys_static_checks_pass(repository):
    lines = [
        (p.name, n, line)
        for p in python_files(repository)
        for n, line in enumerate(p.read_text(encoding="utf-8").splitlines(), 1)
    ]
    assert [found for found in lines if REFUSED.search(found[2])] == []


def test_a_console_of_windows_can_show_every_source(repository):
    def shown(text: str) -> bool:
        return text == text.encode("cp1252", "ignore").decode("cp1252")

    assert [str(p) for p in python_files(repository) if not shown(p.read_text(encoding="utf-8"))] == []


def test_comfy_test_is_given_a_workflow_that_users_get_but_for_its_notes(repository):
    given, shared = (
        json.loads((repository / "workflows" / name).read_text(encoding="utf-8"))
        for name in ("tests/two_people_without_notes.json", "2_vace_two_people.json")
    )
    assert given == shared | {"nodes": [node for node in shared["nodes"] if node["type"] != "MarkdownNote"]}
