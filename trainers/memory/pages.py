"""Memory that the system maps from a file, as weights are when they have been read."""

from __future__ import annotations

import ctypes
import mmap
from pathlib import Path

from torch import Tensor

MAPS = Path("/proc/self/maps")  # Linux; elsewhere nothing is given back
DEVICES, FILES_IN_MEMORY = "/dev/", "/dev/shm/"


class MappedFiles:
    """What of this process's memory is mapped from files at the moment; tensors made later are not to be asked for."""

    def __init__(self) -> None:
        self._ranges: list[tuple[int, int]] = []
        for line in MAPS.read_text(encoding="utf-8", errors="replace").splitlines() if MAPS.is_file() else ():
            addresses, _, _, _, inode, *path = line.split(maxsplit=5)
            if inode != "0" and not (path and path[0].startswith(DEVICES) and not path[0].startswith(FILES_IN_MEMORY)):
                first, _, last = addresses.partition("-")
                self._ranges.append((int(first, 16), int(last, 16)))

    def give_back(self, tensor: Tensor) -> None:
        """Take the pages of a tensor that was copied elsewhere from this process, if they are mapped from a file.

        Without it a model that is copied is in memory twice until the last tensor of its file is freed. If it is used
        after all, it is read from the file again.
        """
        start, end = tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes
        if tensor.device.type != "cpu" or not tensor.is_contiguous():
            return
        if any(first <= start and end <= last for first, last in self._ranges):
            first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE  # the pages at both ends hold other tensors too
            size = end // mmap.PAGESIZE * mmap.PAGESIZE - first
            if size > 0:
                ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(size), mmap.MADV_DONTNEED)
