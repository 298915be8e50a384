"""One run of the same settings, one run on a device; prompt sets that outlive where they came from."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from trainers.config import make_config
from trainers.errors import UserError
from trainers.pictures.reading import read_pixels
from trainers.prompts import PromptItem, PromptSet, load_prompt_set
from trainers.runs import launcher, starting
from trainers.runs.devices import device_name, hold_device, holders
from trainers.runs.folder import RunFolder
from trainers.runs.machines import Machines
from trainers.runs.registry import refresh

CONFIG = make_config("tiny", {"seed": 3})
# A server that starts a run, whose process only lives for a while.
SERVER = """
import sys, time
from pathlib import Path
from trainers.config import make_config
from trainers.runs import launcher, starting
launcher.command = lambda *_: [sys.executable, "-c", "import time; time.sleep(20)"]
sys.stdin.read()
run, new = starting.start_once(Path(sys.argv[1]), make_config("tiny", {"seed": 3}), "a", [])
print(run.id, run.status().pid, new)
"""


def items(count: int = 2, shade: int = 0) -> PromptSet:
    face = np.full((8, 8, 3), shade, np.uint8)
    return PromptSet(tuple(PromptItem(f"item-{i}", "a wave", (face,)) for i in range(count)), "the graph")


def test_a_frozen_set_reads_back_as_it_was(tmp_path):
    frozen = load_prompt_set(starting.freeze_prompts(items(), tmp_path))
    assert [(item.id, item.prompt) for item in frozen] == [(item.id, item.prompt) for item in items()]
    assert all(
        np.array_equal(read_pixels(a.references[0]), b.references[0]) for a, b in zip(frozen, items(), strict=True)
    )


def test_the_same_content_is_frozen_once_and_another_apart(tmp_path):
    first, again, other = (starting.freeze_prompts(s, tmp_path) for s in (items(), items(), items(shade=9)))
    assert first == again != other


def test_tinyworld_needs_no_file(tmp_path):
    assert starting.freeze_prompts(PromptSet(items().items, "tinyworld"), tmp_path) == "tinyworld"
    assert not any(tmp_path.iterdir())


def test_a_run_is_found_by_its_settings_and_name(tmp_path):
    run = RunFolder.create(tmp_path, CONFIG, "A run")
    assert starting.find_same(tmp_path, CONFIG, "a-run").id == run.id
    assert starting.find_same(tmp_path, CONFIG, "another") is None
    assert starting.find_same(tmp_path, make_config("tiny", {"seed": 4}), "a-run") is None


def test_a_run_of_a_version_that_cannot_be_read_is_passed_over(tmp_path):
    run = RunFolder.create(tmp_path, CONFIG, "a")
    (run.path / "config.yaml").write_text("nonsense: 1\n", encoding="utf-8")
    assert starting.find_same(tmp_path, CONFIG, "a") is None


def test_whoever_holds_a_device_is_named():
    with hold_device("test-device", Path("runs/some-run-id")):
        assert holders(["test-device", "free-device"]) == {"test-device": Path("runs/some-run-id")}
    assert holders(["test-device"]) == {}


def test_a_busy_device_is_refused_with_the_run_that_has_it(tmp_path):
    with (
        hold_device(device_name("cpu"), Path("some-run-id")),
        pytest.raises(UserError, match="the CPU is in use by run some-run-id"),
    ):
        starting.start_once(tmp_path, CONFIG, "a", [])
    assert not any(tmp_path.iterdir())


def test_a_run_that_is_just_starting_has_its_device_already(tmp_path):
    run = RunFolder.create(tmp_path, CONFIG, "a")
    run.set_status(state="starting", gpus=[])
    with pytest.raises(UserError, match=f"{run.id} is just starting"):
        starting.devices_for(tmp_path, "cpu")


def test_a_finished_run_is_not_resumed(tmp_path):
    run = RunFolder.create(tmp_path, CONFIG, "a")
    run.set_status(state="finished")
    with pytest.raises(UserError, match="is finished"):
        starting.resume(tmp_path, run)


@pytest.mark.parametrize("ours, gpus, seen", [("", [0, 2], "0,2"), ("4,5,6", [0, 2], "4,6"), ("4,5,6", [], "")])
def test_a_child_sees_the_devices_chosen_as_we_count_them(monkeypatch, ours, gpus, seen):
    monkeypatch.setitem(os.environ, "CUDA_VISIBLE_DEVICES", ours)
    assert launcher.visible_devices(gpus)["CUDA_VISIBLE_DEVICES"] == seen


def test_a_run_that_died_before_its_first_checkpoint_is_begun_again(tmp_path, monkeypatch):
    monkeypatch.setattr(
        launcher, "command", lambda *_: [sys.executable, "-c", "raise SystemExit('killed while loading')"]
    )
    run, new = starting.start_once(tmp_path, CONFIG, "a", [])
    until = time.monotonic() + 30
    while refresh(run).state != "failed" and time.monotonic() < until:
        time.sleep(0.05)
    again, anew = starting.start_once(tmp_path, CONFIG, "a", [])
    assert new and anew and again.id == run.id


def test_a_run_of_several_machines_shows_what_the_others_start_and_resumes_with_them(tmp_path, monkeypatch):
    given = []
    monkeypatch.setattr(launcher, "command", lambda run, *rest: given.append(rest) or [sys.executable, "-c", "pass"])
    machines = Machines(2, 0, "head:29500")
    run, _ = starting.start_once(tmp_path, CONFIG, "a", [], processes=3, machines=machines)
    status = run.status()
    assert (status.processes, status.machines) == (3, machines)
    assert status.message.startswith("machine 0 waits for the others; start on machine 1: ")
    assert status.message.endswith("train --processes 3 --machines 2 --machine-rank 1 --rendezvous head:29500")
    until = time.monotonic() + 30
    while refresh(run).state != "failed" and time.monotonic() < until:
        time.sleep(0.05)
    starting.resume(tmp_path, run)
    assert given[0][1::3] == given[1][1::3] == (3, machines)


def test_a_copy_has_the_settings_and_the_changes_and_no_file_of_the_other(tmp_path):
    run = RunFolder.create(tmp_path, CONFIG, "a")
    run.set_status(state="finished", iteration=24, gpus=[1])
    run.append_metrics({"kind": "train", "iteration": 1})
    (run.exports_folder / "x.safetensors").touch()
    copy = starting.copy_run(run, {"seed": 4, "rollout": {"group_size": 4}})
    assert copy.name == "a" and copy.config() == starting.change_config(
        run.config(), {"seed": 4, "rollout": {"group_size": 4}}
    )
    assert copy.config().model_dump(exclude={"seed", "rollout"}) == run.config().model_dump(exclude={"seed", "rollout"})
    assert (copy.config().seed, copy.config().rollout.group_size) == (4, 4)
    assert copy.config().rollout.steps == run.config().rollout.steps
    status = copy.status()
    assert (status.state, status.iteration, status.gpus, status.active) == ("queued", 0, [1], False)
    assert {p.name for p in copy.path.rglob("*") if p.is_file()} == {"config.yaml", "status.json"}


def test_a_copy_with_impossible_settings_is_refused_and_leaves_nothing(tmp_path):
    run = RunFolder.create(tmp_path, CONFIG, "a")
    for changes, reason in (({"seeds": 4}, "there is no setting"), ({"preset": "paper"}, "no setting to change")):
        with pytest.raises(UserError, match=reason):
            starting.copy_run(run, changes)
    assert list(tmp_path.iterdir()) == [run.path]


def test_a_copy_has_not_been_started(tmp_path):
    run = RunFolder.create(tmp_path, CONFIG, "a")
    assert not starting.was_started(run)
    run.set_status(state="failed")
    assert starting.was_started(run)


def test_two_servers_over_one_folder_start_one_run(tmp_path, repository):
    line, pipe = [sys.executable, "-c", SERVER, str(tmp_path / "runs")], subprocess.PIPE
    servers = [subprocess.Popen(line, cwd=repository, stdin=pipe, stdout=pipe, text=True) for _ in range(2)]
    for server in servers:
        server.stdin.close()  # both are ready: now at once
    answers = [server.stdout.read().split() for server in servers]
    for server in servers:
        server.stdout.close()
        server.wait()
    os.kill(int(answers[0][1]), signal.SIGKILL)
    assert answers[0][:2] == answers[1][:2] and {new for *_, new in answers} == {"True", "False"}


def test_a_run_that_starts_shows_nothing_of_its_last_process(tmp_path):
    run = RunFolder.create(tmp_path, CONFIG, "a")
    run.set_status(state="stopped", phase="saving", phase_done=0.5, eta_seconds=70.0, slowest_seconds=9.0)
    starting.claim(run)
    status = run.status()
    assert (status.phase, status.phase_done, status.eta_seconds, status.slowest_seconds) == ("", 0.0, None, None)


@pytest.mark.parametrize("status", [{"gpus": []}, {}, None])
def test_a_run_whose_devices_are_not_known_resumes_on_the_first_gpu(tmp_path, monkeypatch, status):
    run = RunFolder.create(tmp_path, CONFIG, "a")
    if status is None:
        (run.path / "status.json").write_text("")
    else:
        run.set_status(state="stopped", **status)
    started = {}
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr(starting, "devices_for", lambda root, kind, gpus, wait: [kind])
    monkeypatch.setattr(launcher, "start", lambda run, **options: started.update(options))
    starting.resume(tmp_path, run)
    assert started["gpus"] == ([] if status else [0])  # one that was started on the CPU stays there
