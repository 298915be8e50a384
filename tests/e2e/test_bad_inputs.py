"""What a user can do wrong is told in words, and the server goes on."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from comfy_client import Refused
from comfy_graphs import LOAD, SAMPLE, sampling

LORA = "10"


def problem(comfyui, graph: dict, node: str) -> str:
    """What ComfyUI answers to the graph instead of running it."""
    with pytest.raises(Refused) as refused:
        comfyui.queue(graph)
    assert set(refused.value.problems) == {node}, refused.value
    return " ".join(refused.value.problems[node])


@pytest.fixture(scope="module")
def files(comfyui):
    """Files that are not what they should be."""
    loras, models = comfyui.base / "models" / "loras", comfyui.base / "models" / "diffusion_models"
    for folder in (loras, models):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "broken.safetensors").write_bytes(b"half a download")
    save_file({"lora_unet_double_blocks_0.lora_down.weight": torch.zeros(2, 2)}, loras / "foreign.safetensors")
    for part in ("vae", "text_encoder", "tokenizer"):
        (models / part).mkdir()
    (models / "tokenizer" / "tokenizer_config.json").write_text("{}")


@pytest.mark.parametrize(("inputs", "words"), [
    ({"model": "diffusers/nothing"}, "models/diffusion_models"),
    ({"model": "../../../etc/passwd"}, "models/diffusion_models"),
    ({"model": "diffusion_models/broken.safetensors"}, "broken.safetensors"),
    ({"vae": "/etc/passwd"}, "models/vae"),
    ({"text_encoder": "nothing.safetensors"}, "models/text_encoders"),
    ({"dtype": "int8"}, "dtype"),
    ({"attention": "magic"}, "attention"),
    ({"offload": "never"}, "offload"),
])
def test_a_wrong_model_is_refused(comfyui, item, files, inputs, words):
    graph = sampling("VACE", item.prompt)
    graph[LOAD]["inputs"] |= inputs
    assert words in problem(comfyui, graph, LOAD)


@pytest.mark.parametrize(("inputs", "words"), [
    ({"width": 90}, "use 96"),
    ({"height": 1}, "use 16"),
    ({"frames": 80}, "use 81"),
    ({"steps": 0}, "smaller than min"),
    ({"cfg": 1e9}, "bigger than max"),
    ({"seed": -1}, "smaller than min"),
    ({"seed": "abc"}, "Failed to convert"),
    ({"references.ref0": None}, "missing: ref0"),
    ({"policy": ["2", 0]}, "type mismatch"),
])
def test_wrong_settings_are_refused(comfyui, item, inputs, words):
    graph = sampling("VACE", item.prompt)
    given = graph[SAMPLE]["inputs"] | inputs
    graph[SAMPLE]["inputs"] = {name: value for name, value in given.items() if value is not None}
    assert words in problem(comfyui, graph, SAMPLE)


@pytest.mark.parametrize(("lora", "words"), [
    ("broken.safetensors", "broken.safetensors"),
    ("foreign.safetensors", "foreign.safetensors"),
    ("../../../etc/passwd", "models/loras"),
    ("no-such-run: latest", "run"),
])
def test_a_wrong_lora_is_refused(comfyui, item, files, lora, words):
    graph = sampling("VACE", item.prompt, policy=[LORA, 0])
    graph[LORA] = {"class_type": "IdentityGRPOLoadLoRA", "inputs": {"policy": [LOAD, 0], "lora": lora, "strength": 1.0}}
    assert words in problem(comfyui, graph, LORA)


def test_a_model_of_the_other_kind_is_told_where_to_go(comfyui, item):
    graph = sampling("VACE", item.prompt)
    graph[LOAD]["inputs"]["model"] = "TinyWorld Phantom (built in)"
    result = comfyui.run(graph)
    assert result.failed_node == SAMPLE and "use the Phantom Sampler" in result.error


def test_the_server_has_outlived_all_of_this(comfyui, item):
    assert comfyui.run(sampling("VACE", item.prompt)).status == "success"
