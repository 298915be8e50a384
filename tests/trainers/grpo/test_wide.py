"""Wide measurements are kept in files, which may be damaged."""

from __future__ import annotations

import json

import numpy as np
import pytest

from trainers.config import make_config
from trainers.grpo.wide import FIELDS, WideMeasure

MEASURED = {name: np.arange(6.0).reshape(2, 3) for name in FIELDS}
KEPT = {"seeds": [11, 12], "items": 3, **{name: value.tolist() for name, value in MEASURED.items()}}


@pytest.fixture
def meter(monkeypatch):
    """One of three items under two noises whose measuring is counted."""
    monkeypatch.setattr(WideMeasure, "_measure", lambda self, lora: self.asked.append(lora) or MEASURED)
    meter = WideMeasure(make_config("tiny"), [None] * 3, [11, 12], None, "cpu")
    meter.asked = []
    return meter


def test_what_is_kept_is_not_measured_again(meter, tmp_path):
    for _ in range(2):
        found = meter.measure(None, tmp_path / "kept.json")
        assert all(np.array_equal(found[name], value) for name, value in MEASURED.items())
    assert meter.asked == [None]


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "[" * 10_000,
        json.dumps({"seeds": [11, 12], "items": 3}),
        json.dumps(KEPT | {"rewards": [[1.0]]}),
        json.dumps(KEPT | {"identity": [["a"] * 3] * 2}),
        json.dumps(KEPT | {"quality": [[float("nan")] * 3] * 2}),
    ],
    ids=lambda text: text[:30],
)
def test_a_damaged_file_is_measured_again(meter, tmp_path, text):
    (tmp_path / "kept.json").write_text(text)
    meter.measure(None, tmp_path / "kept.json")
    assert meter.asked == [None] and json.loads((tmp_path / "kept.json").read_text()) == KEPT
