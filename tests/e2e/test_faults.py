"""ComfyUI and the trainer are killed, and two servers share one folder: no run is lost, and none has two processes."""

from __future__ import annotations

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

from comfy_client import Client, Refused
from comfy_graphs import training
from comfy_server import ending_runs, runs_in, serving, two_people
from trainers.processes import alive
from trainers.runs.folder import RunFolder

TRUE_WITHIN = 10.0  # seconds
ROUTE = "/identity_grpo/runs"


def kill_server(comfyui: Client) -> None:
    wanted = ["--port", str(comfyui.port)]
    for child in psutil.Process().children():
        if wanted[1] in child.cmdline():
            child.kill()


def reaches(run: RunFolder, iteration: int) -> None:
    until = time.monotonic() + 120
    while run.status().iteration < iteration:
        assert run.status().state in ("starting", "running") and time.monotonic() < until, run.log_tail()
        time.sleep(0.1)


def works(run: RunFolder) -> bool:
    status = run.status()
    return alive(status.pid, status.pid_started)


@pytest.fixture
def base(tmp_path):
    with ending_runs(tmp_path) as folder:
        yield folder


def test_nothing_is_lost_when_comfyui_and_its_trainer_are_killed(comfyui_python, base):
    with serving(*comfyui_python, base, "--cpu") as comfyui:
        graph = training(two_people(comfyui), iterations=500)
        assert comfyui.run(graph).status == "success"
        (run,) = runs_in(base)
        comfyui.post(f"{ROUTE}/{run.id}/rename", {"title": "mine"})
        reaches(run, 1)
        kill_server(comfyui)
    iteration = run.status().iteration
    reaches(run, iteration + 1)  # it does not need the server
    os.killpg(run.status().group, signal.SIGKILL)
    saved = run.checkpoints()[-1].name
    with (
        serving(*comfyui_python, base, "--cpu") as first,
        serving(*comfyui_python, base, "--cpu") as second,
        ThreadPoolExecutor() as pool,
    ):
        asked = time.monotonic()
        for server in (first, second):
            (shown,) = server.get(ROUTE)
            assert (shown["state"], shown["title"], shown["resumes_from"]) == ("failed", "mine", int(saved))
        assert time.monotonic() - asked < TRUE_WITHIN

        def resume(server: Client) -> str:
            try:
                return server.post(f"{ROUTE}/{run.id}/resume")["state"]
            except Refused as refused:
                return str(refused)

        refused, started = sorted(pool.map(resume, (first, second)))
        assert started == "starting" and f"run {run.id} is starting already" in refused
        until = time.monotonic() + 120
        while run.checkpoints()[-1].name == saved:
            assert works(run) and time.monotonic() < until, run.log_tail()
            time.sleep(0.1)
        assert second.get(f"{ROUTE}/{run.id}")["state"] == first.get(f"{ROUTE}/{run.id}")["state"] == "running"
        assert first.post(f"{ROUTE}/{run.id}/stop")["state"] == second.get(f"{ROUTE}/{run.id}")["state"] == "stopped"
    assert not works(run)
    rows = [row["iteration"] for row in run.training()]
    assert rows == list(range(1, len(rows) + 1)) and len(rows) > int(saved)
