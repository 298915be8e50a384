"""`train`, `resume` and `runs`: what they leave, what they refuse, and the commands that they propose."""

from __future__ import annotations

import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path

import pytest
import torch

from trainers.cli import main
from trainers.commands import training
from trainers.config import TINYWORLD_WEIGHTS, make_config
from trainers.errors import UserError
from trainers.runs.devices import hold_device
from trainers.runs.folder import RunFolder
from trainers.runs.machines import Machines, require_rendezvous
from trainers.runs.registry import list_runs


def wait_until(ready, child: subprocess.Popen, seconds: float = 120) -> None:
    until = time.monotonic() + seconds
    while not ready():
        assert child.poll() is None, child.stderr.read()[-2000:]
        assert time.monotonic() < until
        time.sleep(0.05)


def proposed(text: str) -> list[str]:
    """The arguments of a command in a message, as a shell splits them."""
    return shlex.split(re.search(r"(?:continue |start |undo: |`)python -m trainers ([^`\n]+)", text)[1])


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["--policy", "/missing"], "no policy at /missing"),
        (["--policy", __file__], "test_train.py is no .safetensors file"),
        (
            ["--policy", str(TINYWORLD_WEIGHTS / "reward" / "identity_reward")],
            "is a reward, not a policy; give it as --reward",
        ),
        (["--machines-file", "none.yaml"], "there is no file none.yaml"),
        (["--set", "policy.vae=/missing"], "vae: /missing"),
        (["--reward", "/missing"], "/missing"),
        (["--prompts", "none.csv"], "none.csv"),
        (["--prompts", "broken.csv"], "broken.csv"),
        (["--evaluation-prompts", "none.csv"], "none.csv"),
        (["--start-lora", "none.safetensors"], "none.safetensors"),
        (["--start-lora", "GOLDEN"], "has rank 4, but lora.rank is 32; both must be the same"),
        (["--held-out", "3"], "TinyWorld brings its own held-out items"),
        (["--set", "rollout.groups_per_update=1024"], "has 512 rows to train on but an update needs 1024 groups"),
        (["--set", "video.height=64"], "video is 80x64, but TinyWorld's videos are 80x48"),
        (["--set", "evaluation.video.width=96"], "evaluation.video is 96x48, but TinyWorld's videos are 80x48"),
        (["--preset", "paper"], "video is 416x240, but TinyWorld's videos are 80x48"),
        (["--set", "video.height=50"], "use 48 or 64"),
        (["--set", "parallel.context=2"], "parallel.context is 2, and 1 process cannot be divided"),
        (["--set", "memory.plan=sharded"], "start it with --processes 2"),
        (["--set", "trackers=[wandb]"], "run `pip install wandb`"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_inputs_that_cannot_be_used_leave_no_run_behind(here, repository, capsys, monkeypatch, arguments, sentence):
    golden = str(repository / "tests" / "golden" / "lora" / "peft")
    monkeypatch.setattr("trainers.grpo.ranks.TRACKERS", {"wandb": lambda: False})
    (here / "broken.csv").write_text("ref_paths,prompt\nmissing.png,hello\n")
    assert main(["train", *(golden if word == "GOLDEN" else word for word in arguments)]) == 2
    error = capsys.readouterr().err
    assert sentence in error and "Traceback" not in error
    assert not (here / "runs").exists()


def test_the_plan_is_printed_and_nothing_is_trained(here, small, capsys):
    assert main(["train", *small, "--plan", "--set", "memory.limit=4"]) == 0
    printed = capsys.readouterr().out
    assert "GPU memory for the run: 4.0 GiB" in printed
    assert "memory.plan auto: resident" in printed
    assert re.search(r"^update +\d\.\d GiB: .*working", printed, re.MULTILINE)
    assert not (here / "runs").exists()


def test_a_plan_that_does_not_fit_is_refused_before_anything_loads(here, small, capsys):
    assert main(["train", *small, "--plan", "--set", "memory.limit=0.1"]) == 2
    assert "no plan needs less" in capsys.readouterr().err
    assert not (here / "runs").exists()


@pytest.mark.parametrize("command", ["train", "demo"])
def test_a_busy_device_leaves_no_run_behind(here, capsys, command):
    with hold_device("cpu", here / "another"):
        assert main([command]) == 2
    assert "the CPU is in use by run another" in capsys.readouterr().err
    assert not (here / "runs").exists()


def test_more_processes_than_gpus_are_refused(here, capsys, monkeypatch):
    monkeypatch.setattr("accelerate.PartialState", lambda: Namespace(device=torch.device("cuda", 0)))
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert main(["train", "--processes", "3"]) == 2
    assert "--processes 3: give at most one for each of the 2 GPUs" in capsys.readouterr().err
    assert not (here / "runs").exists()


def test_a_busy_device_leaves_a_stopped_run_as_it_was(here, capsys):
    run = RunFolder.create(here / "runs", make_config("tiny"))
    run.set_status(state="stopped", iteration=7)
    before = run.status()
    with hold_device("cpu", here / "another"):
        assert main(["resume"]) == 2
    assert "the CPU is in use by run another" in capsys.readouterr().err
    assert run.status() == before


def test_a_folder_that_cannot_be_written_is_a_sentence(here, small, capsys):
    (here / "file").write_text("x")
    assert main(["train", *small, "--runs", str(here / "file")]) == 2
    assert re.fullmatch(r"error: .*file is a file, not a folder for runs.*\n", capsys.readouterr().err)


def test_a_run_of_another_version_does_not_spoil_the_list(here, capsys):
    run = RunFolder.create(here, make_config("tiny"))
    (run.path / "config.yaml").write_text("speed: 2")
    (run.path / "metrics.jsonl").write_text('{"kind": "evaluation", "iteration": 4}\n')
    (run.path / "status.json").write_text('{"state": "running", "pid": "x", "updated": "yesterday"}')
    assert main(["runs", "--runs", str(here)]) == 0
    assert run.id in capsys.readouterr().out
    assert main(["runs", "show", "--runs", str(here)]) == 0
    assert "config.yaml is of another version" in capsys.readouterr().out


# --- runs ------------------------------------------------------------------------------------------------------------


def test_train_leaves_what_it_prints(here, only_run, small, capsys):
    name = "first" + "x" * 295
    assert main(["train", *small, "--iterations", "1", "--name", name, "--set", "trackers=[tensorboard]"]) == 0
    output = capsys.readouterr().out
    run = only_run()
    assert run.id.startswith("firstxxx") and len(run.id) < 100 and run.status().state == "finished"
    named = re.findall(r"^(?:LoRA|curve) +(\S+)$", output, re.MULTILINE)
    assert len(named) == 2 and all(Path(path).is_file() for path in named)
    assert any(b"reward_mean" in events.read_bytes() for events in run.path.rglob("events.out.tfevents.*"))
    assert main(["runs"]) == 0
    assert re.search(rf"{run.id} .*finished .*1/1 .*\d+%", capsys.readouterr().out)
    assert main(["runs", "show", "first"]) == 0
    assert "finished, iteration 1 of 1" in capsys.readouterr().out
    assert main(["resume", "first"]) == 2
    assert "is finished" in capsys.readouterr().err


def test_ctrl_c_saves_and_the_command_it_proposes_continues(here, only_run, background, small, monkeypatch):
    child = background("train", *small, "--iterations", "8")
    wait_until(lambda: list_runs(here / "runs") and (only_run().checkpoints_folder / "000000").exists(), child)
    child.send_signal(signal.SIGINT)
    output, errors = child.communicate(timeout=120)
    assert child.returncode == 130, errors[-2000:]
    assert only_run().status().state == "stopped" and "Traceback" not in errors
    (here / "elsewhere").mkdir()
    monkeypatch.chdir(here / "elsewhere")
    assert main(proposed(output)) == 0
    assert [row["iteration"] for row in only_run().training()] == [*range(1, 9)]


def test_a_run_of_another_terminal_is_in_the_queue_keeps_its_device_and_can_be_stopped(
    here, only_run, background, small, capsys, monkeypatch
):
    with hold_device("cpu", here / "a-run-that-trains"):
        child = background("train", *small, "--iterations", "500", "--wait")
        wait_until(lambda: list_runs(here / "runs") and only_run().status().place == 1, child)
        first = only_run().id
        assert main(["runs"]) == 0
        assert "queued (1)" in capsys.readouterr().out
        assert main(["runs", "queue"]) == 0
        assert re.search(rf"1 +\| {first} +\| cpu +\| a-run-that-trains", capsys.readouterr().out)
        assert main(["runs", "move", "latest", "first"]) == 0
        assert "place 1" in capsys.readouterr().out
    wait_until(lambda: only_run().status().state == "running", child)
    (here / "elsewhere").mkdir()
    monkeypatch.chdir(here / "elsewhere")
    assert main(["train", *small]) == 2
    busy = capsys.readouterr().err
    assert f"the CPU is in use by run {first}" in busy
    assert main(["resume", "--runs", str(here / "runs")]) == 2
    assert proposed(capsys.readouterr().err) == proposed(busy)
    assert main(proposed(busy)) == 0
    assert capsys.readouterr().out == f"{first}: stopped\n"
    output, errors = child.communicate(timeout=30)
    assert child.returncode == 130, errors[-2000:]
    assert "waits for the CPU, place 1 in the queue; run a-run-that-trains has it" in output


def test_a_resume_that_is_interrupted_while_it_loads_keeps_its_iteration(here, monkeypatch):
    run = RunFolder.create(here / "runs", make_config("tiny"))
    run.set_status(state="stopped", iteration=7, iterations=24)

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("trainers.runs.inputs.resolve_prompts", lambda config: ([], []))
    monkeypatch.setattr("trainers.grpo.trainer.load_models", interrupted)
    assert main(["resume"]) == 130
    assert (run.status().state, run.status().iteration) == ("stopped", 7)


@pytest.mark.parametrize("at", ["trainers.commands.training.quiet_libraries", "trainers.runs.inputs.resolve_prompts"])
def test_ctrl_c_before_the_training_begins_is_a_stop(here, monkeypatch, at):
    run = RunFolder.create(here / "runs", make_config("tiny"))

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(at, interrupted)
    assert main(["resume"]) == 130
    assert run.status().state == "stopped"


def test_processes_that_were_stopped_while_they_loaded_leave_a_stopped_run(here, monkeypatch):
    run = RunFolder.create(here / "runs", make_config("tiny"))
    run.set_status(state="starting")
    monkeypatch.setattr("trainers.commands.work.run_processes", lambda *_, **__: None)
    assert main(["work", str(run.path), "--processes", "2"]) == 0
    assert run.status().state == "stopped"


def test_a_rendezvous_whose_port_is_taken_is_refused_before_anything_loads(here, capsys):
    run = RunFolder.create(here / "runs", make_config("tiny"))
    with socket.create_server(("", 0)) as other:
        place = f"localhost:{other.getsockname()[1]}"
        assert main(["work", str(run.path), "--machines", "2", "--rendezvous", place]) == 2
    assert "cannot be used (Address already in use); end what uses it, or give another" in capsys.readouterr().err
    assert run.status().state == "failed" and place in run.status().last_error


def test_a_rendezvous_that_machine_0_cannot_find_is_refused(monkeypatch):
    def unknown(*_):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr("socket.getaddrinfo", unknown)
    with pytest.raises(UserError, match="does not know the name `head` .Name or service not known.; give its address"):
        require_rendezvous(Machines(2, 0, "head:29500"))
    require_rendezvous(Machines(2, 1, "head:29500"))  # its name may be known later


SEVERAL = """
import sys, time
from trainers.runs.folder import RunFolder
run = RunFolder(sys.argv[1])
run.set_status(state="running", iteration=0, iterations=2, phase="rollouts")
time.sleep(1)
run.append_metrics({"kind": "train", "iteration": 1, "reward_mean": 1.5})
run.set_status(state="running", iteration=1, phase="rollouts", eta_seconds=65.0)
time.sleep(1)
run.set_status(state="finished", iteration=2)
"""


def test_a_run_of_several_processes_is_followed_in_lines(here, repository, capsys, monkeypatch):
    def start(run, resuming, processes, wait, machines):
        assert (resuming, processes, machines.count) == (False, 3, 1)
        return subprocess.Popen([sys.executable, "-c", SEVERAL, run.path], env={"PYTHONPATH": str(repository)})

    monkeypatch.setattr(training.launcher, "start", start)
    assert training.train_to_end(RunFolder.create(here / "runs", make_config("tiny")), False, 3) == 0
    output = capsys.readouterr().out
    assert len(re.findall(r"^\d\d:\d\d:\d\d iteration 1/2, reward 1.5000, 1 min 5 s left$", output, re.MULTILINE)) == 1
    assert "finished after 2 of 2 iterations" in output


FAILING = """
import sys
from trainers.runs.folder import RunFolder
run = RunFolder(sys.argv[1])
run.set_status(state="failed", last_error="the clip is broken")
run.log_file.write_text(sys.argv[2])
sys.exit(2)
"""


@pytest.mark.parametrize(
    "log, shown",
    [
        ("error: the clip is broken", ""),
        ("Traceback\nIndexError: the clip is broken", "\nTraceback\nIndexError: the clip"),
    ],
    ids=["a user's", "a crash"],
)
def test_the_error_of_several_processes_is_shown_once_and_with_its_log_where_that_has_more(
    here, repository, monkeypatch, log, shown
):
    def start(run, *_, **__):
        return subprocess.Popen([sys.executable, "-c", FAILING, run.path, log], env={"PYTHONPATH": str(repository)})

    monkeypatch.setattr(training.launcher, "start", start)
    with pytest.raises(UserError, match=f"failed: the clip is broken{shown}") as raised:
        training.train_to_end(RunFolder.create(here / "runs", make_config("tiny")), False, 2)
    assert "error: the clip" not in str(raised.value)


# --- keeping order among runs ----------------------------------------------------------------------------------------


@pytest.fixture
def stopped(here) -> RunFolder:
    """A run that was stopped, with metrics."""
    run = RunFolder.create(here / "runs", make_config("tiny"), "first")
    run.set_status(state="stopped", iteration=2)
    run.append_metrics({"kind": "train", "iteration": 1, "reward_mean": 0.5, "loss": float("nan")})
    run.append_metrics({"kind": "evaluation", "iteration": 1, "win": 0.75})
    return run


def test_a_renamed_run_is_listed_with_its_title(stopped, capsys):
    assert main(["runs", "rename", "first", "two people, fast"]) == 0
    assert main(["runs"]) == 0
    assert re.search(rf"{stopped.id} +\| two people, fast +\| stopped", capsys.readouterr().out)


def test_a_run_whose_folder_was_renamed_to_what_is_no_id_is_named_below_the_list(stopped, capsys):
    stopped.path.rename(stopped.path.parent / "My Run")
    assert main(["runs"]) == 0
    assert "not listed is runs/My Run: rename the folder" in capsys.readouterr().out


def test_a_deleted_run_is_restored_by_the_command_that_is_proposed(stopped, here, capsys, monkeypatch):
    assert main(["runs", "delete", "first"]) == 0
    undo = proposed(capsys.readouterr().out)
    assert main(["runs"]) == 0
    assert f"in the trash: {stopped.id}" in capsys.readouterr().out
    (here / "elsewhere").mkdir()
    monkeypatch.chdir(here / "elsewhere")
    assert main(undo) == 0 and stopped.path.is_dir()


def test_an_emptied_trash_restores_nothing(stopped, capsys):
    assert main(["runs", "delete", "first"]) == 0
    assert main(["runs", "empty-trash", "--days", "1"]) == 0
    assert "nothing to remove" in capsys.readouterr().out
    assert main(["runs", "empty-trash"]) == 0
    assert f"removed {stopped.id}" in capsys.readouterr().out
    assert main(["runs", "restore"]) == 2


def test_metrics_are_exported_as_a_table(stopped, here):
    assert main(["runs", "export", "--csv", "m.csv"]) == 0
    assert (here / "m.csv").read_text().splitlines() == [
        "iteration,kind,reward_mean,loss,win",
        "1,train,0.5,,",
        "1,evaluation,,,0.75",
    ]


def test_a_copy_begins_at_0_with_the_change(stopped, here, capsys):
    assert main(["runs", "copy", "first", "--set", "seed=7", "--name", "second"]) == 0
    command = proposed(capsys.readouterr().out)
    copy = RunFolder(command[-1])
    assert command[0] == "resume" and copy.name == "second" and copy.config().seed == 7
    assert copy.status().state == "queued" and copy.status().iteration == 0 and copy.read_metrics() == []


@pytest.mark.parametrize(
    "arguments, error",
    [
        (["delete"], "needs a run"),
        (["rename"], "needs a run"),
        (["rename", "first"], "needs a title"),
        (["export", "first"], "needs a file"),
        (["export", "first", "--csv", "nowhere/m.csv"], "in a folder that exists"),
        (["show", "first", "--set", "seed=1"], "--set has no meaning for runs show"),
        (["stop", "first", "again"], "`again` has no meaning for runs stop"),
        (["queue", "first"], "runs queue, which takes no run"),
        (["move", "first"], "needs where to"),
        (["move", "first", "up"], "does not wait in the queue"),
        (["save", "first"], "is stopped and cannot save: nothing was saved"),
        (["sample", "first"], "is stopped and cannot sample: it has no clips"),
        (["first"], "runs show first --runs runs` shows that run"),
        (["shwo"], "did you mean `show`?"),
    ],
)
def test_an_incomplete_or_useless_argument_is_refused(stopped, capsys, arguments, error):
    assert main(["runs", *arguments]) == 2
    assert error in capsys.readouterr().err and stopped.title == ""
