"""Wrong values in the real editor: each is one error, shown on the widget that is wrong, before anything runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

WORKFLOWS = Path(__file__).parents[2] / "workflows"
BUILT_IN = {
    "IdentityGRPOLoadModel": {
        "model": "TinyWorld VACE (built in)",
        "text_encoder": "beside the model",
        "vae": "beside the model",
    },
    "IdentityGRPOLoadReward": {"checkpoint": "TinyWorld (built in)", "base_model": "as the checkpoint says"},
    "IdentityGRPOPromptSet": {"file": "TinyWorld: training (built in)"},
}
SAMPLING = [
    ("IdentityGRPOLoadModel", "model", "diffusion_models/deleted.safetensors", "there is no model"),
    ("IdentityGRPOLoadModel", "vae", "deleted.safetensors", "not in list"),
    ("IdentityGRPOLoadModel", "attention", "flash", "not in list"),
    ("IdentityGRPOVACESampler", "prompt", "  ", "the prompt is empty; describe the video"),
    ("IdentityGRPOVACESampler", "width", 100000, "bigger than max of 4096"),
    ("IdentityGRPOVACESampler", "steps", 0, "smaller than min"),
    ("IdentityGRPOVACESampler", "solver", "magic", "not in list"),
]
TRAINING = [
    ("IdentityGRPOLoadReward", "checkpoint", "deleted", "there is no reward"),
    ("IdentityGRPOPromptSet", "file", "deleted.csv", "there is no prompt set"),
    ("IdentityGRPOTrain", "frames", 80, "frames 80 is not 4n+1"),
    ("IdentityGRPOTrain", "start_lora", "deleted.safetensors", "not in list"),
    ("IdentityGRPOTrain", "learning_rate", 0, "smaller than min"),
]
MISTAKES = [*SAMPLING, *TRAINING]


@pytest.fixture(scope="module")
def shown(browse, tmp_path_factory) -> list[dict]:
    """For each mistake, what the editor says and which widgets it shows in red."""
    plan = [
        {"workflow": without_mistakes("02"), "mistakes": [mistake[:3] for mistake in SAMPLING]},
        {"workflow": without_mistakes("08"), "mistakes": [mistake[:3] for mistake in TRAINING]},
    ]
    file = tmp_path_factory.mktemp("mistakes") / "plan.json"
    file.write_text(json.dumps(plan))
    return browse("mistakes.cjs", "", file)


def without_mistakes(number: str) -> dict:
    """The template of that number as a graph, with what is built in in place of files that are not there."""
    workflow = json.loads(next(WORKFLOWS.glob(f"{number}_*.json")).read_text(encoding="utf-8"))
    workflow["extra"].pop("linearMode", None)
    for node in workflow["nodes"]:
        if node["type"] in BUILT_IN:
            node["widgets_values"] = list((node["widgets_values_named"] | BUILT_IN[node["type"]]).values())
            node["properties"].pop("models", None)
    return workflow


@pytest.mark.parametrize("place", range(len(MISTAKES)), ids=[f"{m[0]} {m[1]}" for m in MISTAKES])
def test_one_wrong_value_is_one_error_on_its_widget(shown, place):
    kind, name, _, text = MISTAKES[place]
    ((node, given, said),) = shown[place]["said"]
    assert (node, given) == (kind, name) and text in said
    assert shown[place]["red"] == [[kind, name]]


def test_nothing_has_run(shown, comfyui):
    assert not any(comfyui.get("/queue").values())
