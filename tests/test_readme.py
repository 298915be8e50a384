"""README and the pages beside it: every command parses, fits its settings and runs; everything they name is there."""

from __future__ import annotations

import ast
import re
import shlex
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from trainers.cli import COMMANDS, main, make_parser
from trainers.commands.options import config_from, parse_settings
from trainers.commands.settings import page
from trainers.config import RECIPES, make_config
from trainers.pictures.clips import write_animation
from trainers.runs.claims import enter, leave
from trainers.runs.folder import RunFolder
from trainers.runs.registry import latest

REPOSITORY = Path(__file__).parents[1]
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "web" / "docs").glob("*.md"))]
TEXTS = {path.relative_to(REPOSITORY).as_posix(): path.read_text(encoding="utf-8") for path in PAGES}
README = TEXTS["README.md"]

PROGRAM = "python -m trainers "
# What makes a command of the README small. The last of two equal options counts.
TINY = {
    "train": [
        *("--preset", "tiny", "--iterations", "1", "--held-out", "2"),
        *("--set", "rollout={steps: 3, group_size: 2, groups_per_update: 2, window: {kind: random, size: 1, last: 2}}"),
        *("--set", "lora={rank: 2, alpha: 2}", "--set", "evaluation={items: 2, steps: 2}"),
        *("--set", "video={height: 16, width: 16, frames: 5}"),
    ],
    "sample": ["--preset", "tiny", "--height", "16", "--width", "16", "--frames", "5", "--steps", "2"],
    "bench": ["--phases", "text", "--repeats", "1"],
}
LONG = (
    "demo",
    "proof",
    "comfyui",
    "verify",
    "faces",
    "reward",
    "fetch",
    "scaling",
)  # tested in tests/trainers; here they are parsed only


BLOCK = re.compile(r"^```\w*\n(.*?)^```", re.MULTILINE | re.DOTALL)


def fenced(text: str) -> list[str]:
    """Lines of the code blocks."""
    return [line for block in BLOCK.findall(text) for line in block.splitlines()]


def spans(text: str) -> list[str]:
    """Inline code."""
    return re.findall(r"`([^`\n]+)`", BLOCK.sub("", text))


def commands(text: str) -> list[list[str]]:
    """The words of every command of our program, in code blocks and inline."""
    lines = [line for line in (*fenced(text), *spans(text)) if line.startswith(PROGRAM)]
    return [shlex.split(line.removeprefix(PROGRAM), comments=True) for line in lines]


ALL = [(place, words) for place, text in TEXTS.items() for words in commands(text)]


@pytest.mark.parametrize("place, words", ALL, ids=[" ".join(words)[:60] for _, words in ALL])
def test_every_command_parses_and_its_settings_fit_each_other(place, words):
    options = make_parser(words).parse_args(words)
    if words[0] in ("train", "sample"):
        config_from(options)


def test_most_commands_are_shown():
    assert {words[0] for _, words in ALL} >= set(COMMANDS) - {"demo", "comfyui"}  # `make` has these two


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_setting_named_alone_is_possible_in_every_recipe(recipe):
    named = [
        shlex.split(span)[1:]
        for text in TEXTS.values()
        for span in spans(text)
        if span.startswith("--set ") and "NAME" not in span
    ]
    assert named
    for settings in named:
        make_config(recipe, parse_settings(settings))


def test_every_option_named_alone_exists():
    known = {option for name in COMMANDS for option in _options(name)}
    named = {word for span in spans(README) if span.startswith("--") for word in span.split() if word.startswith("--")}
    assert named and named <= known


def _options(name: str) -> list[str]:
    parser = make_parser([name])._subparsers._group_actions[0].choices[name]
    return [option for action in parser._actions for option in action.option_strings]


def test_make_has_the_targets():
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([\w-]+):", makefile, re.MULTILINE))
    named = {
        line.split()[1] for text in TEXTS.values() for line in (*fenced(text), *spans(text)) if line[:5] == "make "
    }
    assert {"demo", "test", "lint", "comfyui", "venv"} <= named <= targets


@pytest.mark.parametrize("place", TEXTS)
def test_links_and_pictures_are_there(place):
    targets = [t for t in re.findall(r"\]\(([^)\s]+)\)", TEXTS[place].replace("\n", " ")) if "://" not in t]
    assert [t for t in targets if not ((REPOSITORY / place).parent / t.partition("#")[0]).exists()] == []


def test_files_of_the_checkout_are_there():
    named = [s for s in spans(README) if re.match(r"(trainers|nodes|web|workflows|tests|\.ci)(/|$)", s)]
    assert len(named) > 10
    assert [s for s in named if not (REPOSITORY / s).exists()] == []


def test_the_table_of_nodes_is_that_of_the_editor():
    found = set()
    for path in (REPOSITORY / "nodes").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            keywords = {k.arg: k.value for k in node.keywords} if isinstance(node, ast.Call) else {}
            if "node_id" in keywords and isinstance(keywords.get("display_name"), ast.Constant):
                found.add(keywords["display_name"].value)
    table = README.partition("| node | does |")[2].partition("\n\n")[0]
    named = {name.strip() for row in table.splitlines()[2:] for name in row.split("|")[1].split(",")}
    assert named == found


def test_the_page_of_settings_is_made_from_the_configuration():
    """Make it anew with `python -m trainers settings --markdown > web/docs/settings.md`."""
    assert TEXTS["web/docs/settings.md"].rstrip() == page().rstrip()


# --- the commands themselves -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(small_models, tmp_path_factory) -> Path:
    """A folder with the files that the README names, and the run that its `train` command makes there."""
    folder = tmp_path_factory.mktemp("readme")
    models = Path(small_models["prompts"]).parent
    shutil.copytree(models / "policy", folder / "WAN_FOLDER")
    shutil.copytree(small_models["reward"]["source"], folder / "REWARD_FOLDER")
    shutil.copytree(small_models["reward"]["base_model"], folder / "QWEN_FOLDER")
    for picture in models.glob("face*.png"):
        shutil.copy(picture, folder)
    shutil.copy(small_models["prompts"], folder / "people.csv")
    shutil.copy(folder / "face0.png", folder / "anna.png")
    shutil.copy(folder / "face1.png", folder / "ben.png")
    (folder / "PORTRAITS").mkdir()
    for number in range(4):
        shutil.copy(folder / "face0.png", folder / "PORTRAITS" / f"{number}.png")
    (folder / "scenes.txt").write_text("{people} walk\n{people} dance", encoding="utf-8")
    frames = np.random.default_rng(0).integers(0, 255, (5, 16, 16, 3), np.uint8)
    for name in ("a", "b"):
        write_animation(frames, folder / f"{name}.webp", 10)
    (train,) = (words for words in commands(README) if words[0] == "train")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main([*train, *TINY["train"]]) == 0
    shutil.copy(latest(folder / "runs").newest().path, folder / "LORA.safetensors")
    return folder


RUN = [words for words in commands(README) if words[0] not in ("train", *LONG)]
PRINTS = {
    "settings": "rollout.steps",
    "sample": ".webp",
    "inspect": "LoRA for ",
    "convert": "written as",
    "prompts": "made.csv: 1 rows of 2 people",
    "score": "preferred: ",
    "runs": "tiny-",
    "resume": "finished after 1 of 1",
    "evaluate": "base policy",
    "bench": "encode text",
}


@contextmanager
def ready_for(run: RunFolder, command: str) -> Iterator[None]:
    """Within the block this process trains the run, or waits for its device, where the command asks for that."""
    status, claim = run.status(), None
    if command in ("runs save", "runs sample"):
        run.set_status(state="running")
    if command in ("runs queue", "runs move"):
        claim = enter(run.path, ["cpu"])
    yield
    if claim:
        leave(claim)
    if command in ("runs save", "runs sample"):
        run.set_status(state=status.state, pid=status.pid, pid_started=status.pid_started)


@pytest.mark.parametrize("words", RUN, ids=[" ".join(words)[:60] for words in RUN])
def test_every_command_runs(folder, words, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    run: RunFolder = latest(folder / "runs")
    if words[0] == "resume":
        run.set_status(state="stopped")
    words = [run.id if word == "RUN" else word for word in words]
    with ready_for(run, " ".join(words[:2])):
        assert main([*words, *TINY.get(words[0], [])]) == 0
    assert PRINTS[words[0]] in capsys.readouterr().out
