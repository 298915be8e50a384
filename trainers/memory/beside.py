"""Work in a thread of its own, beside what feeds it: for a model that has a device to itself."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from queue import Queue
from typing import TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")
AHEAD = 2
"""Results that wait for the thread at most: what feeds it waits then."""
END = object()


class _Cancelled(Exception):
    """What feeds the thread has failed; the rest is not needed."""


def run_beside(
    work: Callable[[Iterable[T]], Iterable[R]], source: Iterable[T], device: torch.device, ahead: int = AHEAD
) -> list[R]:
    """`list(work(source))`, where `work` runs on `device` in another thread while `source` makes the next ones.

    `source` waits when `ahead` of its results have not been taken. Raises what either of them raises; an error of
    `work` ends `source` at its next result, an error of `source` ends `work` when it takes the next one.
    """
    waiting: Queue = Queue(ahead)
    cancelled, ended = threading.Event(), threading.Event()
    item = None

    def taken() -> Iterator[T]:
        nonlocal item
        while (item := waiting.get()) is not END:
            if cancelled.is_set():
                raise _Cancelled
            yield item

    def run() -> list[R]:
        nonlocal item
        try:
            if device.type == "cuda":
                torch.cuda.set_device(device)  # of this thread
            with torch.no_grad():
                return list(work(taken()))
        finally:
            ended.set()
            while item is not END:  # after an error: what feeds it must not wait for room
                item = waiting.get()

    with ThreadPoolExecutor(1, f"beside on {device}") as executor:
        results = executor.submit(run)
        try:
            for result in source:
                waiting.put(result)
                if ended.is_set():
                    break
        except BaseException:
            cancelled.set()
            raise
        finally:
            waiting.put(END)
        return results.result()
