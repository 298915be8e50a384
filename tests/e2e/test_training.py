"""A run started from a graph, and its LoRA used by another graph."""

from __future__ import annotations

import time

import numpy as np
import pytest

from comfy_graphs import LOAD, LORA, RUN, SAMPLE, SHOW, TRAIN, following, sampling, training
from comfy_server import runs_in

SECONDS = 150


@pytest.fixture(scope="module")
def runs(comfyui):
    """The runs in ComfyUI's private folder."""
    return lambda: runs_in(comfyui.base)


@pytest.fixture(scope="module")
def trained(comfyui, item, runs):
    """Results of the graph that samples: without a LoRA, with an early one, with the last one."""

    def picture(result) -> np.ndarray:
        assert result.status == "success", result.error
        return comfyui.pictures(result.outputs[SHOW]["images"])

    plain = picture(comfyui.run(sampling("VACE", item.prompt)))
    started = time.monotonic()
    started_run = comfyui.run(training(item))
    assert started_run.status == "success", started_run.error
    returned = time.monotonic() - started
    first = comfyui.run(training(item, "for the first LoRA"), SECONDS)
    assert first.status == "success", first.error
    early = picture(comfyui.run(following(item)))
    last = comfyui.run(training(item, "for the end"), SECONDS)
    assert last.status == "success", last.error
    again = comfyui.run(following(item))
    return {
        "started": started_run,
        "returned": returned,
        "plain": plain,
        "early": early,
        "late": picture(again),
        "again": again,
        "last": last,
    }


def test_the_graph_ends_while_the_run_continues(trained):
    assert trained["returned"] < 20
    assert "started" in trained["started"].outputs[TRAIN]["text"][0]


def test_it_reaches_its_last_iteration_and_all_queues_are_of_one_run(trained, runs, comfyui):
    (run,) = runs()
    assert run.status().state == "finished" and run.status().iteration == 2
    (listed,) = comfyui.get("/identity_grpo/runs")
    assert listed["id"] == run.id and listed["state"] == "finished"


def test_its_text_and_numbers_are_in_the_history(trained):
    shown = trained["last"].outputs[RUN]
    assert "finished, iteration 2 of 2" in shown["text"][0]
    assert [shown[name] for name in ("state", "iteration", "iterations")] == [["finished"], [2], [2]]
    assert isinstance(shown["reward_margin"][0], float) and 0 <= shown["win_rate"][0] <= 1
    assert "images" not in shown  # the strip of the node shows the curve


def test_the_lora_changes_the_picture_at_the_next_queue(trained):
    assert not np.array_equal(trained["plain"], trained["late"])
    assert not np.array_equal(trained["early"], trained["late"])


def test_a_newer_lora_does_not_load_the_model_again(trained):
    assert trained["again"].fresh & {LOAD, LORA, SAMPLE} == {LORA, SAMPLE}


def test_the_iteration_of_the_lora_is_shown(trained, runs):
    assert trained["again"].outputs[LORA]["text"] == [f"run {runs()[0].id}, iteration 2, at strength 1"]


def test_core_finds_the_lora_among_its_own(trained, comfyui, runs):
    offered = comfyui.object_info()["LoraLoaderModelOnly"]["input"]["required"]["lora_name"]
    names = offered[0] if isinstance(offered[0], list) else offered[1]["options"]
    assert [n for n in names if runs()[0].id in n and n.endswith("-000002.safetensors")]


def test_the_same_settings_show_the_run(trained, comfyui, item, runs):
    graph = {
        ("9" + name if name == TRAIN else name): content for name, content in training(item).items() if name != RUN
    }
    result = comfyui.run(graph)
    assert "have a run already" in result.outputs["9" + TRAIN]["text"][0]
    assert len(runs()) == 1


def test_a_linked_run_is_shown_whatever_the_widget_holds(trained, comfyui, item, runs):
    graph = training(item)
    graph[RUN]["inputs"]["run"] = "long-gone-20200101-000000-abcd"
    result = comfyui.run(graph)
    assert result.outputs[RUN]["text"][0].startswith(runs()[0].id)


def test_a_second_run_on_the_device_is_refused_with_the_name_of_the_first_and_stop_ends_it(
    trained, comfyui, item, runs
):
    comfyui.run(training(item, seed=4, iterations=500))
    running = runs()[-1]
    result = comfyui.run(training(item, seed=5))
    assert result.failed_node == TRAIN and running.id in result.error
    assert len(runs()) == 2
    comfyui.post(f"/identity_grpo/runs/{running.id}/stop")
    until = time.monotonic() + 60
    while comfyui.get(f"/identity_grpo/runs/{running.id}")["state"] != "stopped":
        assert time.monotonic() < until
        time.sleep(0.2)


@pytest.fixture
def waiting(trained, comfyui, item, runs):
    """`waiting(seed)`: a queued graph that waits for the end of a long run, and the run, which ends with the test."""
    started = []

    def queue(seed: int):
        with comfyui.events() as events:
            prompt = comfyui.queue(training(item, "for the end", seed=seed, iterations=500))
            while events.wait("executing", 60)["node"] != RUN:
                pass
        started.append(runs()[-1])
        return prompt, started[-1]

    yield queue
    for run in started:
        comfyui.post(f"/identity_grpo/runs/{run.id}/stop")


def test_cancel_ends_the_waiting_and_not_the_run(comfyui, waiting):
    prompt, run = waiting(6)
    comfyui.post("/interrupt")
    assert comfyui.result(prompt, 30).interrupted
    assert comfyui.get(f"/identity_grpo/runs/{run.id}")["state"] in ("starting", "running")


def test_stopping_a_run_that_is_waited_for_is_an_interruption(comfyui, waiting):
    prompt, run = waiting(7)
    assert comfyui.post(f"/identity_grpo/runs/{run.id}/stop")["state"] == "stopped"
    result = comfyui.result(prompt, 30)
    assert result.interrupted and result.failed_node is None


def test_save_now_answers_when_it_will_save(trained, comfyui, item, runs):
    comfyui.run(training(item, seed=8, iterations=500))
    run = runs()[-1]
    answer = comfyui.post(f"/identity_grpo/runs/{run.id}/save")
    assert answer["message"].startswith(f"run {run.id} will save after iteration ")
    comfyui.post(f"/identity_grpo/runs/{run.id}/stop")
