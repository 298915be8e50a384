"""One run at a time on a device: a lock that the system gives back when its holder dies.

A device goes by a name that is the same in all processes of this machine: `cuda-<uuid>`, `cpu`, `mps`.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from ..errors import UserError, command_line
from ..files import write_atomic

PROBING_SECONDS = 0.5
"""For how long a lock that is held is tried again: `holders` of another process takes each one for an instant."""
CHANGING_SECONDS = 60.0


class DeviceBusy(UserError):
    """Another run has the device."""


def locks_folder() -> Path:
    """A folder of this user on this machine; the temporary folder, because homes may be shared between machines."""
    folder = Path(tempfile.gettempdir()) / f"identity-grpo-{os.getuid() if hasattr(os, 'getuid') else os.getlogin()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if hasattr(os, "getuid") and folder.stat().st_uid != os.getuid():
        raise UserError(f"{folder} belongs to another user; set TMPDIR to a folder of your own")
    return folder


def device_name(kind: str, index: int | None = None) -> str:
    """The name of a torch device of type `kind`; `index`: which CUDA device, as this process counts them."""
    if kind != "cuda":
        return kind
    import torch

    return f"cuda-{torch.cuda.get_device_properties(index or 0).uuid}"


def holders(devices: Iterable[str]) -> dict[str, Path]:
    """Which of the `devices` are held now, and the folders of the runs that hold them."""
    found = {}
    for device in devices:
        try:
            with FileLock(locks_folder() / f"{device}.lock", timeout=0):
                pass
        except Timeout:
            found[device] = _holder(device)
    return found


@contextmanager
def hold_device(device: str, run: Path) -> Iterator[None]:
    """Hold `device` for the run in the folder `run`. Raises DeviceBusy naming the run that has it."""
    folder = locks_folder()
    lock = FileLock(folder / f"{device}.lock")
    try:
        lock.acquire(timeout=PROBING_SECONDS)
    except Timeout:
        raise busy(device, _holder(device)) from None
    try:
        write_atomic(folder / f"{device}.run", os.fsencode(run), sync=False)
        yield
    finally:
        lock.release()


@contextmanager
def hold_runs(root: str | Path, wait: float = CHANGING_SECONDS) -> Iterator[None]:
    """Within the block nobody else on this machine starts, deletes or restores a run under `root`: two servers may
    share it.

    Raises UserError when another program keeps it for longer than `wait` seconds.
    """
    name = hashlib.blake2b(os.fsencode(os.path.realpath(root)), digest_size=8).hexdigest()
    try:
        with FileLock(locks_folder() / f"runs-{name}.lock", timeout=wait):
            yield
    except Timeout:
        raise UserError(f"another program is changing the runs in {root}; try again when it has ended") from None


def busy(device: str, holder: Path) -> DeviceBusy:
    """The error about a device that the run in the folder `holder` has."""
    return DeviceBusy(
        f"{device} is in use by run {holder.name}; stop it (`{command_line('runs', 'stop', holder)}`), wait for its "
        "end (in the queue: `--wait`), or choose another device"
    )


def _holder(device: str) -> Path:
    file = locks_folder() / f"{device}.run"
    return Path(os.fsdecode(file.read_bytes())) if file.is_file() else Path("unknown")
