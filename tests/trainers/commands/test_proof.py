"""The claims of `proof` on given numbers, its plan, and how it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from argparse import ArgumentTypeError, Namespace
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from trainers.cli import main
from trainers.commands import proof
from trainers.commands.proof import Job, Row, numbers, proof_config, read_recipes, verdicts
from trainers.errors import UserError
from trainers.grpo.intervals import Interval
from trainers.processes import alive
from trainers.runs.inputs import RunInputs
from trainers.runs.registry import list_runs

NOTHING = Interval(0.0, -0.01, 0.01)
TRAINED = Row("tiny", False, [0, 1], 40, 0.5, Interval(0.3, 0.25, 0.35), NOTHING, NOTHING, 3.0, 0.9, 1.0)
CONTROL = replace(TRAINED, control=True, identity=Interval(-0.1, -0.2, 0.01))


def holds(*rows: Row) -> list[bool]:
    return [ok for _, ok in verdicts(list(rows))]


def test_all_claims_hold_where_every_recipe_gains_and_no_control_does():
    assert holds(TRAINED, replace(TRAINED, recipe="other"), CONTROL) == [True] * 3


@pytest.mark.parametrize(
    "change, failing",
    [
        ({"identity": Interval(0.3, 0.2199, 0.4)}, 0),
        ({"alignment": Interval(-0.02, -0.03, -0.001)}, 1),
    ],
)
def test_one_weak_recipe_fails_its_claim_alone(change, failing):
    found = holds(TRAINED, replace(TRAINED, recipe="weak", **change), CONTROL)
    assert [index for index, ok in enumerate(found) if not ok] == [failing]


def test_a_control_that_gains_fails():
    assert holds(TRAINED, replace(CONTROL, identity=Interval(0.05, 0.001, 0.1))) == [True, True, False]


def test_nothing_is_claimed_of_controls_that_were_not_run():
    assert holds(TRAINED) == [True, True, False]
    assert "no control was run" in verdicts([TRAINED])[2][0]


def test_only_the_last_iteration_is_claimed():
    early = replace(TRAINED, iteration=10, identity=Interval(0.05, 0.0, 0.1))
    assert holds(early, TRAINED, CONTROL) == [True] * 3


@pytest.mark.parametrize("gain, ok", [(0.2001, True), (0.1999, False)])
def test_under_the_distilled_lora_two_thirds_of_the_gain_are_claimed(gain, ok):
    under = replace(TRAINED, recipe="distilled", identity=Interval(gain, 0.1, 0.3))
    assert holds(TRAINED, under, CONTROL) == [True, True, True, ok]


@pytest.mark.parametrize("gain, ok", [(0.41, True), (0.39, False)])
def test_the_end_of_a_long_run_is_claimed_beside_the_end_of_a_shorter_one(gain, ok):
    long = replace(TRAINED, recipe="long", iteration=200, identity=Interval(gain, 0.3, 0.5))
    assert holds(TRAINED, CONTROL, long) == [True, True, True, ok]


def test_a_loss_that_is_larger_is_no_share_of_a_loss():
    plain = replace(TRAINED, identity=Interval(-0.01, -0.02, 0.0))
    assert not holds(plain, replace(plain, recipe="distilled", identity=Interval(-0.1, -0.2, 0.0)), CONTROL)[-1]


@pytest.mark.parametrize("policy, source", [("vace", "tinyworld"), ("phantom", "tinyworld-phantom")])
def test_the_proof_is_about_the_policy_asked_for(policy, source):
    assert proof_config(Job("tiny", False, 0), {}, policy).policy.source == source


def test_a_control_is_the_same_run_with_shuffled_rewards():
    trained, control = (proof_config(Job("tiny", control, 3), {"lora": {"rank": 8}}) for control in (False, True))
    assert control.reward.shuffle and not trained.reward.shuffle
    assert (trained.seed, trained.lora.rank) == (3, 8)
    assert trained.model_copy(update={"reward": control.reward}) == control


# --- arguments -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, found", [("0-4", [0, 1, 2, 3, 4]), ("3,8", [3, 8]), ("1-2,2-3", [1, 2, 3]), ("none", [])]
)
def test_numbers_are_ranges_and_lists(text, found):
    assert numbers(text) == found


@pytest.mark.parametrize("text", ["", "x", "-1", "1-", "3-1", "0-99999999999", "1,,2", "1.5"])
def test_what_is_no_list_of_numbers_is_refused(text):
    with pytest.raises(ArgumentTypeError, match="numbers"):
        numbers(text)


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["--seeds", "none"], "need at least one number"),
        (["--at", "10,15"], "--at 15: a run of 40 iterations saves a LoRA every 10"),
        (["--at", "50"], "--at 50"),
        (["--recipes", "none.yaml"], "cannot read the recipes none.yaml"),
        (["--recipes", "list.yaml"], "is not a list of recipes"),
        (["--recipes", "bad.yaml"], "did you mean rollout.steps?"),
        (["--set", "video.height=32"], "leave prompts and the size of the videos"),
    ],
)
def test_a_proof_that_could_not_be_measured_is_refused_before_it_trains(
    tmp_path, monkeypatch, capsys, arguments, sentence
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("trainers.runs.inputs.run_inputs", lambda config: RunInputs([], []))
    Path("list.yaml").write_text("- tiny")
    Path("bad.yaml").write_text("fast: {rollout: {stepz: 3}}")
    assert main(["proof", *arguments]) == 2
    assert sentence in capsys.readouterr().err
    assert not list_runs("runs/proof")


def test_recipes_are_read_from_a_file(tmp_path):
    (tmp_path / "recipes.yaml").write_text("plain:\nquick: {optim: {learning_rate: 1e-3}}")
    assert read_recipes(str(tmp_path / "recipes.yaml")) == {"plain": {}, "quick": {"optim": {"learning_rate": 1e-3}}}
    with pytest.raises(UserError, match="cannot read"):
        read_recipes(str(tmp_path))


def test_recipes_are_chosen_by_name():
    assert list(read_recipes("tiny,distilled")) == ["tiny", "distilled"]
    assert read_recipes("distilled")["distilled"]["policy"] == {"loras": ["tinyworld-4-steps"]}
    with pytest.raises(
        UserError, match="cannot read the recipes tiny,slow.*names of tiny, fast, paper, long, distilled"
    ):
        read_recipes("tiny,slow")


@pytest.mark.pipes
def test_a_pipe_as_recipes_is_refused_and_never_opened(tmp_path):
    os.mkfifo(tmp_path / "recipes.yaml")
    with pytest.raises(UserError, match="not a regular file"):
        read_recipes(str(tmp_path / "recipes.yaml"))


# --- the whole -------------------------------------------------------------------------------------------------------


@pytest.fixture
def measured(monkeypatch, tmp_path):
    """Trained runs gain 30% of the oracle's identity here, controls lose 10%."""

    class Meter:
        def __init__(self, *_):
            self.base = {name: np.full((1, 8), 0.5) for name in ("rewards", "identity", "alignment", "quality")}

        def measure(self, lora, kept):
            factor = 1.0 if lora is None else 0.9 if "control" in lora.name else 1.3
            return self.base | {"identity": self.base["identity"] * factor, "rewards": self.base["rewards"] * factor}

    class Batch:
        def __init__(self, root, configs, jobs):
            self.root, self.configs = root, configs

        def finish(self, report):
            for name in self.configs:
                path = self.root / name
                yield name, Namespace(path=path, export_path=lambda iteration, path=path: path)

    monkeypatch.setattr("trainers.grpo.wide.WideMeasure", Meter)
    monkeypatch.setattr(
        "trainers.runs.inputs.run_inputs", lambda config: Namespace(held_out=Namespace(items=[]), judge=1)
    )
    monkeypatch.setattr(proof, "RunBatch", Batch)
    monkeypatch.chdir(tmp_path)


def test_the_report_has_a_row_per_recipe_and_control(measured, tmp_path, capsys):
    Path("recipes.yaml").write_text("tiny:")
    options = ["--recipes", "recipes.yaml", "--seeds", "0-1", "--controls", "0", "--evaluation-seeds", "11"]
    assert main(["proof", *options, "--items", "8"]) == 0
    text = (tmp_path / "runs" / "proof" / "proof.md").read_text()
    assert text in capsys.readouterr().out and text.isascii()
    trained, control = (line for line in text.splitlines() if line.startswith("| tiny "))
    assert "0.500 -> 0.650" in trained and "+30.0% (+30.0% to +30.0%)" in trained and "100%" in trained
    assert "(control)" in control and "-10.0%" in control
    assert text.count("- holds: ") == 3


def test_what_was_learned_without_the_distilled_lora_is_measured_under_it_too(measured, tmp_path):
    assert main(["proof", "--recipes", "tiny,distilled", "--seeds", "0", "--controls", "0", "--items", "8"]) == 0
    text = (tmp_path / "runs" / "proof" / "proof.md").read_text()
    rows = [line.split(" | ")[0].strip("| ") for line in text.splitlines() if line.startswith("| ")][1:]
    under = "tiny, sampled as distilled"
    assert rows == ["tiny", "tiny (control)", "distilled", "distilled (control)", under, f"{under} (control)"]
    assert "- holds: `distilled` gains at least 67% of what `tiny` gains (+30.0% of +30.0%)" in text


ENDLESS = """
import sys, time
from trainers.runs.folder import RunFolder
run = RunFolder(sys.argv[1])
run.set_status(state="running", iteration=0, iterations=40)
while not run.requested("stop"):
    time.sleep(0.05)
run.take("stop")
run.set_status(state="stopped")
"""
PROOF = f"""
import sys
from trainers import cli
from trainers.commands import proof
from trainers.config import make_config
from trainers.runs import launcher
from trainers.runs.batch import RunBatch
launcher.command = lambda run, *_: [sys.executable, "-c", {ENDLESS!r}, str(run.path)]
def main(options):
    configs = {{f"run-{{seed}}": make_config("tiny", {{"seed": seed}}) for seed in range(2)}}
    for _ in RunBatch(options.runs, configs, 2).finish(print):
        pass
proof.main = main
sys.exit(cli.main(["proof", "--runs", "runs"]))
"""


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_sigterm_ends_the_runs_of_a_proof(repository, tmp_path, default_signals):
    environment = os.environ | {"PYTHONPATH": str(repository), "OMP_NUM_THREADS": "1"}
    child = subprocess.Popen(
        [sys.executable, "-c", PROOF], cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True
    )
    try:
        until = time.monotonic() + 60
        while [run.status().state for run in list_runs(tmp_path / "runs")] != ["running"] * 2:
            assert child.poll() is None and time.monotonic() < until, child.stderr.read()
            time.sleep(0.05)
        child.send_signal(signal.SIGTERM)
        assert child.communicate(timeout=30)[1] == "interrupted\n"
    finally:
        child.kill()
    assert child.returncode == 130
    for status in (run.status() for run in list_runs(tmp_path / "runs")):
        assert status.state == "stopped" and not alive(status.pid, status.pid_started)
