"""Frame choice, sizes and times."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainers.errors import UserError
from trainers.rewards.geometry import (
    IMAGE_MIN_PIXELS,
    MAX_PIXELS,
    VIDEO_MIN_PIXELS,
    frame_count,
    frame_indices,
    resized,
    seconds_per_step,
    time_position,
)


@pytest.mark.parametrize(("configured", "used"), [(5.0, 4), (4, 4), (3.0, 4), (7, 8), (16, 16), (1, 2)])
def test_frame_counts_are_rounded_half_even_to_pairs(configured: float, used: int) -> None:
    assert frame_count(configured) == used


@pytest.mark.parametrize(
    ("total", "indices"), [(33, [0, 11, 21, 32]), (81, [0, 27, 53, 80]), (17, [0, 5, 11, 16]), (4, [0, 1, 2, 3])]
)
def test_frames_are_spread_from_the_first_to_the_last(total: int, indices: list[int]) -> None:
    assert frame_indices(total) == indices


@given(st.integers(1, 2000), st.sampled_from([2, 4, 6, 8]))
def test_frame_indices_stay_inside_and_in_order(total: int, count: int) -> None:
    indices = frame_indices(total, count)
    assert len(indices) == count
    assert indices == sorted(indices)
    assert indices[0] == 0 and indices[-1] == total - 1


def test_an_empty_clip_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one frame"):
        frame_indices(0)


@given(st.integers(1, 3000), st.integers(1, 3000), st.sampled_from([IMAGE_MIN_PIXELS, VIDEO_MIN_PIXELS]))
def test_sizes_are_multiples_of_28_within_bounds(height: int, width: int, minimum: int) -> None:
    if max(height, width) > 40 * min(height, width):
        return
    h, w = resized(height, width, minimum)
    assert h % 28 == 0 and w % 28 == 0
    assert minimum <= h * w <= MAX_PIXELS


@given(st.integers(2, 40), st.integers(2, 40))
def test_sizes_that_fit_stay(rows: int, columns: int) -> None:
    if IMAGE_MIN_PIXELS <= 784 * rows * columns <= MAX_PIXELS:
        assert resized(28 * rows, 28 * columns, IMAGE_MIN_PIXELS) == (28 * rows, 28 * columns)


@pytest.mark.parametrize(
    ("size", "expected"),
    [((480, 832), (476, 812)), ((240, 416), (252, 420)), ((148, 100), (392, 280)), ((48, 80), (252, 420))],
)
def test_clip_sizes_of_the_reference(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert resized(*size, VIDEO_MIN_PIXELS) == expected


def test_a_strip_is_refused() -> None:
    with pytest.raises(UserError, match="2x500 is too narrow.*crop it"):
        resized(2, 500, IMAGE_MIN_PIXELS)


def test_the_product_is_floored_not_the_seconds() -> None:
    assert seconds_per_step(33, 10.0) == pytest.approx(1.65)
    assert time_position(1, 1.65, 2) == 3


def test_times_on_the_border_of_an_integer_fall_as_in_float32() -> None:
    """At 10 fps a step lasts total / 20 s, so its time is total / 10 tokens, floored, exactly on whole numbers too."""
    assert [time_position(1, seconds_per_step(total, 10.0), 2) for total in range(4, 130)] == [
        t // 10 for t in range(4, 130)
    ]


@pytest.mark.parametrize("fps", [0.0, -1.0, float("nan"), float("inf"), 1e-30, 1e30])
def test_impossible_rates_are_refused(fps: float) -> None:
    """1e-30 frames a second would place a frame beyond every integer on the time axis."""
    with pytest.raises(UserError, match="fps is .*between"):
        seconds_per_step(9, fps)
