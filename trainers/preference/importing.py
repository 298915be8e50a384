"""Pairs from a table: a CSV of one's own, or the one that the published reward's training reads (`meta_data.csv`).

Columns: `path_A`, `path_B` (clips), a verdict in `verdict` or `SA` (A, B, same or tie, invalid or skip; empty: not
voted yet), and optionally `ref_paths` (pictures separated by `;`), `prompt`, `fps`, `kind` and `who`. Paths are
relative to the file, or to the folder that is given. Without `ref_paths` the pictures beside clip A are the references,
as that training's folders have them (`reference_img001.jpg`, …).
"""

from __future__ import annotations

import csv
import io
import math
import os
from dataclasses import dataclass
from pathlib import Path

from ..errors import UserError, listed, meant, shown
from ..files import read_regular
from ..pictures.clips import PICTURE_SUFFIXES, check_clip
from ..pictures.reading import read_picture
from .folder import PairFolder
from .records import LONGEST, LONGEST_PROMPT, MOST_REFERENCES

CLIP_COLUMNS = ("path_A", "path_B")
VERDICT_COLUMNS = ("verdict", "SA")
VERDICTS = {
    "a": "A",
    "b": "B",
    "same": "tie",
    "tie": "tie",
    "invalid": "skip",
    "skip": "skip",
    "": None,
}
"""What a table may say, in small letters -> verdict; None where there is none yet."""


@dataclass(frozen=True)
class Row:
    """A row of the table, checked."""

    clips: tuple[Path, Path]
    references: tuple[Path, ...]
    prompt: str
    kind: str
    fps: float | None
    verdict: str | None
    who: str


def import_table(
    path: Path, folder: PairFolder, data: Path | None = None, who: str = "", automatic: bool = False
) -> int:
    """Add all pairs of a CSV to the folder, with copies of their files; how many rows there were.

    data: the folder that the table's paths are relative to (default: the table's). who: of verdicts whose row names
    nobody. Raises UserError, before anything is added, that names the rows that cannot be used.
    """
    rows = read_table(path, data)
    for row in rows:
        folder.add(
            row.clips,
            row.references,
            row.prompt,
            row.kind,
            row.fps,
            row.verdict,
            row.who or who or path.stem,
            automatic,
        )
    return len(rows)


def read_cells(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """The column names and the rows of a CSV, by commas, semicolons or tabs; without spaces around what is in a cell.

    Raises UserError for a file that cannot be read, or is no CSV.
    """
    try:
        text = read_regular(path).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the table {path} ({error}); save it as CSV in UTF-8") from None
    first = text.partition("\n")[0]
    # Strict: a quotation mark that is not closed would take the rows below it for one cell.
    table = csv.DictReader(
        io.StringIO(text, newline=""), delimiter=max(",;\t", key=first.count), restval="", strict=True
    )
    try:
        header = [name.strip() for name in table.fieldnames or ()]
        table.fieldnames = header
        return header, [{k: v.strip() for k, v in cells.items() if k is not None} for cells in table]
    except csv.Error as error:
        raise UserError(
            f"{path} is no CSV near line {table.reader.line_num} ({error}); look for a quotation mark that is not "
            'closed, and write " inside a quoted text twice'
        ) from None


def read_table(path: Path, data: Path | None = None) -> list[Row]:
    """The rows of a CSV; see `import_table`."""
    header, lines = read_cells(path)
    lacking = [name for name in CLIP_COLUMNS if name not in header]
    lacking += [] if set(header) & set(VERDICT_COLUMNS) else ["verdict"]
    if lacking:
        hint = next((meant(name, header) for name in lacking if meant(name, header)), "")
        raise UserError(
            f"{path} lacks the columns {', '.join(lacking)}; it has {', '.join(map(shown, header)) or 'none'}{hint}"
        )
    rows, problems = [], []
    for number, cells in enumerate(lines, 2):
        try:
            rows.append(_row(cells, data or path.parent))
        except UserError as error:
            problems.append(f"row {number}: {error}")
    if problems:
        raise UserError(f"{path} cannot be used:{listed(problems)}")
    if not rows:
        raise UserError(f"{path} has no rows; give at least one pair")
    return rows


def _row(cells: dict[str, str], folder: Path) -> Row:
    clips = tuple(_file(folder, cells[name]) for name in CLIP_COLUMNS)
    stated = next(cells[name] for name in VERDICT_COLUMNS if name in cells)
    if stated.lower() not in VERDICTS:
        raise UserError(f"the verdict `{shown(stated)}` is unknown; write A, B, tie or skip")
    named = [name.strip() for name in cells.get("ref_paths", "").split(";") if name.strip()]
    references = tuple(_file(folder, name) for name in named) or _beside(clips[0])
    if not references:
        raise UserError(f"no reference image is named in `ref_paths` or lies beside {clips[0]}")
    for reference in references:
        read_picture(reference, 64 * 64)
    for clip in clips:
        check_clip(clip)
    for name, most in (("prompt", LONGEST_PROMPT), ("who", LONGEST)):
        if len(cells.get(name, "")) > most:
            raise UserError(f"`{name}` has {len(cells[name])} letters; shorten it to {most}")
    if len(references) > MOST_REFERENCES:
        raise UserError(f"{len(references)} reference images are named; give one per person, at most {MOST_REFERENCES}")
    return Row(
        clips,
        references,
        cells.get("prompt", ""),
        cells.get("kind", ""),
        _rate(cells.get("fps", "")),
        VERDICTS[stated.lower()],
        cells.get("who", ""),
    )


def _file(folder: Path, name: str) -> Path:
    path = folder / name
    if not name:
        raise UserError(f"`{'` or `'.join(CLIP_COLUMNS)}` is empty; write the path of a clip")
    if not os.path.exists(path):
        raise UserError(f"there is no file `{shown(path)}`")
    return path


def _beside(clip: Path) -> tuple[Path, ...]:
    """Pictures in the clip's folder, in the order of their names; none beside a clip that is itself such a file."""
    if clip.suffix.lower() in PICTURE_SUFFIXES or os.path.isdir(clip):
        found = (p for p in clip.parent.iterdir() if p.name.lower().startswith("reference"))
    else:
        found = clip.parent.iterdir()
    return tuple(sorted(p for p in found if p.suffix.lower() in PICTURE_SUFFIXES and p.is_file()))


def _rate(text: str) -> float | None:
    if not text:
        return None
    try:
        rate = float(text)
    except ValueError:
        rate = math.nan
    if not 0.01 <= rate <= 1000:
        raise UserError(f"`fps` is `{shown(text)}`; write frames per second, 0.01 to 1000")
    return rate
