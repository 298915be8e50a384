"""Preference pairs on disk: a folder with `pairs.jsonl` and the clips and reference images beside it.

The file is only ever appended to, one line per pair, vote or undo; each line is on the disk before its writer
continues. A crash loses nothing but the line that was being written, and several programs may write at a time.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import time
from codecs import BOM_UTF8
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from filelock import FileLock

from ..errors import UserError, listed, shown
from ..files import atomic_file, atomic_folder, full_disk_explained, read_regular, require_regular
from ..pictures.clips import check_clip, frames_array, write_animation
from ..pictures.reading import Picture, read_picture
from .loss import INVALID
from .records import LONGEST, VERDICTS, PairRecord, Record, UndoRecord, VoteRecord, from_line, to_line

FILE = "pairs.jsonl"
CLIPS, REFERENCES = "clips", "references"
MIRRORED = {"A": "B", "B": "A"}
"""Verdict on a pair -> the same verdict when its clips change sides."""


@dataclass(frozen=True)
class Agreement:
    """How often one person gave the same verdict again: of `pairs` pairs seen more than once, `same`; of the `swapped`
    among them, whose clips changed sides in between, `same_swapped`."""

    pairs: int
    same: int
    swapped: int
    same_swapped: int


@dataclass
class PairRecords:
    """What a folder holds: the pairs by id, in the order in which they were added, and the votes that count."""

    pairs: dict[str, PairRecord] = field(default_factory=dict)
    votes: dict[str, VoteRecord] = field(default_factory=dict)
    undone: set[str] = field(default_factory=set)

    def add(self, record: Record) -> None:
        """Raises UserError for an id that is there already, and for a vote on a pair that is not there."""
        if isinstance(record, UndoRecord):
            self.undone.add(record.undo)
            self.votes.pop(record.undo, None)
        elif isinstance(record, PairRecord):
            if self.pairs.setdefault(record.pair, record) != record:
                raise UserError(f"pair `{record.pair}` is already there with other clips")
        elif record.pair not in self.pairs:
            raise UserError(f"it votes on pair `{shown(record.pair)}`, which no line above it adds")
        elif record.vote not in self.undone and self.votes.setdefault(record.vote, record) != record:
            raise UserError(f"vote `{record.vote}` is already there and differs")

    @cached_property
    def by_pair(self) -> dict[str, list[VoteRecord]]:
        """The votes on each pair that has some, oldest first."""
        found: dict[str, list[VoteRecord]] = {}
        for vote in self.votes.values():
            found.setdefault(vote.pair, []).append(vote)
        return found

    def label(self, pair: str) -> int:
        """The label that most votes give: 1, -1, 0, or 22 where all skipped; as many for A as for B are a tie."""
        counts = Counter(vote.verdict for vote in self.by_pair.get(pair, ()) if vote.verdict != "skip")
        if not counts:
            return INVALID
        most = max(counts.values())
        first = [verdict for verdict, count in counts.items() if count == most]
        return VERDICTS[first[0] if len(first) == 1 else "tie"]

    def agreement(self, who: str) -> Agreement:
        """Of one person's first two votes on each pair that the person saw more than once."""
        again: list[tuple[VoteRecord, VoteRecord]] = []
        for votes in self.by_pair.values():
            own = [vote for vote in votes if vote.who == who and vote.verdict != "skip"]
            again += [(own[0], own[1])] if len(own) > 1 else []
        swapped = [(one, two) for one, two in again if one.swapped != two.swapped]
        same, same_swapped = (sum(a.verdict == b.verdict for a, b in part) for part in (again, swapped))
        return Agreement(len(again), same, len(swapped), same_swapped)


class PairFolder:
    """A folder of pairs, and the one place where its format is read, written, merged and checked."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    @property
    def file(self) -> Path:
        return self.path / FILE

    def exists(self) -> bool:
        return os.path.isfile(self.file)

    def read(self, size: int | None = None) -> PairRecords:
        """All that counts, or that counted when the file had `size` bytes. A last line torn by a crash is left out.

        Raises UserError that names every other line that cannot be used, and for a folder that holds no pairs.
        """
        try:
            data = read_regular(self.file)
        except OSError as error:
            raise UserError(
                f"{self.path} holds no {FILE} ({error.strerror or error}); give a folder of pairs, or make one with "
                "`reward pairs FOLDER --table CSV`, or from a --run or --clips"
            ) from None
        records, problems = PairRecords(), []
        for number, line in enumerate(_complete(data[:size]).removeprefix(BOM_UTF8).split(b"\n"), 1):
            if not line.strip():
                continue
            try:
                record = from_line(line.decode("utf-8"))
                if problems and isinstance(record, VoteRecord) and record.pair not in records.pairs:
                    continue  # the pair may be that of a line that cannot be read
                records.add(record)
            except ValueError as error:
                problems.append(f"line {number}: {error}")
        if problems:
            raise UserError(f"{self.file} cannot be used; correct these lines or remove them:{listed(problems)}")
        return records

    def voted_size(self) -> int:
        """How many bytes of the file end with its last vote or undo; 0 without one. Later pairs have no verdict."""
        data = _complete(read_regular(self.file)) if self.exists() else b""
        last = max(data.rfind(mark) for mark in (b'{"vote":', b'{"undo":'))
        return last + len(data[last:].partition(b"\n")[0]) + 1 if last >= 0 else 0

    def check_files(self, records: PairRecords) -> None:
        """Raises UserError that names the first clip or reference image that is not there."""
        for record in records.pairs.values():
            for name in (record.clip_a, record.clip_b, *record.references):
                if not os.path.exists(self.path / name):
                    raise UserError(f"{self.path / name} is missing, which pair `{record.pair}` names; copy it there")

    def unreadable(self, records: PairRecords) -> list[str]:
        """What is wrong with the files of pairs: of every clip the first frame is read, and every reference image."""
        problems: dict[str, str] = {}

        def problem(name: str, read: Callable[[Path], object]) -> str:
            if name not in problems:  # a clip may be in many pairs
                try:
                    read(self.path / name)
                    problems[name] = ""
                except UserError as error:
                    problems[name] = str(error)
            return problems[name]

        found = []
        for pair in records.pairs.values():
            texts = [problem(name, check_clip) for name in (pair.clip_a, pair.clip_b)]
            texts += [problem(name, read_picture) for name in pair.references]
            found += [f"pair `{pair.pair}`: {text}" for text in texts if text]
        return found

    # --- writing -----------------------------------------------------------------------------------------------------

    def append(self, records: Iterable[Record]) -> None:
        """Add lines and wait until they are on the disk. Raises UserError when it is full, or for a record that the
        folder's own reader would refuse."""
        text = "".join(to_line(record) + "\n" for record in records)
        for line in text.splitlines():
            from_line(line)
        with self._locked(), full_disk_explained(self.file), open(self.file, "ab+") as file:
            _end_last_line(file)
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())

    def vote(self, pair: str, verdict: str, who: str, swapped: bool = False) -> VoteRecord:
        """Append a vote. `verdict` is about the sides as they were shown: with `swapped`, `A` means the pair's B."""
        if verdict not in VERDICTS:
            raise UserError(f"the verdict `{shown(verdict)}` is unknown; give {', '.join(VERDICTS)}")
        verdict = MIRRORED.get(verdict, verdict) if swapped else verdict
        record = VoteRecord(secrets.token_hex(8), pair, verdict, _name(who), _now(), swapped)
        self.append([record])
        return record

    def undo(self, who: str) -> VoteRecord | None:
        """Append that the newest vote of this person does not count; the vote, or None where there is none left."""
        own = [vote for vote in self.read().votes.values() if vote.who == _name(who)]
        if not own:
            return None
        self.append([UndoRecord(own[-1].vote, _name(who), _now())])
        return own[-1]

    def add(
        self,
        clips: tuple[Path | np.ndarray, Path | np.ndarray],
        references: Sequence[Picture],
        prompt: str = "",
        kind: str = "",
        fps: float | None = None,
        verdict: str | None = None,
        who: str = "",
        automatic: bool = False,
    ) -> PairRecord:
        """Copy two clips (files, or frames uint8 [F, H, W, 3] with `fps`) and their references here, and add the pair.

        Files are named by their content, so that a clip in several pairs lies here once, and the same pair added again
        is the same line. With `verdict` a vote by `who` is added too. Raises UserError for what cannot be read.
        """
        names = [self._keep_clip(clip, fps) for clip in clips]
        pictures = tuple(self._keep_picture(picture) for picture in references)
        identity = "\n".join((*names, *pictures, prompt))
        record = PairRecord(_digest(identity.encode()), *names, pictures, prompt, kind[:LONGEST], fps, automatic)
        known = self.read() if self.exists() else PairRecords()
        records: list[Record] = [] if record.pair in known.pairs else [record]
        if verdict is not None and not any(vote.who == who for vote in known.by_pair.get(record.pair, ())):
            records.append(VoteRecord(secrets.token_hex(8), record.pair, verdict, _name(who), _now()))
        if records:
            self.append(records)
        return record

    def merge(self, other: PairFolder) -> int:
        """Add all lines of another folder that are not here, with their files; how many lines were added.

        Raises UserError, before anything is added, where a file of theirs has the name of another one here.
        """
        theirs, ours = other.read(), self.read() if self.exists() else PairRecords()
        other.check_files(theirs)
        new: list[Record] = [pair for pair in theirs.pairs.values() if pair.pair not in ours.pairs]
        names = dict.fromkeys(name for pair in new for name in (pair.clip_a, pair.clip_b, *pair.references))
        absent = [name for name in names if not os.path.exists(self.path / name)]
        for name in names.keys() - set(absent):
            if _content(other.path / name) != _content(self.path / name):
                raise UserError(
                    f"{other.path / name} and {self.path / name} are different files of one name; rename one of them, "
                    f"in its {FILE} too"
                )
        for name in absent:
            _place(other.path / name, self.path / name)
        new += [vote for vote in theirs.votes.values() if vote.vote not in ours.votes and vote.vote not in ours.undone]
        new += [UndoRecord(vote, "", _now()) for vote in sorted(theirs.undone - ours.undone) if vote in ours.votes]
        if new:
            self.append(new)
        return len(new)

    def _keep_clip(self, clip: Path | np.ndarray, fps: float | None) -> str:
        if isinstance(clip, Path):
            check_clip(clip)
            return self._keep_file(clip, CLIPS)
        frames = frames_array(clip)
        name = f"{CLIPS}/{_digest(repr((frames.shape, fps)).encode() + frames.tobytes())}.webp"
        if not os.path.exists(self.path / name):
            with full_disk_explained(self.path / name):
                write_animation(frames, self.path / name, fps or 10.0)
        return name

    def _keep_file(self, file: Path, folder: str) -> str:
        name = f"{folder}/{_content(file)}{'' if os.path.isdir(file) else file.suffix.lower()}"
        if not os.path.exists(self.path / name):
            _place(file, self.path / name)
        return name

    def _keep_picture(self, picture: Picture) -> str:
        if isinstance(picture, str | Path):
            read_picture(picture)  # refused now, not when a reward is trained
            return self._keep_file(Path(picture), REFERENCES)
        pixels = read_picture(picture)
        name = f"{REFERENCES}/{_digest(repr(pixels.size).encode() + pixels.tobytes())}.png"
        if not os.path.exists(self.path / name):
            (self.path / REFERENCES).mkdir(parents=True, exist_ok=True)
            with atomic_file(self.path / name) as aside:
                pixels.save(aside, format="PNG")
        return name

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self.path.mkdir(parents=True, exist_ok=True)
        require_regular(self.file)
        with FileLock(self.path / f".{FILE}.lock"):
            yield


def _complete(data: bytes) -> bytes:
    """The lines of a file without a last one that was torn: what follows the last line end and is no JSON.

    Some editors leave out the end of the last line; that one is complete.
    """
    end = data.rfind(b"\n") + 1
    try:
        json.loads(data[end:])
    except (ValueError, RecursionError):
        return data[:end]
    return data


def _end_last_line(file) -> None:
    """Write the line end that an editor left out, or cut off a last line whose writer died."""
    if not file.seek(0, os.SEEK_END):
        return
    file.seek(-1, os.SEEK_END)
    if file.read(1) != b"\n":
        file.seek(0)
        data = file.read()
        if len(complete := _complete(data)) < len(data):
            file.truncate(len(complete))
        else:
            file.write(b"\n")


def _name(who: str) -> str:
    if not isinstance(who, str) or len(who) > LONGEST:
        raise UserError(f"the name {shown(who)} is no text, or too long")
    return who.strip()


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:32]


def _content(file: Path) -> str:
    """A name for what is in a file, or in the files of a folder of frames in the order of their names."""
    if os.path.isdir(file):
        return _digest(b"".join(_file_digest(p) for p in sorted(file.iterdir()) if p.is_file()))
    return _file_digest(file).hex()[:32]


def _file_digest(file: Path) -> bytes:
    digest = hashlib.sha256()
    try:
        require_regular(file)
        with open(file, "rb") as opened:
            while part := opened.read(1 << 20):
                digest.update(part)
    except OSError as error:
        raise UserError(f"{shown(file)} cannot be read ({error.strerror or error}); give another path") from None
    return digest.digest()


def _place(source: Path, target: Path) -> None:
    """Copy a file, or the files of a folder of frames. No links: the user may edit the originals."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with full_disk_explained(target):
        if os.path.isdir(source):
            with atomic_folder(target) as aside:
                for member in (member for member in source.iterdir() if member.is_file()):
                    shutil.copyfile(member, aside / member.name)
        else:
            with atomic_file(target) as aside:
                shutil.copyfile(source, aside)
