"""One run at a time on a device: a lock that the system gives back when its holder dies.

A device goes by a name that is the same in all processes of this machine: `cuda-<uuid>`, `cpu`, `mps`.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from ..errors import UserError, command_line
from ..files import write_atomic


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
    """Hold `device` for the run in the folder `run`. Raises UserError naming the run that has it."""
    folder = locks_folder()
    lock = FileLock(folder / f"{device}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise busy(device, _holder(device)) from None
    try:
        write_atomic(folder / f"{device}.run", os.fsencode(run), sync=False)
        yield
    finally:
        lock.release()


def busy(device: str, holder: Path) -> UserError:
    """The error about a device that the run in the folder `holder` has."""
    return UserError(
        f"{device} is in use by run {holder.name}; stop it (`{command_line('runs', 'stop', holder)}`), wait for its "
        "end, or choose another device"
    )


def _holder(device: str) -> Path:
    file = locks_folder() / f"{device}.run"
    return Path(os.fsdecode(file.read_bytes())) if file.is_file() else Path("unknown")
