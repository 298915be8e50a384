"""Prompt sets: rows of reference images and a prompt, read from CSV files."""

from __future__ import annotations

import codecs
import csv
import hashlib
import io
import os
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np

from .errors import UserError, is_utf8, listed, shown
from .files import atomic_file, write_atomic
from .pictures.reading import format_problem, read_picture

T = TypeVar("T")

COLUMNS, OPTIONAL_COLUMNS = ("ref_paths", "prompt"), ("id", "negative")
DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs"}
UNUSABLE = ('"', " ")  # as delimiters: they quote a text, or stand after another one
SEPARATOR_LINE = re.compile(r'"?sep=([^\r\n])"?[,;\t ]*(\r\n?|\n)', re.IGNORECASE)
"""Excel's own hint in the first line, which a spreadsheet does not count as a row."""
MAX_ROWS = 20_000
MAX_LINES = 1 << 20  # with blank rows, of which a spreadsheet may write as many as it has
MAX_BYTES = 32 << 20
CHECKED_PIXELS = (
    64 * 64
)  # read of a picture to see whether it is whole: a JPEG is then decoded at an eighth of its size
EMPTY_PROMPT = "the prompt is empty; describe the video"


@dataclass(frozen=True)
class PromptItem:
    """One row of a prompt set.

    `references` holds one picture per person, in order: a file, or RGB pixels uint8 [H, W, 3].
    `extra` is for the item's source (TinyWorld keeps its scene there). Texts are cleaned by `clean_text`.
    """

    id: str
    prompt: str
    references: tuple[Path | np.ndarray, ...]
    negative: str = ""
    extra: dict[str, Any] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        for name in ("id", "prompt", "negative"):
            object.__setattr__(self, name, clean_text(getattr(self, name)))

    def content(self) -> str:
        """SHA-256 of the texts and the pictures (not of their names): equal for items that ask for the same video.

        Raises UserError for a reference file that cannot be read.
        """
        digest = hashlib.sha256()
        for text in (self.prompt, self.negative):
            _add(digest, text.encode())
        for reference in self.references:
            if isinstance(reference, np.ndarray):
                _add(digest, repr((reference.shape, str(reference.dtype))).encode())
                _add(digest, np.ascontiguousarray(reference).tobytes())
            else:
                _add(digest, _file_digest(reference))
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


def clean_text(text: str) -> str:
    """The text without lone surrogates (half an emoji, left by programs that cut texts): no tokenizer takes them."""
    return text if text.isascii() else text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "ignore")


def is_blank(text: str) -> bool:
    """Whether nothing of the text can be seen: white space, zero-width spaces, other marks without a letter."""
    kinds = map(unicodedata.category, text)
    return all(kind[0] in "ZM" or kind in ("Cc", "Cf", "Cs") for kind in kinds)


def load_prompt_set(
    path: str | Path, refusal: Callable[[Path], str | None] = lambda _: None, decode: bool = True
) -> PromptSet:
    """Read a CSV with the columns `ref_paths` and `prompt`, optionally `id` and `negative`; others are ignored.

    `ref_paths` holds one picture per person, separated by `;`, relative to the CSV's folder. The file is UTF-8, or
    UTF-16 with a byte order mark; its delimiter (comma, semicolon, tab, or what a first line `sep=…` names) is the
    header's, and spaces after it are no part of a text. Blank rows are skipped. Rows are numbered as a spreadsheet
    shows them: the header is row 1. Items without an id are named by their row.

    `refusal` gives the reason why a picture may not be used, if there is one; such a file is not accessed at all. Each
    picture is decoded once per process to see whether it is whole; without `decode` only its first bytes are read.

    Raises UserError that lists the first 10 problems with their rows, or for more than MAX_ROWS rows, MAX_LINES or
    MAX_BYTES.
    """
    # No home is looked up for a name that no file can have.
    path = Path(path if "\0" in str(path) else os.path.expanduser(path))
    header, rows, delimiters = _table(path)
    problems: list[str] = []
    items: list[PromptItem] = []
    known: dict[str, tuple[Path, str | None]] = {}
    ids: dict[str, int] = {}

    def reference(name: str) -> tuple[Path, str | None]:
        """The file behind a name of ref_paths, and what is wrong with it."""
        if name not in known:
            # A leading ~ that names no user's home is a part of the file's name.
            file = path.parent / os.path.expanduser(name)
            known[name] = file, refusal(file) or _reference_problem(file, decode)
        return known[name]

    for number, row in rows:
        item, wrong = _item(number, header, row, delimiters, reference)
        if item and ids.setdefault(item.id, number) != number:
            wrong.append(f"id `{item.id}` is already used in row {ids[item.id]}; give every row its own")
        if item:
            items.append(item)
        problems += [f"row {number}: {text}" for text in wrong]
    if problems:
        raise UserError(f"{path} cannot be used:{listed(problems)}")
    return PromptSet(tuple(items), str(path))


def save_prompt_set(items: Sequence[PromptItem], path: str | Path) -> Path:
    """Write a CSV that `load_prompt_set` reads back; pictures in memory become PNG files in `references/` beside it.

    The CSV appears when all its pictures are complete. `extra` is not written. Raises UserError for a reference whose
    path contains `;` or is not UTF-8, and when the disk is full.
    """
    from PIL import Image

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(["id", "ref_paths", "prompt", "negative"])
    for number, item in enumerate(items):
        names = []
        for place, reference in enumerate(item.references):
            if isinstance(reference, np.ndarray):
                (path.parent / "references").mkdir(exist_ok=True)
                names.append(f"references/{number:04d}-{place}.png")
                with atomic_file(path.parent / names[-1]) as aside:
                    Image.fromarray(reference).save(aside, format="PNG")
            else:
                names.append(_relative(reference, path.parent))
        if any(";" in name for name in names):
            raise UserError(f"item `{item.id}`: a reference path contains `;`, which separates paths; rename the file")
        if wrong := [name for name in names if not is_utf8(name)]:
            raise UserError(
                f"item `{item.id}`: the reference path {wrong[0]} is not UTF-8; rename the file or its folder"
            )
        writer.writerow([item.id, ";".join(names), item.prompt, item.negative])
    write_atomic(path, text.getvalue())
    return path


def _table(path: Path) -> tuple[list[str], list[tuple[int, list[str]]], str]:
    """Header in lower case, numbered rows that are not blank, and what the delimiter is called. Raises UserError."""
    text = _text(path)
    delimiters = dict(DELIMITERS)
    if separator_line := SEPARATOR_LINE.match(text):
        text, named = text[separator_line.end() :], separator_line[1]
        if named not in UNUSABLE:
            delimiters = {named: DELIMITERS.get(named, f"`{named}`")} | delimiters
    headers = {delimiter: _header(text, delimiter) for delimiter in delimiters}
    complete = (delimiter for delimiter, header in headers.items() if set(COLUMNS) <= set(header))
    delimiter = next(complete, max(headers, key=lambda d: len(headers[d])))
    rows: list[tuple[int, list[str]]] = []
    number = 0
    try:
        for number, row in enumerate(_rows(text, delimiter), start=1):
            if number > MAX_LINES:
                raise UserError(f"{path} has more than {MAX_LINES} rows, blank ones included; delete the blank rows")
            if any(cell.strip() for cell in row):
                rows.append((number, row))
            if len(rows) > MAX_ROWS + 1:
                raise UserError(f"{path} has more than {MAX_ROWS} rows, the maximum of a prompt set; split it")
    except csv.Error as error:
        if "field larger than" in str(error):
            advice = "a field of ref_paths holds names of files, not pictures"
        else:
            advice = f'a text with {delimiters[delimiter]} stands in "…", and a quote inside it is doubled'
        raise UserError(f"{path}, row {number + 1}: {error}; check the quotes: {advice}") from error
    if not rows:
        raise UserError(f"{path} is empty; its first row must be the header: ref_paths,prompt")
    number, header = rows[0][0], _names(rows[0][1])
    if missing := [name for name in COLUMNS if name not in header]:
        raise UserError(
            f"{path}, row {number}: column `{'` and `'.join(missing)}` is missing (found: {shown(', '.join(header))}); "
            "the header must name ref_paths and prompt, separated by commas, semicolons or tabs"
        )
    if twice := [name for name in COLUMNS + OPTIONAL_COLUMNS if header.count(name) > 1]:
        raise UserError(f"{path}, row {number}: column `{'` and `'.join(twice)}` is there twice; keep one")
    if len(rows) == 1:
        raise UserError(f"{path} has a header but no rows; add one row per video: its reference images and its prompt")
    return header, rows[1:], delimiters[delimiter]


def _text(path: Path) -> str:
    if not os.path.isfile(path):
        problem = "it is not a file" if os.path.lexists(path) else "there is no such file"
        raise UserError(f"prompt set {shown(path)} cannot be read: {problem}; give a CSV file")
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UserError(f"prompt set {path} is larger than {MAX_BYTES >> 20} MB, the maximum; split it")
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"prompt set {path} cannot be read: {error.strerror or error}") from error
    utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        # Half an emoji, which UTF-16 can hold, is removed from the texts (`clean_text`).
        text = data.decode("utf-16", "surrogatepass") if utf16 else data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        problem = "is cut off" if utf16 else "is not UTF-8"
        raise UserError(f"{path} {problem} (byte {error.start}: {error.reason}); save it as `CSV UTF-8`") from error
    if "\0" in text.partition("\n")[0]:
        raise UserError(f"{path} is not UTF-8 (its first line holds zero bytes); save it as `CSV UTF-8`")
    return text.replace("\0", "\ufffd")  # Python 3.10's csv takes no zero bytes


def _header(text: str, delimiter: str) -> list[str]:
    """The names in the first row that is not blank; none if it cannot be read with this delimiter."""
    try:
        rows = islice(_rows(text, delimiter), MAX_LINES)
        return _names(next((row for row in rows if any(cell.strip() for cell in row)), []))
    except csv.Error:
        return []


def _rows(text: str, delimiter: str) -> Iterator[list[str]]:
    """Raises csv.Error while it is read."""
    return csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True)


def _names(header: list[str]) -> list[str]:
    return [name.strip().lower() for name in header]


def _item(
    number: int,
    header: list[str],
    row: list[str],
    delimiters: str,
    reference: Callable[[str], tuple[Path, str | None]],
) -> tuple[PromptItem | None, list[str]]:
    """The item of one row, and what is wrong with it."""
    while len(row) > len(header) and not row[-1].strip():
        row = row[:-1]
    if len(row) != len(header):
        counts = f"has {len(row)} fields where the header has {len(header)}"
        return None, [f"{counts}; put quotes around a text that contains {delimiters}"]
    cells = {name: cell.strip() for name, cell in zip(header, row, strict=True)}
    wrong = [EMPTY_PROMPT] if is_blank(cells["prompt"]) else []
    found = [reference(name.strip()) for name in cells["ref_paths"].split(";") if name.strip()]
    if not found:
        wrong.append("ref_paths is empty; name one picture per person, separated by `;`")
    wrong += [problem for _, problem in found if problem]
    references = tuple(file for file, _ in found)
    name = cells.get("id", "")
    if is_blank(name):
        name = f"row-{number}"
    return PromptItem(name, cells["prompt"], references, cells.get("negative", "")), wrong


class _OncePerFile(Generic[T]):
    """A function of a file whose result is kept until the file's time of change or its size differs."""

    def __init__(self, function: Callable[[Path], T]) -> None:
        self._function = function
        self._results: dict[str, tuple[tuple[int, int], T]] = {}

    def __call__(self, path: Path) -> T:
        """Raises OSError when there is no such file."""
        key, now = os.path.abspath(path), os.stat(path)
        signature = now.st_mtime_ns, now.st_size
        known = self._results.get(key)
        if known is None or known[0] != signature:
            known = self._results[key] = signature, self._function(path)
        return known[1]


def _reference_problem(path: Path, decode: bool) -> str | None:
    if not os.path.isfile(path):
        return f"reference image {shown(path)} {_absence(path)}; paths are relative to the CSV's folder"
    return _remembered_problem(path) if decode else format_problem(path)


def _absence(path: Path) -> str:
    """What is in the place of a picture."""
    if os.path.isdir(path):
        return "is a folder, not a picture"
    return "is not a file" if os.path.lexists(path) else "is missing"


def _picture_problem(path: Path) -> str | None:
    """Decode a picture to see what is wrong with it."""
    try:
        read_picture(path, CHECKED_PIXELS)
    except UserError as error:
        return str(error)
    return None


_remembered_problem = _OncePerFile(lambda path: _picture_problem(path))
_remembered_digest = _OncePerFile(lambda path: hashlib.sha256(path.read_bytes()).digest())


def _file_digest(path: Path) -> bytes:
    """SHA-256 of the file."""
    if not os.path.isfile(path):
        raise UserError(f"reference image {shown(path)} {_absence(path)}; put it back")
    try:
        return _remembered_digest(path)
    except OSError as error:
        raise UserError(f"reference image {path} cannot be read: {error.strerror or error}") from error


def _relative(path: Path, folder: Path) -> str:
    """Relative to the CSV's folder where it lies inside, else absolute."""
    path, folder = Path(os.path.abspath(path)), Path(os.path.abspath(folder))
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path)


def _add(digest: Any, data: bytes) -> None:
    digest.update(len(data).to_bytes(8, "big") + data)
