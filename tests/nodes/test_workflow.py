"""The first workflow, node by node."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from comfy_graphs import flatten, to_api

FILE = next((Path(__file__).parents[2] / "workflows").glob("01_*.json"))


@pytest.fixture(scope="module")
def graph(pack) -> dict:
    """As the editor would queue it, without core's nodes, which only save; with a short training."""
    workflow = flatten(json.loads(FILE.read_text(encoding="utf-8")))
    ours = [node for node in workflow["nodes"] if node["type"] in pack.nodes]
    found = to_api(workflow | {"nodes": ours}, {name: node.GET_NODE_INFO_V1() for name, node in pack.nodes.items()})
    train = next(content for content in found.values() if content["class_type"] == "IdentityGRPOTrain")
    train["inputs"] |= {"iterations": 1, "groups_per_update": 2}
    run = next(content for content in found.values() if content["class_type"] == "IdentityGRPORun")
    run["inputs"] |= {"wait": "for the end", "queue_again": "no"}
    return found


@pytest.fixture(scope="module")
def results(pack, graph, node_output, two_held_out) -> dict:
    """The outputs of every node by its kind."""
    done = {}

    def given(value):
        return pack.Linked(run(value[0]).args[value[1]]) if isinstance(value, list) else value

    def run(name: str):
        if name not in done:
            inputs: dict = {}
            for slot, value in graph[name]["inputs"].items():
                group, _, member = slot.partition(".")
                if member:
                    inputs.setdefault(group, {})[member] = given(value).value
                else:
                    inputs[slot] = given(value)
            done[name] = node_output(graph[name]["class_type"], **inputs)
        return done[name]

    for name in graph:
        run(name)
    kinds: dict = {}
    for name, result in done.items():
        kinds.setdefault(graph[name]["class_type"].removeprefix("IdentityGRPO"), []).append(result)
    return kinds


def test_the_run_reaches_its_end(results):
    (result,) = results["Train"]
    assert result.args[0].status().state == "finished"


def test_the_videos_before_and_after_differ(results):
    before, after = (result.args[0] for result in results["VACESampler"])
    assert before.shape == after.shape and before.shape[-1] == 3
    assert not torch.equal(before, after)


def test_the_comparison_gives_probabilities(results):
    (result,) = results["Compare"]
    win, tie, picture = result.args
    assert 0 <= win <= 1 and 0 <= tie <= 1 and win + tie <= 1 and picture.ndim == 4
