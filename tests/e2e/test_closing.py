"""A run outlives the ComfyUI that started it."""

from __future__ import annotations

import time

from comfy_graphs import RUN, training
from comfy_server import ending_runs, runs_in, serving, two_people


def test_a_run_continues_when_comfyui_closes_and_the_next_one_shows_and_stops_it(comfyui_python, tmp_path):
    with ending_runs(tmp_path) as base:
        with serving(*comfyui_python, base, "--cpu") as comfyui:
            graph = training(two_people(comfyui), iterations=500)
            started = comfyui.run(graph)
            assert started.status == "success", started.error
        (run,) = runs_in(base)
        until = time.monotonic() + 60
        while run.status().iteration < 1:
            assert run.status().state in ("starting", "running") and time.monotonic() < until, run.log_tail()
            time.sleep(0.2)
        with serving(*comfyui_python, base, "--cpu") as comfyui:
            shown = comfyui.run(graph)
            assert f"{run.id}: running" in shown.outputs[RUN]["text"][0] and len(runs_in(base)) == 1
            assert comfyui.post(f"/identity_grpo/runs/{run.id}/stop")["state"] == "stopped"
