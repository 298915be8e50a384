"""Prompt sets: rows of reference images and a prompt."""

from __future__ import annotations

import csv
import hashlib
import io
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from .errors import UserError

COLUMNS = ("ref_paths", "prompt")
PROBLEMS_SHOWN = 10


@dataclass(frozen=True)
class PromptItem:
    """One row of a prompt set.

    `references` holds one picture per person, in order: a file, or RGB pixels uint8 [H, W, 3].
    `extra` carries what only the item's own world understands (TinyWorld keeps its scene there).
    """

    id: str
    prompt: str
    references: tuple[Path | np.ndarray, ...]
    negative: str = ""
    extra: dict[str, Any] = field(default_factory=dict, compare=False)

    def content(self) -> str:
        """SHA-256 of the texts and the pictures (not of their names): equal for items that ask for the same video."""
        digest = hashlib.sha256()
        for text in (self.prompt, self.negative):
            _add(digest, text.encode())
        for reference in self.references:
            if isinstance(reference, np.ndarray):
                _add(digest, repr((reference.shape, str(reference.dtype))).encode())
                _add(digest, np.ascontiguousarray(reference).tobytes())
            else:
                _add(digest, _file_bytes(reference))
        return digest.hexdigest()


@dataclass(frozen=True)
class PromptSet(Sequence[PromptItem]):
    """Items with distinct ids, and where they come from."""

    items: tuple[PromptItem, ...]
    source: str

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]

    def __iter__(self) -> Iterator[PromptItem]:
        return iter(self.items)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over all ids, texts and pictures in order: a run resumes only with the set it began with."""
        digest = hashlib.sha256()
        for item in self.items:
            _add(digest, item.id.encode())
            _add(digest, item.content().encode())
        return digest.hexdigest()


def load_prompt_set(path: str | Path, refusal: Callable[[Path], str | None] = lambda _: None) -> PromptSet:
    """Read a CSV (UTF-8, a BOM is accepted) with the columns `ref_paths` and `prompt`, optionally `id` and `negative`.

    `ref_paths` holds one picture per person, separated by `;`, relative to the CSV's folder. Other columns are ignored.
    Rows are numbered as a spreadsheet shows them: the header is row 1. Items without an id are called by their row.
    `refusal` says why a picture may not be used; such a one is not touched, not even to see whether it is there.
    Raises UserError that lists the first 10 problems of the file with their rows.
    """
    path = Path(path)
    rows = _rows(path)
    header = [name.strip() for name in rows[0][1]]
    missing = [name for name in COLUMNS if name not in header]
    if missing:
        raise UserError(
            f"{path}, row 1: column `{'` and `'.join(missing)}` is missing (found: {', '.join(header) or 'nothing'}); "
            "the header must name ref_paths and prompt, and may name id and negative"
        )
    if len(rows) == 1:
        raise UserError(
            f"{path} has a header but no rows; add one row per video: its reference pictures and its prompt"
        )
    problems: list[str] = []
    items: list[PromptItem] = []
    pictures: dict[Path, str | None] = {}
    ids: dict[str, int] = {}
    for number, row in rows[1:]:
        found, wrong = _item(number, header, row, path.parent, pictures, refusal)
        if found:
            if found.id in ids:
                wrong.append(f"id `{found.id}` is already that of row {ids[found.id]}; give every row its own")
            ids.setdefault(found.id, number)
            items.append(found)
        problems += [f"row {number}: {text}" for text in wrong]
    if problems:
        more = f"\n  … and {len(problems) - PROBLEMS_SHOWN} more" if len(problems) > PROBLEMS_SHOWN else ""
        raise UserError(f"{path} cannot be used:\n  " + "\n  ".join(problems[:PROBLEMS_SHOWN]) + more)
    return PromptSet(tuple(items), str(path))


def save_prompt_set(items: Sequence[PromptItem], path: str | Path) -> Path:
    """Write a CSV that `load_prompt_set` reads back; pictures in memory become PNG files in `references/` beside it.

    `extra` belongs to the item's own world and is not written. Raises UserError for a reference whose path contains `;`.
    """
    from PIL import Image

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["id", "ref_paths", "prompt", "negative"])
    for number, item in enumerate(items):
        names = []
        for place, reference in enumerate(item.references):
            if isinstance(reference, np.ndarray):
                (path.parent / "references").mkdir(exist_ok=True)
                names.append(f"references/{number:04d}-{place}.png")
                Image.fromarray(reference).save(path.parent / names[-1])
            else:
                names.append(_relative(reference, path.parent))
        if any(";" in name for name in names):
            raise UserError(
                f"item `{item.id}`: a reference path contains `;`, which separates paths in a prompt set; rename the file"
            )
        writer.writerow([item.id, ";".join(names), item.prompt, item.negative])
    path.write_text(text.getvalue(), encoding="utf-8", newline="")
    return path


def _rows(path: Path) -> list[tuple[int, list[str]]]:
    """Numbered rows of the CSV, without blank ones at its end."""
    try:
        text = path.expanduser().read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"prompt set {path} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 (byte {error.start}); save it as `CSV UTF-8`") from error
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    rows: list[tuple[int, list[str]]] = []
    try:
        for row in reader:
            rows.append((len(rows) + 1, row))
    except csv.Error as error:
        raise UserError(
            f'{path}, row {len(rows) + 1}: {error}; check the quotes: a text with commas stands in "…", '
            "a quote inside it is doubled"
        ) from error
    while rows and not any(cell.strip() for cell in rows[-1][1]):
        rows.pop()
    if not rows:
        raise UserError(f"{path} is empty; its first row must be the header: ref_paths,prompt")
    return rows


def _item(
    number: int,
    header: list[str],
    row: list[str],
    folder: Path,
    pictures: dict[Path, str | None],
    refusal: Callable[[Path], str | None],
) -> tuple[PromptItem | None, list[str]]:
    """The item of one row, and what is wrong with it."""
    if not any(cell.strip() for cell in row):
        return None, ["is empty; delete it"]
    if len(row) != len(header):
        return None, [
            f"has {len(row)} fields where the header has {len(header)}; put quotes around a text that contains commas"
        ]
    cells = {name: cell.strip() for name, cell in zip(header, row, strict=True)}
    wrong = [] if cells["prompt"] else ["the prompt is empty; describe the video"]
    names = [name.strip() for name in cells["ref_paths"].split(";") if name.strip()]
    if not names:
        wrong.append("ref_paths is empty; name one picture per person, separated by `;`")
    references = [folder / Path(name).expanduser() for name in names]
    for reference in references:
        if reference not in pictures:
            pictures[reference] = refusal(reference) or _picture_problem(reference)
        if pictures[reference]:
            wrong.append(pictures[reference])
    return PromptItem(
        cells.get("id") or f"row-{number}", cells["prompt"], tuple(references), cells.get("negative", "")
    ), wrong


def _picture_problem(path: Path) -> str | None:
    from PIL import Image

    from .pictures.reading import UNREADABLE

    if not path.is_file():
        return f"reference image {path} is missing; paths are relative to the CSV's folder"
    try:
        with Image.open(path) as picture:
            picture.draft("RGB", (64, 64))
            picture.load()
    except UNREADABLE as error:
        return f"reference image {path} cannot be read ({error}); give a PNG, JPEG or WebP file"
    return None


def _relative(path: Path, folder: Path) -> str:
    """Relative to the CSV's folder where it lies inside, else absolute."""
    path, folder = Path(os.path.abspath(path)), Path(os.path.abspath(folder))
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path)


def _file_bytes(path: Path) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"reference image {path} cannot be read: {error.strerror or error}") from error


def _add(digest: Any, data: bytes) -> None:
    digest.update(len(data).to_bytes(8, "big") + data)
