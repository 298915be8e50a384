"""What the pack promises to ComfyUI, to pip and to the registry."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from trainers.downloads import catalog

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


def test_the_door_imports_nothing_and_needs_no_comfyui(repository):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, repository / "__init__.py"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


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


# What ComfyUI installs itself: a pack that asks for it may replace the user's build.
COMFYUIS = {
    "torch",
    "numpy",
    "pillow",
    "pydantic",
    "pyyaml",
    "psutil",
    "tqdm",
    "filelock",
    "safetensors",
    "sentencepiece",
    "comfyui-frontend-package",
}


def test_requirements_are_the_dependencies_that_comfyui_does_not_have(project, repository):
    lines = (repository / "requirements.txt").read_text().splitlines()
    asked = {line for line in lines if not line.startswith("#")}
    dependencies = project["project"]["dependencies"]
    assert asked == {line for line in dependencies if re.match(r"[\w-]+", line)[0] not in COMFYUIS}


def test_torch_is_not_pinned(project):
    assert "torch" in project["project"]["dependencies"]


RAW = "https://raw.githubusercontent.com/identity-grpo/comfyui-identity-grpo"


def test_the_registry_finds_what_it_asks_for(project, repository):
    comfy = project["tool"]["comfy"]
    assert comfy["PublisherId"] and comfy["DisplayName"] and comfy["requires-comfyui"] == ">=0.11.0"
    assert (
        re.fullmatch(r"[a-z][a-z0-9-]{0,99}", project["project"]["name"])
        and "comfyui" not in project["project"]["name"]
    )
    assert re.fullmatch(r"\d+\.\d+\.\d+", project["project"]["version"])
    assert any(d.startswith("comfyui-frontend-package>=") for d in project["project"]["dependencies"])
    for name in ("Icon", "Banner"):
        address = comfy[name].removeprefix(f"{RAW}/main/")
        assert address != comfy[name] and (repository / address).is_file()
    urls = project["project"]["urls"]
    assert {"Repository", "Issues", "Documentation"} <= set(urls)
    assert all(url.startswith("https://") for url in urls.values())


def test_icon_and_banner_have_the_shapes_of_the_registrys_cards(repository):
    from PIL import Image

    with Image.open(repository / "web" / "icon.png") as icon, Image.open(repository / "web" / "banner.png") as banner:
        assert icon.width == icon.height <= 400
        assert abs(banner.width / banner.height - 21 / 9) < 0.01


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
        for name in ("tests/two_people_without_notes.json", "02_two_people_with_vace.app.json")
    )
    assert given == shared | {"nodes": [node for node in shared["nodes"] if node["type"] != "MarkdownNote"]}


def test_the_templates_name_the_files_that_fetch_downloads(repository):
    texts = [path.read_text(encoding="utf-8") for path in sorted((repository / "workflows").glob("*.json"))]
    named = {url for text in texts for url in re.findall(r'"url": "([^"]+)"', text)}
    assert named == {catalog.VACE.url, catalog.PHANTOM.url, catalog.TEXT_ENCODER.url, catalog.VAE.url}


# --- the wheel -------------------------------------------------------------------------------------------------------


def test_every_folder_of_code_is_a_package_of_the_wheel(project, repository):
    folders = [path.parent.relative_to(repository) for path in (repository / "trainers").rglob("__init__.py")]
    names = sorted(".".join(("identity_grpo", *folder.parts[1:])) for folder in folders)
    assert project["tool"]["setuptools"]["packages"] == names


@pytest.fixture(scope="module")
def wheel(repository, tmp_path_factory) -> Path:
    """Built from a copy, so that nothing is left in the checkout."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(repository / name, source)
    shutil.copytree(repository / "trainers", source / "trainers", ignore=shutil.ignore_patterns("__pycache__"))
    pip("wheel", "--no-build-isolation", "--wheel-dir", out, source)
    return next(out.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """The folder of programs of a fresh environment that has the wheel; dependencies are this environment's."""
    folder = tmp_path_factory.mktemp("environment")
    builder = venv.EnvBuilder(symlinks=os.name != "nt")
    builder.create(folder)
    found = builder.ensure_directories(folder)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)}))
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"), encoding="utf-8")
    pip("--python", found.env_exe, "install", "--no-compile", wheel)
    return Path(found.bin_path)


def pip(*words: str | Path) -> None:
    words = [str(word) for word in words]
    command = next(i for i, word in enumerate(words) if word in ("wheel", "install"))
    words[command + 1 : command + 1] = ["--quiet", "--no-deps", "--no-index"]
    done = subprocess.run([sys.executable, "-m", "pip", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def call(*words: str | Path, cwd: Path, code: int = 0) -> str:
    """What a program of the fresh environment prints, called from a folder that knows nothing of the checkout."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr


def test_the_wheel_holds_one_package_with_the_weights_of_tinyworld(wheel, repository):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"identity_grpo"}
    weights = repository / "trainers" / "tinyworld" / "weights"
    committed = {path.relative_to(weights).as_posix() for path in weights.rglob("*") if path.is_file()}
    start = "identity_grpo/tinyworld/weights/"
    assert {name.removeprefix(start) for name in names if name.startswith(start)} == committed
    assert "identity_grpo/rewards/instruction.json" in names


@pytest.mark.parametrize("module", [False, True], ids=["identity-grpo", "python -m identity_grpo"])
def test_the_installed_program_answers_and_calls_itself_by_its_name(installed, tmp_path, module):
    words = [installed / "python", "-m", "identity_grpo"] if module else [installed / "identity-grpo"]
    assert "no runs in" in call(*words, "runs", cwd=tmp_path)
    name = "python -m identity_grpo" if module else "identity-grpo"
    assert call(*words, "--help", cwd=tmp_path).startswith(f"usage: {name} ")


def test_the_installed_program_has_no_pack_for_comfyui(installed, tmp_path):
    assert "get the repository" in call(installed / "identity-grpo", "comfyui", cwd=tmp_path, code=2)


START = """
import sys
from pathlib import Path
from identity_grpo.config import make_config
from identity_grpo.runs.folder import RunFolder
from identity_grpo.runs.launcher import start

run = RunFolder.create(Path("runs"), make_config("tiny", {"policy": {"source": "no-such-model"}}))
start(run).wait(120)
assert "trainers" not in sys.modules
print(run.status().state, run.status().last_error)
"""


def test_a_run_of_the_installed_program_finds_its_own_code(installed, tmp_path):
    """Its process gets as far as the model that is missing."""
    state, _, error = call(installed / "python", "-c", START, cwd=tmp_path).partition(" ")
    assert state == "failed" and "no-such-model" in error
