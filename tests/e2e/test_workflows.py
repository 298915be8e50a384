"""The shared workflow files, in a real ComfyUI."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from comfy_client import Refused
from comfy_graphs import NOTES, flatten, to_api

WORKFLOWS = sorted(
    (Path(__file__).parents[2] / "workflows").glob("*.json"), key=lambda path: int(path.stem.split("_")[0])
)
# What a workflow may lack on a machine without the files it names.
FILES = re.compile(
    r"not in list: ((unet|clip|vae)_name|text_encoder|vae|base_model|run): "
    r"|there is no (model|file|reward|base model|prompt set|LoRA|run|training run)|Invalid (image|video) file"
    r"|'NoneType' object has no attribute 'endswith'"  # core's error when no picture is chosen
)
SECONDS = 240
WITHOUT_FILES = (
    "01_train_and_compare_in_miniature",
    "04_score_my_clips.app",
    "10_who_is_who_in_a_clip",
    "11_keep_the_best_clip",
    "12_votes_become_a_reward",
)


@pytest.fixture(params=WORKFLOWS, ids=lambda path: path.stem)
def workflow(request) -> Path:
    return request.param


def test_comfyui_lists_them_as_templates(comfyui):
    assert sorted(comfyui.get("/workflow_templates").get("identity-grpo", [])) == sorted(
        path.stem for path in WORKFLOWS
    )


def test_it_is_served_with_its_picture(comfyui, workflow):
    place = "/api/workflow_templates/identity-grpo"
    assert comfyui.get(f"{place}/{workflow.stem}.json") == json.loads(workflow.read_text(encoding="utf-8"))
    assert comfyui.bytes(f"{place}/{workflow.stem}.jpg").startswith(b"\xff\xd8\xff")


def test_it_can_be_opened_by_its_address(workflow):
    """The editor's `?template=` takes plain names only."""
    assert re.fullmatch(r"[\w.-]+", workflow.stem, re.ASCII)


def test_it_carries_notes(workflow):
    nodes = json.loads(workflow.read_text(encoding="utf-8"))["nodes"]
    assert any(node["type"] in NOTES and len(node["widgets_values"][0]) > 40 for node in nodes)


@pytest.mark.parametrize("workflow", [w for w in WORKFLOWS if w.stem not in WITHOUT_FILES], ids=lambda path: path.stem)
def test_it_lacks_files_at_most(comfyui, object_info, workflow):
    """All nodes, inputs, widgets and links are there; only files have to be chosen."""
    content = flatten(json.loads(workflow.read_text(encoding="utf-8")))
    assert {n["type"] for n in content["nodes"]} - set(object_info) <= {*NOTES, "Reroute"}
    graph = to_api(content, object_info)
    with pytest.raises(Refused) as refused:
        comfyui.queue(graph)
    comfyui.settle()
    problems = [text for found in refused.value.problems.values() for _, text in found]
    assert problems and [text for text in problems if not FILES.search(text)] == []


def test_the_first_one_trains_and_compares_without_any_file(comfyui, object_info):
    """With a shorter training."""
    graph = to_api(json.loads(WORKFLOWS[0].read_text(encoding="utf-8")), object_info)
    kinds = {content["class_type"]: name for name, content in graph.items()}
    graph[kinds["IdentityGRPOTrain"]]["inputs"] |= {"iterations": 1, "groups_per_update": 2}
    graph[kinds["IdentityGRPORun"]]["inputs"] |= {"wait": "for the end", "queue_again": "no"}
    result = comfyui.run(graph, SECONDS)
    assert result.status == "success", result.error
    assert "%" in result.outputs[kinds["IdentityGRPOCompare"]]["text"][0]
    assert comfyui.pictures(result.outputs[kinds["IdentityGRPOCompare"]]["images"]).std() > 10


def test_two_clips_are_compared_without_any_file(comfyui, object_info):
    workflow = next(w for w in WORKFLOWS if w.stem == WITHOUT_FILES[1])
    graph = to_api(json.loads(workflow.read_text(encoding="utf-8")), object_info)
    result = comfyui.run(graph, SECONDS)
    assert result.status == "success", result.error
    (compare,) = (name for name, content in graph.items() if content["class_type"] == "IdentityGRPOCompare")
    assert "%" in result.outputs[compare]["text"][0]


def test_pairs_are_collected_and_their_votes_counted_without_any_file(comfyui, object_info):
    """What compares with the new reward waits for it."""
    workflow = next(w for w in WORKFLOWS if w.stem == WITHOUT_FILES[4])
    graph = to_api(flatten(json.loads(workflow.read_text(encoding="utf-8"))), object_info)
    for content in graph.values():
        if content["class_type"] == "IdentityGRPOVACESampler":
            content["inputs"]["steps"] = 2
        elif content["class_type"] == "IdentityGRPOVote":
            content["inputs"]["name"] = "pairs of a template"  # other tests vote too
    result = comfyui.run(graph, SECONDS)
    assert result.status == "success", result.error
    kinds = {content["class_type"]: name for name, content in graph.items()}
    assert "1 pair, 0 votes" in result.outputs[kinds["IdentityGRPOVote"]]["text"][0]
    assert "0 of 50 pairs have votes" in result.outputs[kinds["IdentityGRPOTrainReward"]]["text"][0]
    assert kinds["IdentityGRPOCompareRewards"] not in result.outputs


def test_the_stranger_of_the_example_clip_is_seen(comfyui, object_info):
    """In the six frames about the moment at which a stranger takes a person's place."""
    workflow = next(w for w in WORKFLOWS if w.stem == WITHOUT_FILES[2])
    graph = to_api(json.loads(workflow.read_text(encoding="utf-8")), object_info)
    (report,) = (name for name, content in graph.items() if content["class_type"] == "IdentityGRPOFaceReport")
    frames = {"image": graph[report]["inputs"]["images"], "batch_index": 17, "length": 6}
    graph["few"] = {"class_type": "ImageFromBatch", "inputs": frames}
    graph[report]["inputs"]["images"] = ["few", 0]
    result = comfyui.run(graph, SECONDS)
    assert result.status == "success", result.error
    assert (
        "person 2 is missing" in result.outputs[report]["text"][0] and "stranger" in result.outputs[report]["text"][0]
    )
