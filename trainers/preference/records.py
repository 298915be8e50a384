"""The lines of `pairs.jsonl`: pairs, votes about them, and votes taken back."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from pathlib import PurePosixPath
from typing import Any

from ..errors import UserError, shown
from .loss import A_BETTER, B_BETTER, INVALID, TIE

VERDICTS = {"A": A_BETTER, "B": B_BETTER, "tie": TIE, "skip": INVALID}
"""Verdict of a vote -> label of the pair."""
ID = re.compile(r"[a-z0-9-]{1,100}")
LONGEST, LONGEST_PROMPT = 1000, 100_000
"""Letters of a name, and of a prompt."""
MOST_REFERENCES = 64


@dataclass(frozen=True)
class PairRecord:
    """Two clips of the same people, as they were shown: paths relative to the folder, `/` between their parts.

    `fps` is that of both clips; None where the files state it. `kind` names where the pair comes from, for reports;
    `automatic` marks a pair whose verdict no person gave.
    """

    pair: str
    clip_a: str
    clip_b: str
    references: tuple[str, ...]
    prompt: str = ""
    kind: str = ""
    fps: float | None = None
    automatic: bool = False


@dataclass(frozen=True)
class VoteRecord:
    """A verdict on a pair: `A`, `B`, `tie` or `skip`, always in terms of the pair's own A and B.

    `swapped`: B was shown on the left. `when`: UTC, as 2026-01-31T12:00:00Z.
    """

    vote: str
    pair: str
    verdict: str
    who: str
    when: str
    swapped: bool = False


@dataclass(frozen=True)
class UndoRecord:
    """The vote of this id does not count."""

    undo: str
    who: str
    when: str


Record = PairRecord | VoteRecord | UndoRecord
KINDS: dict[str, type[Record]] = {"pair": PairRecord, "vote": VoteRecord, "undo": UndoRecord}


def to_line(record: Record) -> str:
    """The record as one line of JSON, without what has its default."""
    defaults = {name: field.default for name, field in record.__dataclass_fields__.items()}
    return json.dumps({k: v for k, v in asdict(record).items() if v != defaults[k]}, ensure_ascii=True)


def from_line(line: str) -> Record:
    """Raises UserError that says what is wrong with the line; fields of later versions are ignored."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"it is no JSON ({error})") from error
    if not isinstance(found, dict):
        raise UserError("it is no JSON object")
    # A vote names its pair too.
    kind = KINDS[next((name for name in ("undo", "vote", "pair") if name in found), "pair")]
    fields = {name: value for name, value in found.items() if name in kind.__dataclass_fields__}
    if isinstance(fields.get("references"), list):
        fields["references"] = tuple(fields["references"])
    try:
        record = kind(**fields)
    except TypeError as error:
        raise UserError(str(error).rpartition(".__init__() ")[2].replace("positional argument", "field")) from None
    _check(record)
    return record


def _check(record: Record) -> None:
    for name in ("pair", "vote", "undo"):
        value = getattr(record, name, "id")
        if not (isinstance(value, str) and ID.fullmatch(value)):
            raise UserError(f"`{name}` is {shown(value)}; an id has lower-case letters, digits and dashes")
    for name in ("clip_a", "clip_b", "prompt", "kind", "verdict", "who", "when"):
        value = getattr(record, name, "")
        if not isinstance(value, str) or len(value) > (LONGEST_PROMPT if name == "prompt" else LONGEST):
            raise UserError(f"`{name}` is {shown(value)}, which is no text, or too long")
    for name in ("swapped", "automatic"):
        if not isinstance(getattr(record, name, False), bool):
            raise UserError(f"`{name}` is {shown(getattr(record, name))}; write true or false")
    if isinstance(record, VoteRecord) and record.verdict not in VERDICTS:
        raise UserError(f"the verdict `{shown(record.verdict)}` is unknown; write {', '.join(VERDICTS)}")
    if isinstance(record, PairRecord):
        _check_pair(record)


def _check_pair(record: PairRecord) -> None:
    names: Any = record.references
    if not isinstance(names, tuple) or not 0 < len(names) <= MOST_REFERENCES:
        raise UserError(f"`references` is {shown(names)}; list one picture per person")
    for name in (record.clip_a, record.clip_b, *names):
        if not _is_inside(name):
            raise UserError(f"{shown(name)} is no path inside the folder; write it relative to the folder, with `/`")
    fps: Any = record.fps
    if fps is not None and (type(fps) not in (int, float) or not 0.01 <= fps <= 1000):
        raise UserError(f"`fps` is {shown(fps)}; write frames per second, 0.01 to 1000")


def _is_inside(name: Any) -> bool:
    if not isinstance(name, str) or not name or len(name) > LONGEST or "\\" in name or "\0" in name or ":" in name:
        return False
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and path.parts != ()
