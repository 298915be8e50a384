"""What is different with a GPU: which one trains, Cancel, and running out of its memory."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from comfy_graphs import LOAD, RUN, SAMPLE, SHOW, TRAIN, following, sampling, training
from comfy_server import ending_runs, runs_in, serving, two_people

COUNT = "import torch; print(torch.cuda.device_count())"
OCCUPY = """
import sys, torch
held = [torch.empty(2**20, dtype=torch.uint8, device="cuda") for _ in range(int(sys.argv[1]))]
print("held", flush=True)
input()
"""
# About as much as TinyWorld is let to generate.
LONG = {"width": 320, "height": 192, "frames": 33, "steps": 200}
LARGE = {"width": 1472, "height": 1472, "frames": 1}


@pytest.fixture(scope="module")
def gpus(comfyui_python) -> int:
    """How many GPUs ComfyUI's interpreter sees."""
    count = int(subprocess.run([comfyui_python[1], "-c", COUNT], capture_output=True, text=True, check=True).stdout)
    if not count:
        pytest.skip("ComfyUI's interpreter sees no GPU")
    return count


@pytest.fixture(scope="module")
def server(comfyui_python, gpus, tmp_path_factory):
    with ending_runs(tmp_path_factory.mktemp("gpu")) as base, serving(*comfyui_python, base) as client:
        yield client


@pytest.fixture(scope="module")
def people(server):
    return two_people(server)


@contextmanager
def occupied(python, free_mb: int) -> Iterator[None]:
    """Another process holds the memory of the first GPU, all but `free_mb`."""
    free = subprocess.run(
        [python, "-c", "import torch; print(torch.cuda.mem_get_info()[0] >> 20)"],
        capture_output=True,
        text=True,
        check=True,
    )
    command = [python, "-c", OCCUPY, str(int(free.stdout) - 600 - free_mb)]  # what a process needs for itself
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline().strip() == "held"
        yield
    finally:
        holder.kill()
        holder.wait()


@pytest.mark.parametrize("kind", ["VACE", "Phantom"])
def test_the_same_seed_gives_the_same_video_when_the_model_is_loaded_again(server, people, kind):
    graph = sampling(kind, people.prompt)
    first = server.pictures(server.run(graph).outputs[SHOW]["images"])
    graph[LOAD]["inputs"]["offload"] = "after every use"
    again = server.run(graph)
    assert {LOAD, SAMPLE} <= again.fresh
    assert (server.pictures(again.outputs[SHOW]["images"]) == first).all() and first.std() > 10


@pytest.mark.parametrize("kind", ["VACE", "Phantom"])
def test_cancel_ends_a_long_video_within_two_seconds(server, people, kind):
    server.run(sampling(kind, people.prompt))
    with server.events() as events:
        prompt = server.queue(sampling(kind, people.prompt, **LONG, seed=int(time.time())))
        events.wait("progress")
        cancelled = time.monotonic()
        server.post("/interrupt")
        assert server.result(prompt, 60).interrupted
    assert time.monotonic() - cancelled < 2


def test_out_of_memory_names_what_to_lower_and_the_next_video_is_generated(server, people, comfyui_python):
    small = sampling("VACE", people.prompt, seed=77)
    server.run(small)
    with occupied(comfyui_python[1], free_mb=600):
        failed = server.run(sampling("VACE", people.prompt, **LARGE), 300)
    assert (
        failed.failed_node == SAMPLE
        and "out of memory at 1472x1472, 1 frames" in failed.error
        and "lower `frames`" in failed.error
    )
    small[SAMPLE]["inputs"]["seed"] = 78
    assert server.run(small).status == "success"


def test_training_takes_every_gpu_but_comfyuis_or_the_only_one(server, people, gpus):
    started = server.run(training(people))
    assert started.status == "success", started.error
    (run,) = runs_in(server.base)
    assert run.status().gpus == (list(range(1, gpus)) or [0])
    refused = server.run(training(people, seed=9))
    assert refused.failed_node == TRAIN and run.id in refused.error
    ended = server.run(training(people, "for the end"), 300)
    assert ended.status == "success" and "finished, iteration 2 of 2" in ended.outputs[RUN]["text"][0]
    plain = server.pictures(server.run(sampling("VACE", people.prompt, seed=5)).outputs[SHOW]["images"])
    graph = following(people)
    graph[SAMPLE]["inputs"]["seed"] = 5
    assert (server.pictures(server.run(graph).outputs[SHOW]["images"]) != plain).any()


def test_all_gpus_train_one_run(server, people, gpus):
    if gpus == 1:
        pytest.skip("there is one GPU")
    result = server.run(training(people, "for the end", devices="all GPUs", name="all", groups_per_update=gpus), 400)
    assert result.status == "success", result.error
    run = runs_in(server.base)[-1]
    assert run.status().gpus == list(range(gpus)) and run.status().state == "finished"


def test_flash_attention_gives_the_video_of_sdpa(server, people):
    graph = sampling("VACE", people.prompt)
    if "flash" not in server.object_info()["IdentityGRPOLoadModel"]["input"]["required"]["attention"][1]["options"]:
        pytest.skip("ComfyUI's interpreter has no flash-attn")
    plain = server.pictures(server.run(graph).outputs[SHOW]["images"])
    graph[LOAD]["inputs"]["attention"] = "flash"
    flash = server.pictures(server.run(graph).outputs[SHOW]["images"])
    assert abs(plain.astype(int) - flash).mean() < 2
