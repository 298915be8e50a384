"""Work beside what feeds it: the same results, nobody runs ahead, errors of both sides end both."""

from __future__ import annotations

import threading

import pytest
import torch

from trainers.memory.beside import run_beside

CPU = torch.device("cpu")


def test_the_results_are_those_of_one_after_the_other():
    def work(numbers):
        yield from (number**2 for number in numbers)
        yield "the end"

    assert run_beside(work, iter(range(20)), CPU) == [*(n**2 for n in range(20)), "the end"]


def test_the_source_waits_for_work_that_is_behind():
    made, go = [], threading.Event()

    def source():
        for number in range(10):
            made.append(number)
            if number == 4:  # one at work, two that wait, one that cannot be put down
                go.set()
            yield number

    def work(numbers):
        for number in numbers:
            if number == 0:
                assert not go.wait(0.2) and made == [0, 1, 2, 3]
            yield number

    assert run_beside(work, source(), CPU, ahead=2) == list(range(10))


def test_an_error_of_the_work_ends_the_source():
    made = []

    def source():
        for number in range(1000):
            made.append(number)
            yield number

    def work(numbers):
        for number in numbers:
            if number == 3:
                raise ValueError("the score of clip 3")
            yield number

    threads = set(threading.enumerate())
    with pytest.raises(ValueError, match="the score of clip 3"):
        run_beside(work, source(), CPU)
    assert len(made) < 1000 and set(threading.enumerate()) <= threads


def test_an_error_of_the_source_ends_the_work():
    scored = []

    def source():
        yield from range(5)
        raise KeyboardInterrupt

    def work(numbers):
        scored.extend(numbers)
        scored.append("the rest")
        return []

    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        run_beside(work, source(), CPU)
    assert "the rest" not in scored and threading.active_count() == before
