"""WORDING.md's left column, and words of the same kind, do not occur where a user or a contributor reads.

Checked are README, help pages, notes and titles of workflows, the editor's extension, and every text (tooltip, display
name, message, docstring), comment and public name of `nodes` and `trainers`. A failure lists line and word.
"""

from __future__ import annotations

import ast
import io
import json
import re
import tokenize
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]

# Pattern (case is ignored) -> what to write instead.
WORDS = {
    r"\b(re)?draw(s|n|ing|ings)?\b|\bdrew\b": "sample, generate",
    r"\b(last|its|their|own|in|run's|with) words\b|\bclips, words\b": "status, end of the log",
    r"\b(told|tells|untold)\b": "shows, reports, displays",
    r"\bbecomes? of\b": "shows, reports, displays",
    r"\bwhoever\b|\bwhatever asks\b": "name what is meant",
    r"\bsomebody\b": "a person, a user",
    r"\buntouched\b": "the base policy (the LoRA off)",
    r"\bwon\b": "win rate (95% CI ...)",
    r"\bchange hands\b|\bdeal(s|t)?\b.{0,30}\bout\b": "are shuffled within each group",
    r"\brounds? of\b": "training iterations",
    r"\blearning step": "learning rate, update",
    r"\bwho is (drawn|sampled)\b|\bwhat is trained on\b": "held-out item, reference images, prompt set",
    r"\(look at one\)": "Training Run",
    r"\bwhat is here\b|\bwhat is not yet\b": "Status",
    r"\b(run|it) stays(?! as)\b|\bmay go\b": "continues, can be closed",
    r"\b(is|are|was|were) gone\b": "exited, was deleted, is missing",
    r"\bthat (is|are) (?-i:none)\b|\bwhich is none\b|\bleads out of\b": "empty, outside the folder",
    r"\basks again\b": "cached",
    r"\bthis (kind of )?(policy|model) has not\b": "this policy has no ...",
    r"\bkits?\b": "golden case, parity",
    r"\b(goes|go|went|going) on\b": "continues",
    r"\bjudges? (videos|clips)\b|\bwhat judges\b": "reward, scores",
    r"\bby itself alone\b|\bof our making\b|\bnobody asked\b": "plain words",
}
# Names of functions, classes, constants and modules -> what to call them.
NAMES = {
    "share": "rank_slice",
    "agreed": "on_all_ranks",
    "whole": "require_complete",
    "fill": "load_full_state",
    "told": "status",
    "some": "shorten",
    "kit": "golden case, parity",
    "words": "status, text",
    "draw": "sample, generate",
}
PARTS = {"kit", "told", "draw", "drawn"}  # not as a part of a name either
# TinyWorld's people are pictures that a renderer draws, and `pictures` draws lines and letters: there "draw" is meant.
DRAW = next(iter(WORDS))
EXCEPTIONS = {"trainers/tinyworld/": DRAW, "trainers/pictures/": DRAW}
# Phrases in which a word above is meant as it stands.
MEANT = re.compile(r"\b(hand-)?drawn (people|persons?|faces|characters)\b", re.IGNORECASE)


def findings(text: str, place: str, first_line: int = 1) -> list[str]:
    """`line N: …word in its place…` for every word of the list in `text`, whose first line has number `first_line`."""
    allowed = next((word for start, word in EXCEPTIONS.items() if place.startswith(start)), None)
    text = MEANT.sub(lambda match: " " * len(match[0]), text)
    found = []
    for pattern, better in WORDS.items():
        for match in re.finditer(pattern, text, re.IGNORECASE) if pattern != allowed else ():
            line = first_line + text.count("\n", 0, match.start())
            around = text[max(0, match.start() - 30) : match.end() + 30].replace("\n", " ")
            found.append(f"line {line}: …{around}…   {match[0]!r} -> {better}")
    return found


def texts(source: str) -> Iterator[tuple[int, str]]:
    """Every text and comment of a module with its line."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string


def public_names(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Functions and classes, and what modules and classes assign."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield node.lineno, node.name
        if isinstance(node, (ast.Module, ast.ClassDef)):
            assigned = (n for n in node.body if isinstance(n, (ast.Assign, ast.AnnAssign)))
            targets = (t for n in assigned for t in (n.targets if isinstance(n, ast.Assign) else [n.target]))
            yield from ((t.lineno, n.id) for t in targets for n in ast.walk(t) if isinstance(n, ast.Name))


def name_findings(name: str, place: str) -> list[str]:
    """A public name of NAMES, or with one of PARTS in it."""
    lower = name.lower().strip("_")
    if name.startswith("_") or ("draw" in lower and place.startswith(tuple(EXCEPTIONS))):
        return []
    found = {lower} & set(NAMES) | set(lower.split("_")) & PARTS
    return [f"{name} -> {NAMES.get(part, NAMES['draw'])}" for part in sorted(found)]


def relative(paths: Iterable[Path]) -> list[str]:
    return [path.relative_to(REPOSITORY).as_posix() for path in paths]


MODULES = relative(path for name in ("nodes", "trainers") for path in sorted((REPOSITORY / name).rglob("*.py")))
PAGES = relative([REPOSITORY / "README.md", *sorted(p for e in ("md", "js") for p in REPOSITORY.glob(f"web/**/*.{e}"))])
WORKFLOWS = relative(sorted(p for name in ("workflows", "subgraphs") for p in (REPOSITORY / name).rglob("*.json")))


@pytest.mark.parametrize("place", MODULES)
def test_texts_docstrings_and_comments(place):
    source = (REPOSITORY / place).read_text(encoding="utf-8")
    report([found for line, text in texts(source) for found in findings(text, place, line)])


@pytest.mark.parametrize("place", MODULES)
def test_public_names(place):
    names = [(1, Path(place).stem), *public_names(ast.parse((REPOSITORY / place).read_text(encoding="utf-8")))]
    report([f"line {line}: {found}" for line, name in names for found in name_findings(name, place)])


@pytest.mark.parametrize("place", PAGES)
def test_pages(place):
    text = (REPOSITORY / place).read_text(encoding="utf-8")
    report([*findings(text, place), *name_findings(Path(place).stem, place)])


@pytest.mark.parametrize("place", WORKFLOWS)
def test_notes_and_titles_of_workflows(place):
    content = json.loads((REPOSITORY / place).read_text(encoding="utf-8"))
    inner = content.get("definitions", {}).get("subgraphs", [])
    nodes = [node for graph in (content, *inner) for node in graph["nodes"]]
    shown = [thing.get("title") or "" for thing in (*nodes, *content["groups"])]
    shown += [node["widgets_values"][0] for node in nodes if node["type"] == "MarkdownNote"]
    shown += [text for graph in inner for text in (graph["name"], graph.get("description", ""))]
    report([found for text in shown for found in findings(text, place)])


def report(found: list[str]) -> None:
    assert not found, "\n".join(["", *found])


# --- the test itself -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "Before: the untouched model",
        "a run's curve, clips, words and LoRAs",
        "the log, and its last words",
        "Rounds of drawing, judging and learning",
        "somebody new to draw",
        "win 60% won (from 50%)",
        "a scale that this kind of policy has not",
        "a prefix that is none, or leads out of it",
        "the run stays",
        "recomputes golden kits",
        "whoever asks again",
        "rewards change hands inside each group",
    ],
)
def test_the_left_column_is_found(text):
    assert findings(text, "README.md")


@pytest.mark.parametrize(
    "text",
    [
        "TinyWorld: drawn people",
        "The base policy (the LoRA off) has not been measured yet",
        "win rate 60% (95% CI 50% to 70%)",
        "name each person with a few words on how they look",
        "tokens of words, shares of time",
    ],
)
def test_the_right_column_is_not(text):
    assert findings(text, "README.md") == []


def test_drawing_is_meant_only_where_something_is_drawn():
    assert findings("draw a person", "trainers/tinyworld/render.py") == []
    assert findings("the untouched policy", "trainers/tinyworld/render.py")
    assert findings("draw a person", "trainers/grpo/rollout.py")


def test_names_are_found_as_wholes_and_parts():
    assert name_findings("told", "web/told.js") and name_findings("lora_kit", "trainers/parity/lora.py")
    assert not name_findings("shared", "trainers/grpo/ranks.py") and not name_findings(
        "something", "trainers/errors.py"
    )
    assert not name_findings("draw", "trainers/pictures/layout.py") and name_findings(
        "draw", "trainers/grpo/rollout.py"
    )
