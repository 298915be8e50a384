"""Files and folders that are there whole or not at all, whatever kills the writer."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import UserError
from .processes import started

ASIDE = re.compile(r"\.(partial|replaced)-(?P<name>.+)-(?P<pid>\d+)")
FULL = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}


def write_atomic(path: str | Path, data: bytes | str, sync: bool = True) -> None:
    """Replace `path` by `data` (str is written as UTF-8). With `sync` it also survives a power cut.

    Raises UserError when the disk is full; the old file is intact then.
    """
    path = Path(path)
    aside = _aside(path, "partial")
    with full_disk_explained(path):
        try:
            with open(aside, "wb") as file:
                file.write(data.encode() if isinstance(data, str) else data)
                file.flush()
                if sync:
                    os.fsync(file.fileno())
            os.replace(aside, path)
            if sync:
                _sync_folder(path.parent)
        except BaseException:
            aside.unlink(missing_ok=True)
            raise


def place_atomic(file: str | Path, path: str | Path) -> None:
    """Put `file` at `path` as well, replacing what is there: a hard link, or a copy where the two lie on different disks.

    Its folder is made. Raises OSError, and leaves what was there, when that cannot be done.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = _aside(path, "partial")
    aside.unlink(missing_ok=True)
    try:
        try:
            os.link(file, aside)
        except OSError:
            shutil.copyfile(file, aside)
            _sync_file(aside)
        os.replace(aside, path)
    finally:
        # There after a failure, and when `path` was this very file already: POSIX then renames nothing.
        aside.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Fill the folder that is yielded; at the end of the block it is synced to disk and becomes `path`.

    An error in the block, or a killed process, leaves `path` as it was: absent, or the old folder. What dead writers left
    beside it is removed first. Raises UserError when the disk is full.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    sweep(path.parent)
    aside, old = _aside(path, "partial"), _aside(path, "replaced")
    with full_disk_explained(path):
        try:
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir()
            yield aside
            for entry in aside.rglob("*"):
                _sync_folder(entry) if entry.is_dir() else _sync_file(entry)
            _sync_folder(aside)
            if path.exists():
                path.rename(old)
            aside.rename(path)
            _sync_folder(path.parent)
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise
    shutil.rmtree(old, ignore_errors=True)


def sweep(folder: str | Path) -> None:
    """Remove what writers that are dead left in `folder`; a folder that died between its two renames is put back."""
    for entry in Path(folder).glob(".*-*"):
        found = ASIDE.fullmatch(entry.name)
        if not found or _is_of_a_living_writer(entry, int(found["pid"])):
            continue
        target = entry.with_name(found["name"])
        if found[1] == "replaced" and not target.exists():
            entry.rename(target)
        elif entry.is_dir():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)


def _aside(path: Path, kind: str) -> Path:
    return path.with_name(f".{kind}-{path.name}-{os.getpid()}")


def _is_of_a_living_writer(entry: Path, pid: int) -> bool:
    """A process that started after the last change is another one with the same number (a restarted container's, say)."""
    since = started(pid)
    try:
        return since is not None and since <= entry.stat().st_mtime + 1
    except OSError:
        return True


@contextmanager
def full_disk_explained(path: Path) -> Iterator[None]:
    """Raises UserError when the block finds no room for what it writes to `path`."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        # safetensors reports the system's error in words only.
        if getattr(error, "errno", None) in FULL or any(f"(os error {code})" in str(error) for code in FULL):
            raise UserError(
                f"the disk is full: {path} could not be written. Nothing that was saved before is lost; "
                f"free some space on the disk of {path.parent} and resume"
            ) from error
        raise


def _sync_file(path: Path) -> None:
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    if os.name != "posix":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
