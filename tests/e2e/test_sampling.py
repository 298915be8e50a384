"""Sampling a video in a real ComfyUI."""

from __future__ import annotations

import time

import pytest

from comfy_graphs import LOAD, SAMPLE, SHOW, sampling


@pytest.fixture(params=["VACE", "Phantom"])
def kind(request) -> str:
    return request.param


@pytest.fixture
def graph(kind, item) -> dict:
    return sampling(kind, item.prompt)


def test_a_video_is_generated(comfyui, graph):
    result = comfyui.run(graph)
    assert result.status == "success", result.error
    frames = comfyui.pictures(result.outputs[SHOW]["images"])
    assert frames.shape == (9, 48, 80, 3) and frames.std() > 10


def test_the_same_graph_is_taken_from_the_cache_and_another_seed_uses_the_loaded_model(comfyui, graph):
    comfyui.run(graph)
    assert SAMPLE not in comfyui.run(graph).fresh
    graph[SAMPLE]["inputs"]["seed"] = 2
    assert comfyui.run(graph).fresh & {LOAD, SAMPLE} == {SAMPLE}


def test_core_saves_the_latent(comfyui, graph):
    graph["6"] = {"class_type": "SaveLatent", "inputs": {"samples": [SAMPLE, 1], "filename_prefix": "clip"}}
    result = comfyui.run(graph)
    assert result.status == "success", result.error
    assert result.outputs["6"]["latents"][0]["filename"].startswith("clip")


def test_progress_and_previews_reach_the_editor(comfyui, graph):
    graph[SAMPLE]["inputs"] |= {"seed": int(time.time()), "steps": 4}
    with comfyui.events() as events:
        prompt = comfyui.queue(graph)
        picture = events.wait("binary")
        assert b"\xff\xd8\xff" in picture[:200]  # a JPEG
        seen = [events.wait("progress") for _ in range(2)]
    assert all(p["max"] == 4 and p["node"] == SAMPLE for p in seen)
    assert comfyui.result(prompt).status == "success"


def test_cancel_ends_sampling_within_two_seconds(comfyui, graph, kind):
    graph[SAMPLE]["inputs"] |= {"steps": 200, "width": 320, "height": 192, "frames": 33, "seed": int(time.time())}
    with comfyui.events() as events:
        prompt = comfyui.queue(graph)
        events.wait("progress")
        cancelled = time.monotonic()
        comfyui.post("/interrupt")
        result = comfyui.result(prompt, 30)
        took = time.monotonic() - cancelled
    assert result.interrupted and result.failed_node is None
    assert took < 2
    graph[SAMPLE]["inputs"] |= {"steps": 2, "width": 80, "height": 48, "frames": 9}
    assert comfyui.run(graph).status == "success"
