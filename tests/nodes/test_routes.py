"""The routes of the editor's buttons, over HTTP, with runs on disk and with processes."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from PIL import Image

from trainers.config import RewardRunConfig, make_config
from trainers.processes import alive, start_token
from trainers.runs.folder import RunFolder

ROOT = "/identity_grpo/runs"
REPOSITORY = Path(__file__).parents[2]
ACTIONS = ("stop", "resume", "save", "sample", "move", "rename", "keep", "show", "delete", "duplicate")
TRASH = "/identity_grpo/trash"
WATCH = "/identity_grpo/watch"
PARTS = (
    *("metrics", "metrics.csv", "log", "settings", "exports"),
    *("clips", "clips/0", "clips/0/0", "clips/0/0/frames", "references/0/0"),
)
IMPOSSIBLE_IDS = ["..%2F{id}", "{id}%2F..%2F{id}", "{ID}", "%20{id}", "{id}%00", "config.yaml"]

# Stands for a trainer: runs until it is asked to stop, and takes a moment to end.
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
    """`ask((method, path), ...)`: status and JSON of each answer; all requests are sent at once."""
    from server import PromptServer

    async def go(asked):
        app = web.Application()
        app.add_routes(
            route for route in PromptServer.instance.routes if getattr(route, "path", "").startswith("/identity_grpo/")
        )
        async with TestClient(TestServer(app)) as client:

            async def one(method, path, **options):
                body = {"json": {}} if method == "POST" else {}
                async with client.request(method, path, **body | options) as answer:
                    return answer.status, await answer.json()

            return await asyncio.gather(*(one(*a[:2], **dict(*a[2:])) for a in asked))

    return lambda *asked: asyncio.run(go(asked))


@pytest.fixture
def make(root):
    """`make(state, **status)`: a run of TinyWorld in that state, without a process."""

    def make(state: str, **status) -> RunFolder:
        run = RunFolder.create(root, make_config("tiny", {"iterations": 7}), "a run")
        run.set_status(state=state, **status)
        return run

    return make


@pytest.fixture
def listen():
    """`listen(run)`: a process of the run that obeys a stop; it ends with the test at the latest."""
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
def deaf(make):
    """A run with a process that does nothing: for what no process has to answer."""
    run = make("queued")
    child = subprocess.Popen([sys.executable, "-I", "-S", "-c", "import time; time.sleep(600)"])
    run.set_status(state="running", iteration=1, pid=child.pid, group=0, pid_started=start_token(child.pid))
    yield run
    child.kill()
    child.wait()


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


def post(path: str, **body) -> tuple:
    return "POST", path, {"json": body}


def test_no_run_is_an_empty_list(ask):
    assert ask(("GET", ROOT)) == [(200, [])]


def test_the_list_describes_each_run_as_its_own_route_does_oldest_first(ask, make):
    first = make("stopped", iteration=3)
    second = RunFolder(first.path.rename(first.path.with_name("a-run-20200101-000000-0000")))
    first = make("failed", iteration=4, last_error="NaN in the reward of item 3")
    (_, listed), (status, shown) = ask(("GET", ROOT), ("GET", f"{ROOT}/{first.id}"))
    assert status == 200 and [run["id"] for run in listed] == [second.id, first.id] and listed[1] == shown
    assert (shown["state"], shown["iteration"], shown["iterations"]) == ("failed", 4, 7)
    assert "NaN in the reward of item 3" in shown["text"] and "Nothing was saved: Resume begins again" in shown["text"]


def test_a_run_that_trains_a_reward_has_the_same_routes_and_no_clips_and_loras(ask, root):
    settings = RewardRunConfig(iterations=7, pairs="pairs", pairs_bytes=0, base_model="qwen", learning_rate=1e-3)
    run = RunFolder.create(root, settings, "taste")
    run.set_status(state="stopped", iteration=2)
    for row in ({"kind": "train", "preference_loss": 1.5}, {"kind": "evaluation", "accuracy": 0.75}):
        run.append_metrics(row | {"iteration": 2})
    views = ("", "/metrics?points=9", "/settings", "/exports", "/clips")
    answers = ask(*(("GET", f"{ROOT}/{run.id}{view}") for view in views), post(f"{ROOT}/{run.id}/sample"))
    (_, shown), (_, metrics), (_, found), exports, (_, clips), (status, refused) = answers
    assert shown["kind"] == "reward" and shown["spark"] == [0.75] and "75.0% of the held-out pairs" in shown["text"]
    assert [row.get("accuracy") for row in metrics["rows"]] == [None, 0.75]
    assert found["preset"] == "paper" and "pairs" in {row["name"] for row in found["settings"]}
    assert (
        exports[0] == 200
        and exports[1]["files"] == []
        and clips["iterations"] == []
        and "has no policy" in clips["problem"]
    )
    assert status == 409 and "has no clips" in refused["error"]


@pytest.mark.parametrize("content", ["", "no JSON", "[]", '{"state": "running", "pid": 1.5}', '{"state": "dancing"}'])
def test_a_damaged_run_is_shown_as_damaged_and_hides_no_other(ask, make, content):
    damaged, good = make("running"), make("finished")
    (damaged.path / "status.json").write_text(content)
    (_, listed), (status, one) = ask(("GET", ROOT), ("GET", f"{ROOT}/{damaged.id}"))
    assert {run["id"]: run["state"] for run in listed} == {damaged.id: "damaged", good.id: "finished"}
    assert (status, one["state"]) == (200, "damaged") and "status.json cannot be read" in one["text"]


def test_a_run_whose_description_fails_hides_no_other(ask, make, monkeypatch):
    from identity_grpo.trainers.runs import cards

    damaged, good = make("stopped"), make("stopped")
    summary = cards.summary

    def fail(run):
        if run.id == damaged.id:
            raise KeyError("win_low")
        return summary(run)

    monkeypatch.setattr(cards, "summary", fail)
    ((_, listed),) = ask(("GET", ROOT))
    shown = {run["id"]: run for run in listed}
    assert shown[damaged.id]["state"] == "damaged" and "win_low" in shown[damaged.id]["text"]
    assert shown[good.id]["state"] == "stopped" and shown[good.id].keys() == shown[damaged.id].keys()


def test_the_newest_checkpoint_is_that_from_which_a_resume_continues(ask, make):
    run = make("stopped")
    ((_, before),) = ask(("GET", f"{ROOT}/{run.id}"))
    for iteration in (2, 10):
        (run.checkpoints_folder / f"{iteration:06d}").mkdir()
        (run.checkpoints_folder / f"{iteration:06d}" / "progress.json").touch()
    ((_, after),) = ask(("GET", f"{ROOT}/{run.id}"))
    assert (before["resumes_from"], after["resumes_from"]) == (None, 10)


def test_a_running_run_shows_its_time_left_and_its_newest_lora(ask, deaf):
    ((_, before),) = ask(("GET", f"{ROOT}/{deaf.id}"))
    deaf.set_status(eta_seconds=90.0)
    for iteration in (5, 0):
        (deaf.exports_folder / f"{deaf.id}-{iteration:06d}.safetensors").touch()
    ((_, after),) = ask(("GET", f"{ROOT}/{deaf.id}"))
    assert (before["state"], before["eta_seconds"], before["saved"]) == ("running", None, "")
    assert after["eta_seconds"] == 90 and after["saved"] == f"{deaf.id}-000005.safetensors"
    assert "iteration 1 of 7" in after["text"] and "left" in after["text"]


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example:8188"},
        {"Host": "evil.example:8188", "Origin": "http://evil.example:8188"},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
    ],
)
def test_a_page_of_another_site_is_refused_by_every_route(ask, deaf, headers):
    before, path = contents(deaf), f"{ROOT}/{deaf.id}"
    requests = [("GET", ROOT), ("GET", path), *(("POST", f"{path}/{action}") for action in ACTIONS)]
    requests += [("GET", TRASH), *(("GET", f"{path}/{part}") for part in PARTS)]
    requests += [("POST", f"{TRASH}/empty"), ("POST", f"{TRASH}/{deaf.id}/restore")]
    requests += [("POST", WATCH), ("POST", f"{WATCH}/end")]
    answers = ask(*((*request, {"headers": headers}) for request in requests))
    assert {status for status, _ in answers} == {403} and all(answer["error"] for _, answer in answers)
    assert contents(deaf) == before


@pytest.mark.parametrize("content", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
@pytest.mark.parametrize("action", ACTIONS)
def test_a_content_type_that_any_page_can_send_is_refused(ask, deaf, action, content):
    before = contents(deaf)
    asked = ("POST", f"{ROOT}/{deaf.id}/{action}", {"json": None, "data": b"{}", "headers": {"Content-Type": content}})
    assert ask(asked) == [(415, {"error": "send application/json"})]
    assert contents(deaf) == before


@pytest.mark.parametrize("wrong", IMPOSSIBLE_IDS)
def test_an_impossible_id_is_refused_and_touches_nothing(ask, deaf, wrong):
    before, name = contents(deaf), wrong.format(id=deaf.id, ID=deaf.id.upper())
    answers = ask(
        ("GET", f"{ROOT}/{name}"),
        *(("GET", f"{ROOT}/{name}/{part}") for part in PARTS),
        *(("POST", f"{ROOT}/{name}/{action}") for action in ACTIONS),
        ("POST", f"{TRASH}/{name}/restore"),
    )
    reads, changes = len(PARTS) + 1, len(ACTIONS) + 1
    assert [status for status, _ in answers] == [404] * reads + [409] * changes
    assert {answer["error"] for _, answer in answers} == {"a run's id has lower-case letters, digits and dashes"}
    assert contents(deaf) == before


def test_an_unknown_run_is_refused_with_the_names_of_the_others(ask, make):
    run = make("stopped")
    reads = [("GET", f"{ROOT}/gone"), *(("GET", f"{ROOT}/gone/{part}") for part in PARTS)]
    answers = ask(*reads, *(("POST", f"{ROOT}/gone/{action}") for action in ACTIONS))
    assert [status for status, _ in answers] == [404] * len(reads) + [409] * len(ACTIONS)
    assert {answer["error"] for _, answer in answers} == {f"there is no run `gone`; there are {run.id}"}


def test_stop_answers_when_the_run_has_ended_also_after_a_resume(ask, going, listen):
    for _ in ("first", "resumed"):
        ((status, shown),) = ask(("POST", f"{ROOT}/{going.id}/stop"))
        assert (status, shown["state"]) == (200, "stopped")
        assert not alive(going.status().pid, going.status().pid_started)
        listen(going)


def test_a_stopping_run_is_shown_as_such_and_a_second_stop_does_not_wait(ask, going):
    path = f"{ROOT}/{going.id}"
    with ThreadPoolExecutor(1) as clicks:
        first = clicks.submit(ask, ("POST", f"{path}/stop"))
        wait_for(lambda: ask(("GET", path))[0][1]["state"] == "stopping")
        ((status, shown),) = ask(("POST", f"{path}/stop"))
        assert (status, shown["state"]) == (200, "stopping") and not first.done()
    assert [first.result()[0][1]["state"], ask(("GET", path))[0][1]["state"]] == ["stopped", "stopped"]


@pytest.mark.parametrize("state", ["queued", "stopped", "finished", "failed"])
def test_stop_leaves_a_run_without_a_process_as_it_is(ask, make, state):
    run = make(state)
    before = contents(run)
    ((status, shown),) = ask(("POST", f"{ROOT}/{run.id}/stop"))
    assert (status, shown["state"]) == (200, state) and contents(run) == before


@pytest.mark.parametrize("iteration, after", [(0, 1), (2, 3), (7, 7)])
def test_save_answers_when_the_running_process_will_save(ask, deaf, iteration, after):
    deaf.set_status(iteration=iteration)
    ((status, shown),) = ask(("POST", f"{ROOT}/{deaf.id}/save"))
    assert (status, shown["state"]) == (200, "running") and deaf.take("save")
    assert shown["message"] == f"run {deaf.id} will save after iteration {after}"


@pytest.mark.parametrize("state", ["stopped", "failed", "finished", "damaged"])
@pytest.mark.parametrize("saved", [False, True])
def test_a_run_without_a_process_is_not_requested_to_save(ask, make, state, saved):
    run = make(state)
    if saved:
        (run.checkpoints_folder / "000003").mkdir()
        (run.checkpoints_folder / "000003" / "progress.json").touch()
    ((status, answer),) = ask(("POST", f"{ROOT}/{run.id}/save"))
    kept = "it is saved at iteration 3" if saved else "nothing was saved, Resume begins again"
    assert status == 409 and f"{run.id} is {state} and cannot save" in answer["error"]
    assert ("its last LoRA is saved already" if state == "finished" else kept) in answer["error"]
    assert not run.take("save")


def test_a_stopping_run_saves_without_a_request(ask, going):
    going.request("stop")
    ((status, answer),) = ask(("POST", f"{ROOT}/{going.id}/save"))
    assert status == 409 and "saves what is finished before it ends" in answer["error"] and not going.take("save")


def test_a_finished_run_is_not_resumed(ask, make):
    run = make("finished")
    ((status, answer),) = ask(("POST", f"{ROOT}/{run.id}/resume"))
    assert status == 409 and f"{run.id} is finished" in answer["error"] and "from its LoRA" in answer["error"]


def test_resume_starts_one_process_for_two_clicks(ask, make):
    run = make("stopped", gpus=[])
    path = f"{ROOT}/{run.id}/resume"
    try:
        answers = sorted(ask(("POST", path), ("POST", path)), key=lambda answer: answer[0])
        status = run.status()
        assert answers[0][0] == 200 and answers[0][1]["state"] == "starting" and alive(status.pid, status.pid_started)
        assert answers[1] == (409, {"error": f"run {run.id} is starting already"})
    finally:
        os.killpg(run.status().group, signal.SIGKILL)


def test_a_run_whose_process_was_killed_is_failed_and_may_be_resumed(ask, going):
    os.kill(going.status().pid, signal.SIGKILL)
    wait_for(lambda: not alive(going.status().pid, going.status().pid_started))
    ((_, shown),) = ask(("GET", f"{ROOT}/{going.id}"))
    assert shown["state"] == "failed" and "Resume" in shown["text"]


# --- keeping order among runs ----------------------------------------------------------------------------------------


def test_a_run_is_renamed_and_shown_by_its_title(ask, make):
    run = make("stopped")
    ((status, shown),) = ask(post(f"{ROOT}/{run.id}/rename", title="<b>two people</b>"))
    assert (status, shown["id"], shown["title"]) == (200, run.id, "<b>two people</b>")
    assert shown["text"].startswith(f"<b>two people</b> ({run.id}): stopped")


@pytest.mark.parametrize("body", [{}, {"title": 7}, {"title": None}, {"title": "x" * 101}, {"title": "a\nb"}])
def test_a_title_that_is_none_is_refused(ask, make, body):
    run = make("stopped")
    ((status, answer),) = ask(post(f"{ROOT}/{run.id}/rename", **body))
    assert status == 409 and "title" in answer["error"] and run.title == ""


@pytest.mark.parametrize("data", [b"{", b"[]", b"7", b'{"title": NaN}', b"[" * 60_000, b"\xff", b" " * 70_000])
def test_a_body_that_is_no_json_object_is_refused(ask, make, data):
    run = make("stopped")
    before, headers = contents(run), {"Content-Type": "application/json"}
    request = ("POST", f"{ROOT}/{run.id}/delete", {"json": None, "data": data, "headers": headers})
    ((status, answer),) = ask(request)
    assert status == 409 and answer["error"].startswith("the request") and contents(run) == before


def test_a_deleted_run_is_listed_in_the_trash_and_restored(ask, make, root):
    run = make("stopped")
    (deleted,) = ask(post(f"{ROOT}/{run.id}/delete"))
    (listed,), (trash,) = ask(("GET", ROOT)), ask(("GET", TRASH))
    assert deleted[0] == 200 and listed == (200, [])
    assert [found["id"] for found in trash[1]] == [run.id] and trash[1][0]["deleted"] > time.time() - 60
    ((status, shown),) = ask(post(f"{TRASH}/{run.id}/restore"))
    assert (status, shown["id"], shown["state"]) == (200, run.id, "stopped") and run.path.is_dir()


@pytest.mark.parametrize("action, body", [("delete", {}), ("rename", {"title": "a"})])
def test_a_folder_that_cannot_be_written_is_reported_with_its_reason(ask, make, monkeypatch, action, body):
    run = make("stopped")

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied", str(run.path))

    monkeypatch.setattr(sys.modules["identity_grpo.trainers.runs.folder"], "write_atomic", refuse)
    monkeypatch.setattr("pathlib.Path.rename", refuse)
    ((status, answer),) = ask(post(f"{ROOT}/{run.id}/{action}", **body))
    assert status == 409 and "this cannot be done now: [Errno 13] Permission denied" in answer["error"]


def test_a_run_that_trains_is_not_deleted(ask, deaf):
    ((status, answer),) = ask(post(f"{ROOT}/{deaf.id}/delete"))
    assert status == 409 and "stop it first" in answer["error"] and deaf.path.is_dir()


def test_an_emptied_trash_restores_nothing(ask, make):
    run = make("stopped")
    ask(post(f"{ROOT}/{run.id}/delete"))
    assert ask(post(f"{TRASH}/empty")) == [(200, {"removed": [run.id]})]
    assert ask(post(f"{TRASH}/{run.id}/restore")) == [(409, {"error": f"there is no deleted run `{run.id}`"})]


@pytest.mark.parametrize("text", ["a", "latest", "newest"])
def test_only_a_whole_id_restores(ask, make, text):
    ask(post(f"{ROOT}/{make('stopped').id}/delete"))
    ((status, answer),) = ask(post(f"{TRASH}/{text}/restore"))
    assert status == 409 and answer["error"] == f"there is no deleted run `{text}`"


def test_a_run_is_duplicated_with_numbers_changed(ask, make, root):
    run = make("finished", iteration=7)
    changes = {"seed": 3, "rollout.group_size": 4, "optim.global_std": True}
    ((status, shown),) = ask(post(f"{ROOT}/{run.id}/duplicate", changes=changes, name="other"))
    copy = RunFolder(root / shown["id"])
    assert status == 200 and shown["id"].startswith("other-") and (shown["state"], shown["iteration"]) == ("queued", 0)
    config = copy.config()
    assert (config.seed, config.rollout.group_size, config.optim.global_std) == (3, 4, True)
    assert config.iterations == 7 and not shown["active"]


@pytest.mark.parametrize(
    "changes",
    [
        {"policy.source": "/etc"},
        {"publish": "/tmp"},
        {"prompts": None},
        {"trackers": ["wandb"]},
        {"rollout": {"steps": 3}},
        {"seeds": 1},
        {"seed": 1, "seed.x": 2},
        {"a.b.c.d.e.f.g": 1},
        {"seed": -1},
        [],
    ],
)
def test_a_duplicate_changes_no_file_name_and_nothing_impossible(ask, make, root, changes):
    run = make("finished")
    ((status, answer),) = ask(post(f"{ROOT}/{run.id}/duplicate", changes=changes))
    assert status == 409 and answer["error"] and [path.name for path in root.iterdir()] == [run.id]


@pytest.fixture
def measured(make):
    run = make("stopped")
    for iteration in range(1, 7):
        run.append_metrics({"kind": "train", "iteration": iteration, "loss": float("nan")})
    return run


@pytest.mark.parametrize(
    "query, expected", [("", 6), ("?since=-1", 6), ("?since=0", 6), ("?since=4", 2), ("?since=9", 0)]
)
def test_metrics_since_an_iteration(ask, measured, query, expected):
    ((status, answer),) = ask(("GET", f"{ROOT}/{measured.id}/metrics{query}"))
    rows = [{"kind": "train", "iteration": i, "loss": None} for i in range(1, 7)]
    assert status == 200 and answer == {"rows": rows[6 - expected :], "more": False}


def test_a_long_history_comes_in_parts(ask, measured, monkeypatch):
    from identity_grpo.nodes import run_views

    monkeypatch.setattr(run_views, "MOST_ROWS", 4)
    path = f"{ROOT}/{measured.id}/metrics"
    (_, first), (_, rest) = ask(("GET", path), ("GET", path + "?since=4"))
    assert [row["iteration"] for row in first["rows"]] == [1, 2, 3, 4] and first["more"]
    assert [row["iteration"] for row in rest["rows"]] == [5, 6] and not rest["more"]


@pytest.mark.parametrize(
    "query", ["since=x", "since=-2", "since=1e3", "since=", "since=9999999999999999999", "since=²"]
)
def test_a_since_that_is_no_count_is_refused(ask, measured, query):
    ((status, answer),) = ask(("GET", f"{ROOT}/{measured.id}/metrics?{query}"))
    assert status == 404 and "`since` must be a whole number" in answer["error"]


def test_the_end_of_the_log(ask, make):
    run = make("stopped")
    run.log_file.write_text("".join(f"line {i}\n" for i in range(200)))
    path = f"{ROOT}/{run.id}/log"
    (_, usual), (_, two), (status, _) = ask(("GET", path), ("GET", path + "?lines=2"), ("GET", path + "?lines=5000"))
    assert len(usual["text"].splitlines()) == 100 and two["text"] == "line 198\nline 199" and status == 404


@pytest.mark.parametrize("wait", ["yes", 1, None])
def test_waiting_is_true_or_false(ask, make, wait):
    run = make("stopped")
    ((status, answer),) = ask(post(f"{ROOT}/{run.id}/resume", wait=wait))
    assert status == 409 and "`wait` must be true or false" in answer["error"] and run.status().state == "stopped"


def test_a_resume_waits_for_its_device_until_it_is_stopped(ask, make, pack):
    from identity_grpo.trainers.runs.devices import hold_device

    run = make("stopped", gpus=[])
    with hold_device("cpu", Path("a-run-that-trains")):
        ((status, _),) = ask(post(f"{ROOT}/{run.id}/resume"))
        assert status == 409
        ((status, shown),) = ask(post(f"{ROOT}/{run.id}/resume", wait=True))
        assert (status, shown["state"], shown["active"]) == (200, "queued", True)
        wait_for(lambda: ask(("GET", f"{ROOT}/{run.id}"))[0][1]["place"] == 1)
        ((status, shown),) = ask(post(f"{ROOT}/{run.id}/stop"))
    assert (status, shown["state"], shown["active"]) == (200, "stopped", False)


# --- what a panel of runs shows --------------------------------------------------------------------------------------


@pytest.fixture
def fetch(root):
    """`fetch(path)`: status, headers and body of a GET."""
    from server import PromptServer

    async def go(path):
        app = web.Application()
        app.add_routes(r for r in PromptServer.instance.routes if getattr(r, "path", "").startswith("/identity_grpo/"))
        async with TestClient(TestServer(app)) as client, client.get(path) as answer:
            return answer.status, answer.headers, await answer.read()

    return lambda path: asyncio.run(go(path))


@pytest.fixture
def trained(make):
    """A run with two evaluations, a clip of each, and a LoRA."""
    run = make("finished", iteration=2)
    frames = np.zeros((5, 24, 40, 3), np.uint8)
    frames[:, :, :, 0] = 200
    item = SimpleNamespace(id="tiny-held-out-0000")
    for iteration, reward in ((0, 1.0), (2, 3.0)):
        scores = {"ids": [item.id], "rewards": [reward], "identity": [0.5 + iteration / 10], "people": [[0.6, 0.8]]}
        run.write_clips(iteration, [item], [frames], 10)
        run.write_measurement(iteration, scores)
        row = dict.fromkeys(("win", "tie", "loss", "win_low", "win_high"), 0.5) | {"margin": reward - 1}
        row |= {"kind": "evaluation", "iteration": iteration, "reward_mean": reward, "identity": 0.5 + iteration / 10}
        run.append_metrics(row)
        if iteration == 0:
            run.write_measurement("base", scores)
            run.append_metrics({"kind": "train", "iteration": 1, "reward_mean": 1.5})
    run.export_path(2).write_bytes(b"LoRA")
    return run


def test_a_card_has_the_gains_and_the_newest_clips(ask, trained):
    ((_, shown),) = ask(("GET", f"{ROOT}/{trained.id}"))
    assert shown["reward"] == {"start": 1.0, "now": 3.0} and shown["judge"] == {"start": 0.5, "now": 0.7}
    assert shown["clips"] == {"iteration": 2, "numbers": [0]} and (shown["best"], shown["done"]) == (2, 2 / 7)


def test_the_best_lora_is_known_as_soon_as_it_is_written(ask, trained):
    path = f"{ROOT}/{trained.id}"
    trained.export_path(0).write_bytes(b"LoRA")
    trained.export_path(2).unlink()
    ((_, before),) = ask(("GET", path))
    trained.export_path(2).write_bytes(b"LoRA")
    ((_, after),) = ask(("GET", path))
    assert (before["best"], after["best"]) == (0, 2)


def test_a_long_history_is_thinned_to_points_with_both_ends(ask, make):
    run = make("stopped")
    with open(run.path / "metrics.jsonl", "w") as file:
        file.writelines(
            f'{{"kind": "train", "iteration": {iteration}, "reward_mean": 1.0}}\n' for iteration in range(1, 1001)
        )
    ((status, answer),) = ask(("GET", f"{ROOT}/{run.id}/metrics?points=50"))
    found = [row["iteration"] for row in answer["rows"]]
    assert status == 200 and not answer["more"] and 45 <= len(found) <= 51
    assert (found[0], found[-1]) == (1, 1000) and found == sorted(set(found))


@pytest.mark.parametrize("points", ["0", "1", "2001", "-5", "x", "1e3", "9" * 30])
def test_points_are_a_count(ask, trained, points):
    ((status, answer),) = ask(("GET", f"{ROOT}/{trained.id}/metrics?points={points}"))
    assert status == 404 and "`points` must be a whole number" in answer["error"]


def test_metrics_as_csv(fetch, trained):
    status, headers, body = fetch(f"{ROOT}/{trained.id}/metrics.csv")
    lines = body.decode().splitlines()
    assert status == 200 and headers["Content-Type"].startswith("text/csv") and len(lines) == 4
    assert lines[0].startswith("iteration,kind,") and trained.id in headers["Content-Disposition"]


def test_clips_by_iteration_with_their_items_and_scores(ask, trained):
    path = f"{ROOT}/{trained.id}/clips"
    (_, listed), (_, scores) = ask(("GET", path), ("GET", f"{path}/2"))
    assert listed["iterations"] == [{"iteration": 0, "numbers": [0]}, {"iteration": 2, "numbers": [0]}]
    assert listed["items"][0]["id"] == "tiny-held-out-0000" and listed["items"][0]["references"] > 0
    assert listed["start"] == "base policy" and listed["problem"] == "" and listed["base"]["rewards"] == [1.0]
    assert scores == {"ids": ["tiny-held-out-0000"], "rewards": [3.0], "identity": [0.7], "people": [[0.6, 0.8]]}


def test_a_damaged_measurement_is_no_score(ask, trained):
    trained.write_measurement(2, {"ids": ["a", "b"], "rewards": [1.0], "identity": ["<b>", None], "people": [[1], "x"]})
    ((status, scores),) = ask(("GET", f"{ROOT}/{trained.id}/clips/2"))
    assert status == 200 and scores == {"ids": ["a", "b"], "identity": [None, None]}


def test_the_frames_of_a_clip_are_one_picture(fetch, trained):
    status, headers, body = fetch(f"{ROOT}/{trained.id}/clips/2/0/frames?width=96")
    picture = Image.open(io.BytesIO(body))
    names = ("Frames", "Columns", "Width", "Height", "Fps")
    assert status == 200 and [headers[f"X-{name}"] for name in names] == ["5", "2", "40", "24", "10"]
    assert picture.size == (80, 72) and headers["X-Content-Type-Options"] == "nosniff"
    assert fetch(f"{ROOT}/{trained.id}/clips/2/0")[2][:4] == b"RIFF"


def test_a_reference_image_of_a_held_out_item(fetch, trained):
    status, headers, body = fetch(f"{ROOT}/{trained.id}/references/0/0")
    assert status == 200 and headers["Content-Type"] == "image/jpeg" and Image.open(io.BytesIO(body)).width > 20


@pytest.mark.parametrize(
    "part",
    [
        *("clips/9/0", "clips/2/7", "clips/2/0/frames?width=97", "clips/-1/0", "clips/2/00.webp", "clips/..%2F2/0"),
        *("clips/%32%00/0", "clips/2/..%2F..%2Fconfig.yaml", "clips/²/0", f"clips/{'9' * 400}/0", "references/0/99"),
        *("references/99/0", "references/x/0", "references/0/..%2F0"),
    ],
)
def test_a_clip_or_picture_that_is_not_there_is_refused(fetch, trained, part):
    status, headers, _ = fetch(f"{ROOT}/{trained.id}/{part}")
    assert status == 404 and headers["Content-Type"].startswith("application/json")


def test_settings_show_what_differs_from_the_preset(ask, trained):
    ((_, shown),) = ask(("GET", f"{ROOT}/{trained.id}/settings"))
    differing = {s["name"]: (s["value"], s["preset"], s["number"]) for s in shown["settings"] if s["differs"]}
    assert shown["preset"] == "tiny" and differing == {"iterations": ("7", "24", 7)}


def test_exports_have_size_score_and_the_name_that_loaders_list(ask, trained, tmp_path, monkeypatch):
    from identity_grpo.nodes import folders

    monkeypatch.setattr(folders, "published_root", lambda: tmp_path / "loras" / "identity_grpo")
    ((_, before),) = ask(("GET", f"{ROOT}/{trained.id}/exports"))
    (hidden,) = before["files"]
    place = tmp_path / "loras" / "identity_grpo" / trained.id / hidden["name"]
    place.parent.mkdir(parents=True)
    place.touch()
    ((_, after),) = ask(("GET", f"{ROOT}/{trained.id}/exports"))
    (file,) = after["files"]
    assert (hidden["path"], file["path"]) == (str(trained.export_path(2)), str(place))
    assert hidden["choice"] == "" and file["choice"] == f"identity_grpo/{trained.id}/{hidden['name']}"
    assert (file["iteration"], file["bytes"], file["reward"], file["judge"]) == (2, 4, 2.0, 0.7) and file["best"]


def test_a_lora_is_kept_and_let_go(ask, trained):
    path = f"{ROOT}/{trained.id}"
    for kept in (True, False):
        _, (_, shown) = ask(post(f"{path}/keep", iteration=2, kept=kept)), ask(("GET", f"{path}/exports"))[0]
        assert [file["kept"] for file in shown["files"]] == [kept]


@pytest.mark.parametrize("body", [{}, {"iteration": "2"}, {"iteration": 2.0}, {"iteration": True}, {"iteration": 1}])
@pytest.mark.parametrize("action", ["keep", "show"])
def test_a_lora_that_is_not_there_is_neither_kept_nor_shown(ask, trained, action, body):
    before = contents(trained)
    assert ask(post(f"{ROOT}/{trained.id}/{action}", **body))[0][0] == 409
    assert contents(trained) == before


@pytest.fixture
def file_manager(tmp_path, monkeypatch) -> Path:
    """Where a file manager writes the folder that it was asked to open."""
    program, opened = tmp_path / "xdg-open", tmp_path / "opened"
    program.write_text(f'#!/bin/sh\nprintf %s "$*" > {opened}.part && mv {opened}.part {opened}\n')
    program.chmod(0o700)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("DISPLAY", ":0")
    return opened


def test_the_folder_of_a_lora_is_shown_to_a_browser_on_this_computer(ask, trained, file_manager):
    path = f"{ROOT}/{trained.id}"
    assert ask(("GET", f"{path}/exports"))[0][1]["showable"]
    assert ask(post(f"{path}/show", iteration=2)) == [(200, {})]
    wait_for(file_manager.exists)
    assert file_manager.read_text() == str(trained.exports_folder)


def test_a_file_manager_that_does_not_open_is_reported_with_the_folder(ask, trained, file_manager):
    (file_manager.parent / "xdg-open").write_text("#!/bin/sh\nexit 3\n")
    ((status, answer),) = ask(post(f"{ROOT}/{trained.id}/show", iteration=2))
    assert status == 409 and f"ended with 3); the folder is {trained.exports_folder}" in answer["error"]


def test_no_folder_is_shown_behind_a_proxy_or_without_a_screen(ask, trained, file_manager, monkeypatch):
    path, proxied, show = f"{ROOT}/{trained.id}", {"headers": {"X-Forwarded-For": "10.0.0.7"}}, {"iteration": 2}
    elsewhere = ask(("GET", f"{path}/exports", proxied), ("POST", f"{path}/show", {"json": show} | proxied))
    monkeypatch.delenv("DISPLAY")
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    without_screen = ask(("GET", f"{path}/exports"), post(f"{path}/show", **show))
    for ((_, listed), (status, answer)), reason in [(elsewhere, "a browser on"), (without_screen, "without a screen")]:
        assert not listed["showable"] and status == 409 and not file_manager.exists()
        assert reason in answer["error"] and str(trained.exports_folder) in answer["error"]


@pytest.fixture
def waiting(make, tmp_path, monkeypatch):
    """Three runs that wait for the same device in this order, in a queue of this test."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    claims = import_module("identity_grpo.trainers.runs.claims")
    runs = [make("queued") for _ in range(3)]
    entered = [claims.enter(run.path, ["cpu"]) for run in runs]
    yield runs
    for claim in entered:
        claims.leave(claim)


@pytest.mark.parametrize(("to", "place"), [("first", 1), ("up", 1), ("down", 3), ("last", 3), (1, 1), (3, 3), (99, 3)])
def test_a_waiting_run_is_moved_in_the_queue(ask, waiting, to, place):
    claims = import_module("identity_grpo.trainers.runs.claims")
    ((status, answer),) = ask(post(f"{ROOT}/{waiting[1].id}/move", to=to))
    assert (status, answer["id"]) == (200, waiting[1].id) and f" is number {place} of " in answer["message"]
    assert [claim.run.name for claim in claims.claims()].index(waiting[1].id) == place - 1


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({"to": "sideways"}, "cannot be moved `sideways`"),
        ({"to": 0}, "cannot be moved `0`"),
        ({}, "`to` must be text"),
        ({"to": 1.5}, "text"),
    ],
)
def test_an_impossible_move_is_refused(ask, waiting, body, text):
    ((status, answer),) = ask(post(f"{ROOT}/{waiting[1].id}/move", **body))
    assert status == 409 and text in answer["error"]


def test_a_run_that_does_not_wait_is_not_moved(ask, make, waiting):
    ((status, answer),) = ask(post(f"{ROOT}/{make('stopped').id}/move", to="up"))
    assert status == 409 and "does not wait in the queue" in answer["error"]


def test_reading_changes_nothing(ask, trained):
    before = contents(trained)
    for part in ("", *(f"/{part}" for part in PARTS if part not in ("metrics.csv", "clips/0/0"))):
        if "frames" not in part and "references" not in part:
            ask(("GET", f"{ROOT}/{trained.id}{part}"))
    assert contents(trained) == before


def test_clips_are_requested_of_a_run_that_trains_only(ask, deaf, make):
    stopped = make("stopped")
    (yes, no) = ask(("POST", f"{ROOT}/{deaf.id}/sample"), ("POST", f"{ROOT}/{stopped.id}/sample"))
    assert yes[0] == 200 and deaf.take("sample") and "will sample held-out clips after" in yes[1]["message"]
    assert no[0] == 409 and not stopped.take("sample")


# --- pushing changes -------------------------------------------------------------------------------------------------


@pytest.fixture
def pushed(pack, monkeypatch):
    """A server with one open websocket `one`; the events that were sent to it. Every lease ends with the test."""
    from identity_grpo.nodes import watching
    from server import PromptServer

    monkeypatch.setattr(PromptServer.instance, "sockets", {"one": object()}, raising=False)
    monkeypatch.setattr(watching, "TICK_SECONDS", 0.02)
    sent = []
    monkeypatch.setattr(
        PromptServer.instance, "send_sync", lambda event, data, sid=None: sent.append((event, data, sid))
    )
    yield SimpleNamespace(sent=sent, watch=watching.watch)
    for sid in ("one", "two"):
        watching.watch.end(sid)
    wait_for(lambda: watching.watch._thread is None)


def test_a_change_is_pushed_to_the_browser_that_watches(ask, make, pushed):
    run = make("stopped")
    assert ask(post(WATCH, client="one"))[0][0] == 200
    wait_for(lambda: pushed.sent)
    pushed.sent.clear()
    run.append_metrics({"kind": "train", "iteration": 1, "reward_mean": 2.0})
    wait_for(lambda: pushed.sent)
    event, data, sid = pushed.sent[0]
    assert (event, sid) == ("identity_grpo.runs", "one") and data["runs"][0]["measured"] == 1


def test_a_deleted_run_is_pushed(ask, make, pushed):
    run = make("stopped")
    ask(post(WATCH, client="one"))
    wait_for(lambda: pushed.sent)
    ask(post(f"{ROOT}/{run.id}/delete"))
    wait_for(lambda: any(data["deleted"] == [run.id] for _, data, _ in pushed.sent))


def test_without_a_watcher_nothing_is_read(ask, make, pushed):
    make("stopped")
    ask(post(WATCH, client="one"))
    wait_for(lambda: pushed.sent)
    ask(post(f"{WATCH}/end", client="one"))
    wait_for(lambda: pushed.watch._thread is None)
    ticks = pushed.watch.ticks
    time.sleep(0.1)
    assert pushed.watch.ticks == ticks


def test_a_closed_page_is_a_watcher_no_more(ask, make, pushed):
    from server import PromptServer

    ask(post(WATCH, client="one"))
    PromptServer.instance.sockets.clear()
    wait_for(lambda: pushed.watch._thread is None)


@pytest.mark.parametrize("client", [None, 7, "", "two", "../one", "one\n", "x" * 65, ["one"]])
def test_only_an_open_websocket_can_watch(ask, pushed, client):
    ((status, answer),) = ask(post(WATCH, client=client))
    assert status == 409 and answer["error"] and not pushed.watch.watchers()


@pytest.mark.parametrize("content", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
def test_a_page_of_another_site_cannot_watch(ask, pushed, content):
    options = {"json": None, "data": b'{"client": "one"}', "headers": {"Content-Type": content}}
    assert [status for status, _ in ask(("POST", WATCH, options), ("POST", f"{WATCH}/end", options))] == [415, 415]
