"""What a user can do wrong is told in words, and the server goes on."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from comfy_client import Refused
from comfy_graphs import LOAD, SAMPLE, WIDGETS, node, sampling

LORA = "10"


def problem(comfyui, graph: dict, name: str) -> str:
    """What ComfyUI answers to the graph instead of running it."""
    with pytest.raises(Refused) as refused:
        comfyui.queue(graph)
    comfyui.settle()
    assert set(refused.value.problems) == {name}, refused.value
    return " ".join(refused.value.problems[name])


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


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"model": "diffusers/nothing"}, "models/diffusion_models"),
        ({"model": "../../../etc/passwd"}, "models/diffusion_models"),
        ({"model": "diffusion_models/broken.safetensors"}, "broken.safetensors"),
        ({"vae": "/etc/passwd"}, "models/vae"),
        ({"text_encoder": "nothing.safetensors"}, "models/text_encoders"),
        ({"dtype": "int8"}, "dtype"),
        ({"attention": "magic"}, "attention"),
        ({"offload": "never"}, "offload"),
    ],
)
def test_a_wrong_model_is_refused(comfyui, item, files, inputs, words):
    graph = sampling("VACE", item.prompt)
    graph[LOAD]["inputs"] |= inputs
    assert words in problem(comfyui, graph, LOAD)


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"width": 90}, "use 96"),
        ({"height": 1}, "use 16"),
        ({"frames": 80}, "use 81"),
        ({"steps": 0}, "smaller than min"),
        ({"cfg": 1e9}, "bigger than max"),
        ({"seed": -1}, "smaller than min"),
        ({"seed": "abc"}, "Failed to convert"),
        ({"references.ref0": None}, "missing: ref0"),
        ({"policy": ["2", 0]}, "type mismatch"),
    ],
)
def test_wrong_settings_are_refused(comfyui, item, inputs, words):
    graph = sampling("VACE", item.prompt)
    given = graph[SAMPLE]["inputs"] | inputs
    graph[SAMPLE]["inputs"] = {name: value for name, value in given.items() if value is not None}
    assert words in problem(comfyui, graph, SAMPLE)


@pytest.mark.parametrize(
    ("lora", "words"),
    [
        ("broken.safetensors", "broken.safetensors"),
        ("foreign.safetensors", "foreign.safetensors"),
        ("../../../etc/passwd", "models/loras"),
        ("no-such-run: latest", "run"),
    ],
)
def test_a_wrong_lora_is_refused(comfyui, item, files, lora, words):
    graph = sampling("VACE", item.prompt, policy=[LORA, 0])
    graph[LORA] = {"class_type": "IdentityGRPOLoadLoRA", "inputs": {"policy": [LOAD, 0], "lora": lora, "strength": 1.0}}
    assert words in problem(comfyui, graph, LORA)


@pytest.fixture(scope="module")
def sheets(comfyui, item):
    """Prompt sets with something wrong."""
    folder = comfyui.base / "input"
    (folder / "rows.csv").write_text("ref_paths,prompt\nperson0.png,one person\nnobody.png,another\nperson1.png,\n")
    (comfyui.base / "outside.png").write_bytes((folder / "person0.png").read_bytes())
    (folder / "outside.csv").write_text("ref_paths,prompt\n../outside.png,one person\n")
    (folder / "columns.csv").write_text("pictures,words\nperson0.png,one person\n")


@pytest.mark.parametrize(
    ("kind", "inputs", "words"),
    [
        ("LoadReward", {"checkpoint": "nothing"}, ["models/identity_reward"]),
        ("LoadReward", {"dtype": "int8"}, ["not in list"]),
        ("PromptSet", {"file": "rows.csv"}, ["row 3", "nobody.png", "row 4"]),
        ("PromptSet", {"file": "columns.csv"}, ["ref_paths"]),
        ("PromptSet", {"file": "outside.csv"}, ["outside of ComfyUI's input and output folders"]),
        ("PromptSet", {"file": "../outside.csv"}, ["input folder"]),
        ("PromptSet", {"item": 0}, ["smaller than min"]),
        ("PromptItem", {"prompt": "  "}, ["prompt is empty"]),
        ("Train", {"preset": "none"}, ["preset"]),
        ("Train", {"frames": 80}, ["4n+1"]),
        ("Train", {"width": 80}, ["both width and height"]),
        ("Train", {"devices": "GPU 99"}, ["GPU 99"]),
        ("Train", {"start_lora": "nothing.safetensors"}, ["models/loras"]),
        ("Train", {"iterations": -1}, ["smaller than min"]),
        ("Run", {"run": "../../nothing"}, ["nothing"]),
        ("Run", {"wait": "for ever"}, ["not in list"]),
        ("SaveLoRA", {"lora": "broken.safetensors"}, ["broken.safetensors"]),
    ],
)
def test_what_cannot_be_trained_judged_or_saved_is_refused(
    comfyui, object_info, item, files, sheets, kind, inputs, words
):
    graph = {name: sampling("VACE", item.prompt)[name] for name in (LOAD, "2")} | {
        "20": node("IdentityGRPOLoadReward"),
        "21": node("IdentityGRPOPromptSet"),
        "30": node(
            f"IdentityGRPO{kind}",
            policy=[LOAD, 0],
            reward=["20", 0],
            prompt_set=["21", 0],
            **{"references.ref0": ["2", 0]},
        ),
    }
    if not object_info[graph["30"]["class_type"]]["output_node"]:
        graph["31"] = node("PreviewAny", source=["30", 0])
    for name in ("20", "21", "30"):
        graph[name]["inputs"] = as_in_the_editor(object_info[graph[name]["class_type"]], graph[name]["inputs"])
    graph["30"]["inputs"] |= inputs
    told = problem(comfyui, graph, "30")
    assert [word for word in words if word not in told] == [], told


def as_in_the_editor(info: dict, linked: dict) -> dict:
    """The widgets of a new node, and those of the links that it has an input for."""
    given = {name: entry for kind in ("required", "optional") for name, entry in info["input"].get(kind, {}).items()}
    widgets = {n: e[1].get("default", (e[1].get("options") or [""])[0]) for n, e in given.items() if e[0] in WIDGETS}
    return widgets | {name: link for name, link in linked.items() if name.partition(".")[0] in given}


def test_nothing_is_written_outside_of_the_output_folder(comfyui, item):
    save_file(
        {
            "diffusion_model.blocks.0.self_attn.q.lora_down.weight": torch.zeros(2, 4),
            "diffusion_model.blocks.0.self_attn.q.lora_up.weight": torch.zeros(4, 2),
        },
        comfyui.base / "models" / "loras" / "good.safetensors",
    )
    save = node(
        "IdentityGRPOSaveLoRA", lora="good.safetensors", format="ComfyUI (one file)", filename_prefix="../../../escaped"
    )
    result = comfyui.run({"1": save})
    assert result.failed_node == "1" and "output" in result.error
    assert not list(comfyui.base.parent.rglob("escaped*"))


def test_a_row_that_is_not_there_is_told(comfyui):
    result = comfyui.run({"1": node("IdentityGRPOPromptSet", file="TinyWorld: training (built in)", item=9999)})
    assert result.failed_node == "1" and "choose 1 to" in result.error


def test_a_model_of_the_other_kind_is_told_where_to_go(comfyui, item):
    graph = sampling("VACE", item.prompt)
    graph[LOAD]["inputs"]["model"] = "TinyWorld Phantom (built in)"
    result = comfyui.run(graph)
    assert result.failed_node == SAMPLE and "use the Phantom Sampler" in result.error


def test_the_server_has_outlived_all_of_this(comfyui, item):
    assert comfyui.run(sampling("VACE", item.prompt)).status == "success"
