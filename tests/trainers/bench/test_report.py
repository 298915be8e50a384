"""The table and the JSON on given numbers."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from trainers.bench.iteration import PHASES
from trainers.bench.measure import Row, slowest
from trainers.bench.report import Report, number, table_row
from trainers.config import make_config

ROW = Row("decode", "video", "float32", 4, [2.0, 4.0, 3.0], [1.0], 17.0, flops=6e12, peak_bytes=3 * 2**30)


def report(rows: list[Row]) -> Report:
    return Report("tiny", "vace", 2, make_config("fast"), {}, {"float32": 8e12, "bfloat16": 1e15}, rows)


def rows(seconds: float) -> list[Row]:
    return [Row(name, "video", "float32", 1, [seconds]) for name in PHASES.values()]


def test_achieved_operations_are_those_of_the_median():
    cells = report([ROW]).cells(ROW)
    first = {"phase": "decode", "per": "video", "seconds": "3", "first +s": "5", "TFLOP": "6", "TFLOP/s": "2"}
    assert cells == first | {"of matmul": "25% float32", "peak GiB": "3"}


def test_operations_that_were_not_counted_are_left_empty():
    row = Row("optimiser", "update", "float32", 1, [1.0], first_seconds=2.0)
    assert table_row(row, {}).keys() == {"phase", "per", "seconds", "first +s"}


def test_a_phase_without_measurement_shows_why():
    row = Row("decode", "video", "float32", 4, error="out of memory")
    assert table_row(row, {}) == {"phase": "decode", "per": "video", "note": "out of memory"}


def test_the_phases_end_with_an_iteration():
    total = report(rows(1.0)).table()[-1]
    held_out = 32 / (10 * 128) * (30 + 2)
    assert total["phase"] == "iteration of fast"
    assert total["seconds"] == number(10 + 1 + 2 + 2 / 8 + 1 / 128 + 1 / 128 + held_out)


def test_an_iteration_with_a_phase_missing_names_it():
    failed = [
        Row("decode", "video", "float32", 4, error="out of memory"),
        *(r for r in rows(1.0) if r.name != "decode"),
    ]
    total = report(failed).table()[-1]
    assert "seconds" not in total and total["note"] == "not measured: decode"


def test_another_program_follows_the_iteration_with_its_time_in_ours():
    peer = Row("diffusers: decode", "video", "float32", 1, [6.0], ours="decode")
    table = report([peer, *rows(2.0)]).table()
    assert [row["phase"] for row in table[-2:]] == ["iteration of fast", "diffusers: decode"]
    assert table[-1]["note"] == "3 times ours"


def test_another_program_without_ours_to_compare_has_seconds_alone():
    peer = Row("diffusers: decode", "video", "float32", 1, [6.0], ours="decode")
    assert report([peer]).table()[-1] == {"phase": "diffusers: decode", "per": "video", "seconds": "6"}


def test_json_has_every_repeat_and_the_settings(tmp_path):
    report([ROW]).write(tmp_path / "bench.json")
    values = json.loads((tmp_path / "bench.json").read_text())
    assert values["rows"][0]["seconds"] == [2.0, 4.0, 3.0]
    assert values["settings"]["preset"] == "fast"
    assert values["iteration"]["seconds_per_video"] is None


@pytest.mark.parametrize(
    "value, text", [(0, "0"), (0.001234, "0.00123"), (12.345, "12.3"), (123.4, "123"), (12345.6, "12346")]
)
def test_three_digits(value, text):
    assert number(value) == text


def test_several_processes_show_the_peak_of_each_and_the_time_of_the_slowest():
    other = replace(ROW, seconds=[3.0, 3.0, 3.0], peak_bytes=2 * 2**30)
    cells = table_row(slowest([ROW, other]), {})
    assert (cells["seconds"], cells["peak GiB"]) == ("3", "3, 2")
    failed = replace(ROW, seconds=[], error="out of memory")
    assert slowest([ROW, failed]) == failed
