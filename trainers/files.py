"""Files and folders that are there completely or not at all, whatever kills the writer."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import UserError
from .processes import host, start_token

ASIDE = re.compile(
    r"\.(?P<kind>partial|replaced)-(?P<name>.+)-(?P<host>[0-9a-f]{8})-(?P<pid>\d+)-(?P<start>[0-9a-f]{8})-[0-9a-f]{8}"
)
FULL = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}
ELSEWHERE = 24 * 3600.0  # seconds after which what another machine left unfinished counts as abandoned
LONGEST_NAME = 150  # bytes of a name that are kept in the name of its unfinished copy


def write_atomic(path: str | Path, data: bytes | str, sync: bool = True) -> None:
    """Replace `path` by `data` (str is written as UTF-8). With `sync` it also survives a power cut.

    Raises UserError when the disk is full; the old file is intact then.
    """
    with atomic_file(path, sync) as aside:
        aside.write_bytes(data.encode() if isinstance(data, str) else data)


def sha256_of(path: str | Path) -> str:
    """SHA-256 of a file's content. Raises OSError."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def read_regular(path: str | Path) -> bytes:
    """The file's content. Raises OSError also for a pipe or a device, which might never end."""
    require_regular(path)
    return Path(path).read_bytes()


def require_regular(path: str | Path) -> None:
    """Raises OSError for a folder, a pipe or a device in the place of a file; not where nothing is there."""
    if os.path.exists(path) and not os.path.isfile(path):
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))


def remove(path: str | Path) -> None:
    """Remove a file, a link or a folder with all that is in it, as far as that can be done."""
    with contextlib.suppress(OSError):
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path, ignore_errors=True)
        else:
            os.unlink(path)


@contextmanager
def atomic_file(path: str | Path, sync: bool = True) -> Iterator[Path]:
    """Write the file at the yielded path; at the end of the block it replaces `path`. Its folder must exist.

    Who may read it follows from the umask, whatever writes it.

    An error in the block, or a killed process, leaves `path` as it was. With `sync` the file also survives a power cut.
    Raises UserError when the disk is full.
    """
    path = Path(path)
    aside = _aside(path, "partial")
    with full_disk_explained(path):
        try:
            aside.touch()
            mode = aside.stat().st_mode
            yield aside
            # safetensors writes files that only their owner may read.
            aside.chmod(mode)
            if sync:
                _sync_file(aside)
            os.replace(aside, path)
            if sync:
                _sync_folder(path.parent)
        except BaseException:
            aside.unlink(missing_ok=True)
            raise


def place_atomic(file: str | Path, path: str | Path) -> None:
    """Put `file` at `path` as well, replacing what is there: a hard link, or a copy where the two lie on different
    disks.

    Its folder is made. Raises OSError, and leaves what was there, when that cannot be done.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = _aside(path, "partial")
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

    The folder that holds `path` must exist. An error in the block, or a killed process, leaves `path` as it was:
    absent, or the old folder. What dead writers left beside it is removed first. Of several writers, threads or
    processes, the last one wins. Raises UserError when the disk is full.
    """
    path = Path(path)
    sweep(path.parent)
    aside, replaced = _aside(path, "partial"), []
    with full_disk_explained(path):
        try:
            aside.mkdir()
            mode = aside.stat().st_mode & 0o666
            yield aside
            for entry in aside.rglob("*"):
                if entry.is_dir():
                    _sync_folder(entry)
                else:
                    entry.chmod(mode)
                    _sync_file(entry)
            _sync_folder(aside)
            _replace_folder(aside, path, replaced)
            _sync_folder(path.parent)
        except BaseException:
            for old in reversed(replaced):
                if os.path.lexists(old) and not os.path.lexists(path):
                    old.rename(path)
            remove(aside)
            raise
        finally:
            for old in replaced:
                remove(old)


def _replace_folder(aside: Path, path: Path, replaced: list[Path]) -> None:
    """Rename `aside` to `path`. What was there gets a name of `replaced`, to which it is added."""
    while True:
        old = _aside(path, "replaced")
        replaced.append(old)
        with contextlib.suppress(FileNotFoundError):
            path.rename(old)
        try:
            aside.rename(path)
            return
        except OSError as error:
            # Another writer's folder came between the two renames.
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise


def sweep(folder: str | Path) -> None:
    """Remove what dead writers left in `folder`; a folder whose writer died between its two renames is put back."""
    for entry in Path(folder).glob(".*-*"):
        found = ASIDE.fullmatch(entry.name)
        if not found or _writer_is_alive(entry, found):
            continue
        target = entry.with_name(found["name"])
        if found["kind"] == "replaced" and not os.path.lexists(target):
            with contextlib.suppress(OSError):  # another writer may do the same
                entry.rename(target)
        else:
            remove(entry)


@contextmanager
def full_disk_explained(path: Path) -> Iterator[None]:
    """Raises UserError when the block finds no room for what it writes to `path`."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        # safetensors reports the system's error as text only.
        if getattr(error, "errno", None) in FULL or any(f"(os error {code})" in str(error) for code in FULL):
            raise UserError(
                f"the disk is full: {path} could not be written. Nothing that was saved before is lost; free some "
                f"space on the disk of {path.parent} and resume"
            ) from error
        raise


def _aside(path: Path, kind: str) -> Path:
    """A name of its own for every writer, thread and call."""
    pid = os.getpid()
    name = os.fsencode(path.name)[:LONGEST_NAME].decode(errors="ignore")
    return path.with_name(f".{kind}-{name}-{_short(host())}-{pid}-{_short(start_token(pid))}-{secrets.token_hex(4)}")


def _short(text: str | None) -> str:
    return hashlib.blake2b(str(text).encode(), digest_size=4).hexdigest()


def _writer_is_alive(entry: Path, found: re.Match) -> bool:
    if found["host"] != _short(host()):
        try:
            return time.time() - entry.stat().st_mtime < ELSEWHERE
        except OSError:
            return True
    token = start_token(int(found["pid"]))
    return token is not None and _short(token) == found["start"]


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
