"""The loop's invariants, on TinyWorld's real models."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from trainers.config import make_config
from trainers.errors import UserError
from trainers.grpo.checkpoint import checkpoints
from trainers.grpo.loop import train
from trainers.runs.folder import RunFolder

PROGRAM = Path(__file__).parent / "small_run.py"
sys.path.insert(0, str(PROGRAM.parent))

from small_run import small_config


def run_small(root: Path, **changes) -> RunFolder:
    run = RunFolder.create(root, small_config(**changes))
    assert train(run.config(), run).state == "finished"
    return run


def weights(run: RunFolder) -> dict[str, torch.Tensor]:
    return load_file(checkpoints(run.checkpoints)[-1] / "lora.safetensors")


def train_rows(run: RunFolder) -> list[dict]:
    return [row for row in run.read_metrics() if row["kind"] == "train"]


def distance(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert a.keys() == b.keys()
    return max((a[n] - b[n]).abs().max().item() for n in a)


def program(*arguments: str | Path, processes: int = 1) -> subprocess.CompletedProcess:
    launch = ["-m", "accelerate.commands.launch", "--cpu", "--num_processes", str(processes), "--num_machines", "1",
              "--mixed_precision", "no", "--dynamo_backend", "no"] if processes > 1 else []
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *launch, str(PROGRAM), *map(str, arguments)], check=False, capture_output=True, text=True,
                          timeout=240, env=environment)


@pytest.fixture(scope="module")
def reference_run(tmp_path_factory) -> RunFolder:
    """Two iterations that nothing disturbed."""
    torch.set_num_threads(1)
    return run_small(tmp_path_factory.mktemp("reference"))


@pytest.mark.parametrize("optim", [{}, {"ratio": "guard", "clip_range": 2e-6}], ids=["plain", "guard"])
def test_ratio_is_exactly_one_at_the_first_on_policy_update(tmp_path, optim):
    run = run_small(tmp_path, iterations=1, optim=optim)
    assert train_rows(run)[0]["ratio_error"] == 0.0


def test_training_moves_the_weights_and_the_average(reference_run):
    first, last = checkpoints(reference_run.checkpoints)[0], checkpoints(reference_run.checkpoints)[-1]
    assert distance(load_file(first / "lora.safetensors"), load_file(last / "lora.safetensors")) > 1e-5
    assert distance(load_file(last / "lora.safetensors"), load_file(last / "ema.safetensors")) > 0


@pytest.mark.parametrize("rollout, update", [(4, 1), (2, 2), (1, 1)])
def test_micro_batches_change_nothing(reference_run, tmp_path, rollout, update):
    run = run_small(tmp_path, rollout={"micro_batch": rollout}, optim={"micro_batch": update}, reward={"micro_batch": 3})
    assert distance(weights(run), weights(reference_run)) < 2e-5
    assert train_rows(run)[0]["reward_mean"] == pytest.approx(train_rows(reference_run)[0]["reward_mean"], abs=1e-4)


def test_two_processes_do_what_one_does(reference_run, tmp_path):
    run = RunFolder.create(tmp_path, small_config())
    done = program(run.path, "start", processes=2)
    assert done.returncode == 0, done.stderr[-2000:]
    assert distance(weights(run), weights(reference_run)) < 2e-5
    rows = [(row["kind"], row["iteration"]) for row in run.read_metrics()]
    assert rows == [(row["kind"], row["iteration"]) for row in reference_run.read_metrics()]


@pytest.mark.parametrize("phase", ["rollout", "update", "checkpoint"])
def test_a_killed_run_resumes_to_the_same_weights(reference_run, tmp_path, phase):
    run = RunFolder.create(tmp_path, small_config())
    killed = program(run.path, "start", "--die", phase, "--iteration", "1")
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
    assert checkpoints(run.checkpoints)[-1].name == "000001"
    resumed = program(run.path, "resume")
    assert resumed.returncode == 0, resumed.stderr[-2000:]
    assert distance(weights(run), weights(reference_run)) == 0.0
    assert [row["iteration"] for row in train_rows(run)] == [1, 2]


def test_ctrl_c_stops_the_run_and_keeps_its_last_checkpoint(tmp_path):
    run = RunFolder.create(tmp_path, small_config(iterations=50))
    child = subprocess.Popen([sys.executable, str(PROGRAM), str(run.path), "start"], env=os.environ | {"OMP_NUM_THREADS": "1"},
                             stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while not checkpoints(run.checkpoints):
            assert child.poll() is None
        child.send_signal(signal.SIGINT)
        assert child.wait(60) == 0
    finally:
        child.kill()
    assert run.status()["state"] == "stopped"
    assert checkpoints(run.checkpoints)


def test_a_diverging_run_fails_and_leaves_its_last_checkpoint(tmp_path):
    run = RunFolder.create(tmp_path, small_config(iterations=4, optim={"learning_rate": 1e30}))
    with pytest.raises(UserError, match="last checkpoint"):
        train(run.config(), run)
    status = run.status()
    assert status["state"] == "failed" and "last checkpoint" in status["last_error"]
    assert all(torch.isfinite(t).all() for t in load_file(checkpoints(run.checkpoints)[0] / "lora.safetensors").values())


def test_a_run_with_checkpoints_does_not_start_again_at_zero(reference_run):
    with pytest.raises(UserError, match="resume"):
        train(reference_run.config(), reference_run)


def test_a_checkpoint_of_another_policy_is_refused(reference_run, tmp_path):
    run = run_small(tmp_path, iterations=1)
    newest = checkpoints(run.checkpoints)[-1]
    progress = json.loads((newest / "progress.json").read_text())
    (newest / "progress.json").write_text(json.dumps(progress | {"policy": "phantom"}))
    with pytest.raises(UserError, match="phantom"):
        train(run.config(), run, resume=True)


def test_a_checkpoint_of_another_rank_is_refused(tmp_path):
    run = run_small(tmp_path, iterations=1)
    larger = make_config("tiny", small_config(lora={"rank": 3}, iterations=2).model_dump(exclude={"preset"}))
    with pytest.raises(UserError, match="rank"):
        train(larger, run, resume=True)


def test_the_untouched_policy_is_measured_first(reference_run):
    first = reference_run.read_metrics()[0]
    assert (first["kind"], first["iteration"], first["win"], first["tie"]) == ("evaluation", 0, 0.0, 1.0)


def test_an_iteration_zero_lora_changes_no_pixel(reference_run):
    """The LoRA starts at zero, so the first export must not move the policy."""
    ups = [v for k, v in load_file(reference_run.exports / f"{reference_run.id}-000000.safetensors").items() if "lora_up" in k]
    assert ups and all(not u.any() for u in ups)
