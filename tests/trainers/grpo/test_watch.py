"""Processes that miss one another. Two watches in one process, each with its own connection, as two processes have."""

from __future__ import annotations

import os
import queue

import pytest

from trainers.grpo.watch import RankWatch

FAST = {"every": 0.02, "patience": 0.4}


@pytest.fixture
def watches(monkeypatch):
    """`watches(count)`: one watch for each process, and the queue of (rank, reason) of what they miss."""
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    made, missed, ports = [], queue.Queue(), []

    def broadcast(value):
        ports.append(value)
        return ports[0]

    def make(living: int, count: int):
        for rank in range(living):
            made.append(RankWatch(rank, count, broadcast, lambda why, rank=rank: missed.put((rank, why)), **FAST))
        return made, missed

    yield make
    for watch in reversed(made):
        watch.close()


def test_the_main_process_sees_the_signs_of_all(watches):
    made, missed = watches(2, 2)
    while not all(one["pid"] for one in made[0].ages()):
        pass
    ages = made[0].ages()
    assert [(one["rank"], one["pid"]) for one in ages] == [(0, os.getpid()), (1, os.getpid())]
    assert all(one["seconds"] < 30 for one in ages) and missed.empty()


def test_a_process_that_gives_no_sign_is_missed_by_the_main_one(watches):
    _, missed = watches(1, 2)
    rank, why = missed.get(timeout=30)
    assert rank == 0 and "process 1 of 2, counted from 0, has given no sign of life for" in why


def test_the_others_miss_the_main_process_when_it_ends(watches):
    made, missed = watches(2, 2)
    made[0].close()
    made.pop(0)._store = None  # its store ends with it
    rank, why = missed.get(timeout=30)
    assert rank == 1 and "the main process cannot be reached" in why
