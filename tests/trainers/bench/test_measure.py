"""Timing and counting on work whose operations are known."""

from __future__ import annotations

import pytest
import torch

from trainers.bench.measure import OUT_OF_MEMORY, Clock, Phase, count_flops, measure, timed_steps
from trainers.errors import UserError

CPU = torch.device("cpu")


def phase(work, units: int = 1) -> Phase:
    def run(clock) -> None:
        clock.start()
        work()
        clock.stop()

    return Phase("work", "video", units, torch.float32, run)


def operations(work) -> float:
    return count_flops(phase(work).run, CPU)


def test_a_product_counts_two_operations_per_multiply_add():
    a, b = torch.ones(3, 5), torch.ones(5, 7)
    assert operations(lambda: a @ b) == 2 * 3 * 5 * 7


def test_attention_counts_its_two_products_and_five_in_the_backward_pass():
    q, k, v = (torch.ones(2, 3, length, 8, requires_grad=True) for length in (5, 7, 7))
    product = 2 * 2 * 3 * 5 * 7 * 8

    def attend() -> torch.Tensor:
        return torch.nn.functional.scaled_dot_product_attention(q, k, v)

    assert operations(attend) == 2 * product
    assert operations(lambda: attend().sum().backward()) == (2 + 5) * product


def test_compiled_code_is_counted_as_it_runs_eagerly():
    a = torch.ones(4, 4)
    product = torch.compile(lambda x: x @ x, backend="eager")
    product(a)
    assert operations(lambda: product(a)) == 2 * 4**3


def test_a_row_has_seconds_and_operations_of_one_unit():
    a = torch.ones(2, 2)
    row = measure(phase(lambda: a @ a, units=4), CPU, repeats=5)
    assert len(row.seconds) == 5 and row.median == sorted(row.seconds)[2] > 0
    assert row.flops == 2 * 2**3 / 4
    assert not row.error


def test_memory_that_runs_out_is_a_row():
    def hungry() -> None:
        torch.empty(2**60)

    row = measure(phase(hungry), CPU, repeats=1)
    assert (row.error, row.seconds) == (OUT_OF_MEMORY, [])


def test_operations_that_do_not_fit_into_memory_leave_the_seconds():
    calls = []

    def work() -> None:
        calls.append(1)
        if len(calls) == 1:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    row = measure(phase(work), CPU, repeats=1)
    assert len(row.seconds) == 1 and row.flops == 0 and not row.error


def test_a_refusal_is_a_row_with_its_first_line():
    def refuse() -> None:
        raise UserError("the policy is sleepy\nwake it")

    assert measure(phase(refuse), CPU, repeats=1).error == "UserError: the policy is sleepy"


def test_a_programming_error_is_raised():
    def wrong() -> None:
        raise TypeError("no such argument")

    with pytest.raises(TypeError):
        measure(phase(wrong), CPU, repeats=1)


def test_steps_are_timed_from_the_first_call_and_end_the_loop():
    clock, done = Clock(CPU), []
    with timed_steps(clock, 2) as step:
        for index in range(10):
            step()
            done.append(index)
    assert done == [0, 1] and clock.wall > 0


def test_an_error_in_timed_steps_is_raised():
    with pytest.raises(KeyError), timed_steps(Clock(CPU), 2) as step:
        step()
        raise KeyError


def test_what_a_phase_prepares_is_not_counted():
    a = torch.ones(2, 2)

    def run(clock: Clock) -> None:
        a @ a
        clock.start()
        a @ a
        clock.stop()

    assert count_flops(run, CPU) == 2 * 2**3


def test_after_an_error_nothing_is_counted_any_more():
    def run(clock: Clock) -> None:
        clock.start()
        raise RuntimeError

    with pytest.raises(RuntimeError):
        count_flops(run, CPU)
    assert torch.utils._python_dispatch._get_current_dispatch_mode() is None


def test_a_row_names_the_phase_that_it_is_compared_with():
    part = Phase("part", "video", 1, torch.float32, phase(lambda: None).run, ours="decode")
    assert measure(part, CPU, repeats=1).ours == "decode"
