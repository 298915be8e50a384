"""What several GPUs gain, and what is predicted of more."""

from __future__ import annotations

import pytest

from trainers.bench.scaling import CostModel, Scaled, fit, predictions, rows
from trainers.config import make_config


def run(processes: int, seconds: float, videos: int = 32) -> Scaled:
    return Scaled(processes, videos, 0.75 * seconds, 0.25 * seconds, seconds, seconds, 0.0)


def test_the_fit_separates_what_is_shared_from_what_is_not():
    model = fit([run(1, 104.0), run(2, 54.0), run(4, 29.0)])
    assert (model.shared, model.fixed) == (pytest.approx(100.0), pytest.approx(4.0))
    assert model.efficiency(4) == pytest.approx(104 / (4 * 29))


def test_more_processes_than_videos_gain_nothing():
    model = CostModel(shared=80.0, fixed=1.0, videos=8)
    assert model.seconds(8) == model.seconds(64) == pytest.approx(11.0)


def test_videos_that_cannot_be_shared_out_evenly_wait_for_the_process_with_the_most():
    assert CostModel(shared=10.0, fixed=0.0, videos=10).seconds(4) == pytest.approx(3.0)


def test_a_gain_beyond_the_number_of_processes_is_no_negative_cost():
    model = fit([run(1, 100.0), run(2, 45.0)])
    assert model.fixed == 0.0 and model.shared > 0


def test_one_run_alone_counts_as_shared():
    assert fit([run(2, 50.0)]).seconds(1) == pytest.approx(100.0)


def test_the_table_compares_with_the_fewest_processes():
    two, four = rows([run(2, 60.0), run(4, 33.0)])
    assert (two["efficiency"], four["efficiency"], four["times as fast"]) == ("100.0%", "90.9%", "1.82")


def test_what_efficiency_lacks_is_waiting_exchange_and_slower_work():
    one, two = Scaled(1, 8, 80.0, 20.0, 99.0, 99.0, 0.0), Scaled(2, 8, 48.0, 13.0, 55.0, 58.0, 0.0)
    _, row = rows([one, two])
    names = ("efficiency", "waiting", "exchange", "slower work")
    parts = [float(row[name].rstrip("%")) for name in names]
    assert parts == [
        pytest.approx(100 * part / 122, abs=0.06) for part in (100.0, 2 * 3.0, 2 * 3.0 - 1.0, 110.0 - 99.0)
    ]
    assert sum(parts) == pytest.approx(100, abs=0.3)


def test_a_prediction_is_of_the_whole_recipe():
    found = list(predictions(CostModel(shared=64.0, fixed=2.0, videos=32), make_config("paper")))
    assert [row["videos of an iteration"] for row in found] == [256, 256, 256]
    assert found[0]["predicted s"] == f"{2.0 * 256 / 8 + 2.0:.1f}"
