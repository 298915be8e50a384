"""`demo` and `evaluate` end to end, in a size in which nothing is learned."""

from __future__ import annotations

import io
from argparse import Namespace
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

from trainers.commands import demo, evaluate
from trainers.errors import UserError
from trainers.grpo.evaluate import compare
from trainers.grpo.trainer import Result
from trainers.lora.formats import read_lora
from trainers.runs.folder import RunFolder
from trainers.runs.progress import ProgressReport
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
def output() -> list[str]:
    """What the demo prints."""
    return []


@pytest.fixture(scope="module")
def root(tmp_path_factory, output) -> Path:
    folder, text = tmp_path_factory.mktemp("demo"), io.StringIO()
    with redirect_stdout(text), redirect_stderr(io.StringIO()):
        assert demo.main(Namespace(runs=folder, policy="vace"), SMALL) == 0
    output.extend(text.getvalue().splitlines())
    return folder


def test_the_demo_leaves_curve_clips_table_and_lora(root):
    run = latest(root)
    assert run.curve_file.stat().st_size > 1000
    shown = next((run.path / "evaluation").glob("demo*"))
    assert {p.name for p in shown.iterdir()} == {"before_after.png", "before_after.webp", "metrics.md"}
    assert "identity (oracle)" in (shown / "metrics.md").read_text(encoding="utf-8")
    assert read_lora(evaluate.newest_export(run)).modules


def test_the_demo_prints_how_long_the_rest_takes_after_the_first_iteration(root, output):
    (estimate,) = (number for number, line in enumerate(output) if "this machine needs about" in line)
    (first,) = (number for number, line in enumerate(output) if " iteration 1/1, reward " in line)
    assert estimate < first and output[-1].endswith(" in all")


def test_the_estimate_counts_the_evaluations_to_come():
    config = demo.demo_config()
    assert (config.iterations, config.evaluation.every, config.evaluation.items) == (20, 5, 48)
    # At iterations 5, 10, 15 and 20, and of both policies at the end.
    assert demo.evaluations_in_iterations(config) == 6 * 48 / 128
    lines, shown = io.StringIO(), []
    report = ProgressReport(1, 20, "training", 1 / 20, eta_seconds=190.0, metrics={"reward_mean": 0.0})
    with redirect_stdout(lines):
        demo._Estimate(shown.append, config)(report)
    assert shown == [report]
    assert lines.getvalue().strip() == "this machine needs about 3 min 32 s for the rest"


def test_a_stopped_demo_proposes_how_to_continue_and_evaluates_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["__main__.py"])
    monkeypatch.setattr(demo, "execute", lambda *_: Result("stopped", 3, None))
    monkeypatch.setattr(evaluate, "evaluate", None)
    assert demo.main(Namespace(runs=tmp_path, policy="vace")) == 130
    run = latest(tmp_path)
    ending = f"stopped after 3 of 20 iterations\ncontinue python -m trainers resume {run.path}\n"
    assert capsys.readouterr().out.endswith(ending)


def test_evaluate_prints_where_things_are_and_the_numbers_as_sentences(root, capsys):
    assert evaluate.main(Namespace(runs=root, run="latest", lora=None)) == 0
    text = capsys.readouterr().out
    assert "before_after.png" in text and "held-out items" in text and str(latest(root).path) in text


@pytest.mark.parametrize(
    "before, after, verdict",
    [
        ([1.0] * 9, [2.0] * 9, "better than"),
        ([1.0] * 9, [0.0] * 9, "worse than"),
        ([1.0] * 9, [1.0] * 9, "equal to (every pair is a tie)"),
        ([1.0] * 9, [1.0] * 8 + [0.5], "neither"),
        ([1.0] * 10, [2.0] * 5 + [0.0] * 5, "neither"),
        # Two-sided p of the sign test: 5 of 5 is 0.0625, 6 of 6 0.03125, 15 of 20 0.0414, 14 of 20 0.1153.
        ([1.0] * 5, [2.0] * 5, "neither"),
        ([1.0] * 6, [2.0] * 6, "better than"),
        ([1.0] * 20, [2.0] * 15 + [0.0] * 5, "better than"),
        ([1.0] * 20, [2.0] * 5 + [0.0] * 15, "worse than"),
        ([1.0] * 20, [2.0] * 14 + [0.0] * 6, "neither"),
        ([1.0] * 50, [2.0] * 15 + [0.0] * 5 + [1.0] * 30, "better than"),
    ],
)
def test_the_verdict_is_that_of_a_sign_test_without_ties(before, after, verdict):
    assert evaluate.verdict(compare(before, after), len(before)).startswith(verdict)


def test_a_run_without_a_lora_cannot_be_evaluated(tmp_path):
    with pytest.raises(UserError, match="no LoRA"):
        evaluate.newest_export(RunFolder.create(tmp_path, demo.demo_config()))
