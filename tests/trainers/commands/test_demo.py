"""`demo` and `evaluate` end to end, in a size that proves nothing but that every part is there."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import pytest

from trainers.commands import demo, evaluate
from trainers.errors import UserError
from trainers.grpo.evaluate import compare
from trainers.lora.formats import read_lora
from trainers.runs.folder import RunFolder
from trainers.runs.registry import latest

SMALL = {
    "iterations": 1,
    "evaluation": {"items": 2, "every": 1, "steps": 2},
    "rollout": {
        "groups_per_update": 1,
        "group_size": 2,
        "steps": 2,
        "micro_batch": 2,
        "window": {"size": 1, "last": 1},
    },
}


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    assert demo.main(Namespace(runs=folder, policy="vace"), SMALL) == 0
    return folder


def test_the_demo_leaves_curve_clips_table_and_lora(root):
    run = latest(root)
    assert run.curve_file.stat().st_size > 1000
    shown = next((run.path / "evaluation").glob("demo*"))
    assert {p.name for p in shown.iterdir()} == {"before_after.png", "before_after.webp", "metrics.md"}
    assert "identity (oracle)" in (shown / "metrics.md").read_text(encoding="utf-8")
    assert read_lora(evaluate.newest_export(run)).modules


def test_the_demo_says_where_things_are_and_what_they_say(root, capsys):
    assert evaluate.main(Namespace(runs=root, run="latest", lora=None)) == 0
    told = capsys.readouterr().out
    assert "before_after.png" in told and "held-out items" in told and str(latest(root).path) in told


@pytest.mark.parametrize(
    "before, after, verdict",
    [
        ([1.0] * 9, [2.0] * 9, "better than"),
        ([1.0] * 9, [0.0] * 9, "worse than"),
        ([1.0] * 9, [1.0] * 9, "every pair is a tie"),
        ([1.0] * 9, [1.0] * 8 + [0.5], "neither"),
        ([1.0] * 10, [2.0] * 5 + [0.0] * 5, "neither"),
    ],
)
def test_the_verdict_counts_a_tie_as_half_a_win(before, after, verdict):
    assert verdict in evaluate.verdict(compare(before, after))


def test_a_run_without_a_lora_cannot_be_evaluated(tmp_path):
    with pytest.raises(UserError, match="no LoRA"):
        evaluate.newest_export(RunFolder.create(tmp_path, demo.demo_config()))
