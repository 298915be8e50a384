"""What the editor's buttons may ask for: over HTTP, of runs that lie on disk and of processes that run."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from trainers.config import make_config
from trainers.processes import alive
from trainers.runs.folder import RunFolder

ROOT = "/identity_grpo/runs"
REPOSITORY = Path(__file__).parents[2]
ACTIONS = ("stop", "resume", "save")
NO_ID = ["..%2F{id}", "{id}%2F..%2F{id}", "{ID}", "%20{id}", "{id}%00", "config.yaml"]

# In a trainer's place: goes on until it is asked to stop, and takes a moment to end.
TRAINER = """
import sys, time
from trainers.runs.folder import RunFolder
run = RunFolder(sys.argv[1])
run.set_status(state="running", iteration=1)
print("runs", flush=True)
while run.status().state != "stopping":
    time.sleep(0.02)
time.sleep(0.7)
run.take("stop")
run.set_status(state="stopped")
"""


@pytest.fixture
def root(pack, tmp_path, monkeypatch) -> Path:
    """Where this ComfyUI keeps its runs: none yet."""
    import folder_paths

    monkeypatch.setattr(folder_paths, "get_system_user_directory", lambda name="system": str(tmp_path / f"__{name}"))
    return tmp_path / "__identity_grpo" / "runs"


@pytest.fixture
def ask(root):
    """`ask((method, path), ...)`: status and JSON of each answer; all are asked at once."""
    from server import PromptServer

    async def go(asked):
        app = web.Application()
        app.add_routes(route for route in PromptServer.instance.routes if getattr(route, "path", "").startswith(ROOT))
        async with TestClient(TestServer(app)) as client:

            async def one(method, path, **options):
                body = {"json": {}} if method == "POST" else {}
                async with client.request(method, path, **body | options) as answer:
                    return answer.status, await answer.json()

            return await asyncio.gather(*(one(*a[:2], **dict(*a[2:])) for a in asked))

    return lambda *asked: asyncio.run(go(asked))


@pytest.fixture
def make(root):
    """`make(state, **status)`: a run of TinyWorld in that state, no process behind it."""

    def make(state: str, **status) -> RunFolder:
        run = RunFolder.create(root, make_config("tiny", {"iterations": 7}), "a run")
        run.set_status(state=state, **status)
        return run

    return make


@pytest.fixture
def listen():
    """`listen(run)`: a process in the run's place that hears a stop; it ends with the test at the latest."""
    children = []

    def start(run: RunFolder) -> RunFolder:
        line = [sys.executable, "-c", TRAINER, str(run.path)]
        children.append(subprocess.Popen(line, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True))
        assert children[-1].stdout.readline() == "runs\n"
        return run

    yield start
    for child in children:
        child.kill()
        child.communicate()


@pytest.fixture
def going(make, listen):
    """A run with a process."""
    return listen(make("queued"))


def contents(run: RunFolder) -> dict:
    return {p.relative_to(run.path): p.read_bytes() for p in run.path.rglob("*") if p.is_file()}


def wait_for(come: Callable[[], bool]) -> None:
    until = time.monotonic() + 10
    while not come():
        assert time.monotonic() < until
        time.sleep(0.02)


def test_no_run_is_an_empty_list(ask):
    assert ask(("GET", ROOT)) == [(200, [])]


def test_all_runs_and_one_are_told_alike_oldest_first(ask, make):
    first = make("stopped", iteration=3)
    second = RunFolder(first.path.rename(first.path.with_name("a-run-20200101-000000-0000")))
    first = make("failed", iteration=4, last_error="NaN in the reward of item 3")
    (_, listed), (status, told) = ask(("GET", ROOT), ("GET", f"{ROOT}/{first.id}"))
    assert status == 200 and [run["id"] for run in listed] == [second.id, first.id] and listed[1] == told
    assert (told["state"], told["iteration"], told["iterations"]) == ("failed", 4, 7)
    assert "NaN in the reward of item 3" in told["text"] and "Resume" in told["text"]


def test_a_run_that_goes_on_tells_how_long_and_what_it_has_saved(ask, going):
    ((_, before),) = ask(("GET", f"{ROOT}/{going.id}"))
    going.set_status(eta_seconds=90.0)
    for iteration in (5, 0):
        (going.exports_folder / f"{going.id}-{iteration:06d}.safetensors").touch()
    ((_, told),) = ask(("GET", f"{ROOT}/{going.id}"))
    assert (before["state"], before["eta_seconds"], before["saved"]) == ("running", None, "")
    assert told["eta_seconds"] == 90 and told["saved"] == f"{going.id}-000005.safetensors"
    assert "iteration 1 of 7" in told["text"] and "left" in told["text"]


@pytest.mark.parametrize("content", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
@pytest.mark.parametrize("action", ACTIONS)
def test_what_another_sites_page_can_send_is_refused(ask, going, action, content):
    before = contents(going)
    asked = ("POST", f"{ROOT}/{going.id}/{action}", {"json": None, "data": b"{}", "headers": {"Content-Type": content}})
    assert ask(asked) == [(415, {"error": "send application/json"})]
    assert contents(going) == before


@pytest.mark.parametrize("wrong", NO_ID)
def test_what_is_no_id_is_refused_and_touches_nothing(ask, going, wrong):
    before, name = contents(going), wrong.format(id=going.id, ID=going.id.upper())
    told = ask(("GET", f"{ROOT}/{name}"), *(("POST", f"{ROOT}/{name}/{action}") for action in ACTIONS))
    assert [status for status, _ in told] == [404, 409, 409, 409]
    assert {answer["error"] for _, answer in told} == {"a run's id has lower-case letters, digits and dashes"}
    assert contents(going) == before


def test_an_unknown_run_is_named_beside_those_there_are(ask, make):
    run = make("stopped")
    told = ask(("GET", f"{ROOT}/gone"), *(("POST", f"{ROOT}/gone/{action}") for action in ACTIONS))
    assert [status for status, _ in told] == [404, 409, 409, 409]
    assert {answer["error"] for _, answer in told} == {f"there is no run `gone`; there are {run.id}"}


def test_stop_answers_when_the_run_has_ended_and_so_it_does_after_a_resume(ask, going, listen):
    for _ in ("first", "resumed"):
        ((status, told),) = ask(("POST", f"{ROOT}/{going.id}/stop"))
        assert (status, told["state"]) == (200, "stopped")
        assert not alive(going.status().pid, going.status().pid_started)
        listen(going)


def test_while_it_stops_it_says_so_and_a_second_stop_does_not_wait(ask, going):
    path = f"{ROOT}/{going.id}"
    with ThreadPoolExecutor(1) as clicks:
        first = clicks.submit(ask, ("POST", f"{path}/stop"))
        wait_for(lambda: ask(("GET", path))[0][1]["state"] == "stopping")
        ((status, told),) = ask(("POST", f"{path}/stop"))
        assert (status, told["state"]) == (200, "stopping") and not first.done()
    assert [first.result()[0][1]["state"], ask(("GET", path))[0][1]["state"]] == ["stopped", "stopped"]


@pytest.mark.parametrize("state", ["queued", "stopped", "finished", "failed"])
def test_stop_leaves_a_run_at_rest_as_it_is(ask, make, state):
    run = make(state)
    before = contents(run)
    ((status, told),) = ask(("POST", f"{ROOT}/{run.id}/stop"))
    assert (status, told["state"]) == (200, state) and contents(run) == before


def test_save_is_asked_of_the_running_process(ask, going):
    ((status, told),) = ask(("POST", f"{ROOT}/{going.id}/save"))
    assert (status, told["state"]) == (200, "running") and going.take("save")


@pytest.mark.parametrize(
    "state, told",
    [
        ("finished", "its last LoRA is saved already"),
        ("stopped", "Resume goes on from there"),
        ("failed", "Resume goes on from there"),
    ],
)
def test_a_run_at_rest_is_not_asked_to_save(ask, make, state, told):
    run = make(state)
    ((status, answer),) = ask(("POST", f"{ROOT}/{run.id}/save"))
    assert status == 409 and f"{run.id} is {state}" in answer["error"] and told in answer["error"]
    assert not run.take("save")


def test_a_run_that_is_stopping_saves_by_itself(ask, going):
    going.request("stop")
    ((status, answer),) = ask(("POST", f"{ROOT}/{going.id}/save"))
    assert status == 409 and "saves what is finished before it ends" in answer["error"] and not going.take("save")


def test_a_finished_run_is_not_resumed(ask, make):
    run = make("finished")
    ((status, answer),) = ask(("POST", f"{ROOT}/{run.id}/resume"))
    assert status == 409 and f"{run.id} is finished" in answer["error"] and "from its LoRA" in answer["error"]


def test_resume_starts_one_process_however_often_it_is_asked(ask, make):
    run = make("stopped", gpus=[])
    path = f"{ROOT}/{run.id}/resume"
    try:
        told = sorted(ask(("POST", path), ("POST", path)), key=lambda answer: answer[0])
        status = run.status()
        assert told[0][0] == 200 and told[0][1]["state"] == "starting" and alive(status.pid, status.pid_started)
        assert told[1] == (409, {"error": f"run {run.id} is starting already"})
    finally:
        os.killpg(run.status().group, signal.SIGKILL)


def test_a_run_whose_process_was_killed_is_failed_and_may_be_resumed(ask, going):
    os.kill(going.status().pid, signal.SIGKILL)
    wait_for(lambda: not alive(going.status().pid, going.status().pid_started))
    ((_, told),) = ask(("GET", f"{ROOT}/{going.id}"))
    assert told["state"] == "failed" and "is gone" in told["text"] and "Resume" in told["text"]
