"""Wrong inputs in the real ComfyUI: one error on the guilty input, before anything runs where that can be known."""

from __future__ import annotations

import http.client

import pytest
import torch
from safetensors.torch import save_file

from comfy_client import Refused
from comfy_graphs import LOAD, SAMPLE, WIDGETS, node, sampling

LORA, JUDGED = "10", "30"
RUNS = "/identity_grpo/runs"


def problem(comfyui, graph: dict, name: str) -> tuple[str, str]:
    """Input and text of the one error with which ComfyUI refuses the graph."""
    with pytest.raises(Refused) as refused:
        comfyui.queue(graph)
    comfyui.settle()
    assert set(refused.value.problems) == {name}, refused.value
    (found,) = refused.value.problems[name]
    return found


@pytest.fixture(scope="module")
def files(comfyui):
    """Files that are not what they should be."""
    loras, models = comfyui.base / "models" / "loras", comfyui.base / "models" / "diffusion_models"
    for folder in (loras, models):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "broken.safetensors").write_bytes(b"half a download")
    save_file({"lora_unet_double_blocks_0.lora_down.weight": torch.zeros(2, 2)}, loras / "foreign.safetensors")


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("model", "diffusers/nothing", "models/diffusion_models"),
        ("model", "../../../etc/passwd", "models/diffusion_models"),
        ("model", "diffusion_models/broken.safetensors", "broken.safetensors"),
        ("vae", "/etc/passwd", "not in list"),
        ("text_encoder", "nothing.safetensors", "not in list"),
        ("dtype", "int8", "not in list"),
        ("attention", "flash", "not in list"),  # the server has no GPU
        ("offload", "never", "not in list"),
    ],
)
def test_a_wrong_model_is_one_error_on_its_input(comfyui, item, files, name, value, text):
    graph = sampling("VACE", item.prompt)
    graph[LOAD]["inputs"][name] = value
    found = problem(comfyui, graph, LOAD)
    assert found[0] == name and text in found[1]


@pytest.mark.parametrize(
    ("inputs", "name", "text"),
    [
        ({"prompt": " "}, "prompt", "the prompt is empty; describe the video"),
        ({"width": 100000}, "width", "bigger than max of 4096"),
        ({"height": 1}, "height", "smaller than min of 16"),
        ({"frames": 0}, "frames", "smaller than min of 1"),
        ({"steps": 0}, "steps", "smaller than min"),
        ({"cfg": 1e9}, "cfg", "bigger than max"),
        ({"seed": -1}, "seed", "smaller than min"),
        ({"seed": "abc"}, "seed", "Failed to convert"),
        ({"solver": "magic"}, "solver", "not in list"),
        ({"references.ref0": None}, "references.ref0", "missing: ref0"),
        ({"policy": ["2", 0]}, "policy", "type mismatch"),
    ],
)
def test_a_wrong_setting_is_one_error_on_its_input(comfyui, item, inputs, name, text):
    graph = sampling("VACE", item.prompt)
    given = graph[SAMPLE]["inputs"] | inputs
    graph[SAMPLE]["inputs"] = {name: value for name, value in given.items() if value is not None}
    found = problem(comfyui, graph, SAMPLE)
    assert found[0] == name and text in found[1]


def test_three_mistakes_are_three_errors(comfyui, item):
    graph = sampling("VACE", "")
    graph[LOAD]["inputs"] |= {"vae": "gone.safetensors"}
    graph[SAMPLE]["inputs"] |= {"height": 8}
    with pytest.raises(Refused) as refused:
        comfyui.queue(graph)
    comfyui.settle()
    found = {name: [given for given, _ in problems] for name, problems in refused.value.problems.items()}
    assert found == {LOAD: ["vae"], SAMPLE: ["height", "prompt"]}


@pytest.mark.parametrize(
    ("inputs", "text"),
    [
        ({"width": 90}, "width 90 is not a multiple of 16 from 16 to 4096; use 96"),
        ({"frames": 80}, "frames 80 is not 4n+1 from 1 to 1025; use 81"),
        ({"width": 832, "height": 480, "frames": 81}, "TinyWorld generates 80x48 with 9 frames"),
    ],
)
def test_a_size_that_the_model_does_not_generate_is_an_error_of_the_sampler(comfyui, item, inputs, text):
    result = comfyui.run(sampling("VACE", item.prompt, **inputs))
    assert result.failed_node == SAMPLE and result.error.startswith(text)
    assert result.error_type == "identity_grpo.UserError"  # the editor shows it before the message


@pytest.mark.parametrize(
    ("lora", "text"),
    [
        ("broken.safetensors", "broken.safetensors"),
        ("foreign.safetensors", "foreign.safetensors"),
        ("../../../etc/passwd", "models/loras"),
        ("no-such-run: latest", "run"),
    ],
)
def test_a_wrong_lora_is_one_error_on_its_input(comfyui, item, files, lora, text):
    graph = sampling("VACE", item.prompt, policy=[LORA, 0])
    graph[LORA] = {"class_type": "IdentityGRPOLoadLoRA", "inputs": {"policy": [LOAD, 0], "lora": lora, "strength": 1.0}}
    found = problem(comfyui, graph, LORA)
    assert found[0] == "lora" and text in found[1]


@pytest.fixture(scope="module")
def sheets(comfyui, item):
    """Prompt sets with mistakes."""
    folder = comfyui.base / "input"
    (folder / "rows.csv").write_text("ref_paths,prompt\nperson0.png,one person\nnobody.png,another\nperson1.png,\n")
    (comfyui.base / "outside.png").write_bytes((folder / "person0.png").read_bytes())
    (folder / "outside.csv").write_text("ref_paths,prompt\n../outside.png,one person\n")
    (folder / "columns.csv").write_text("pictures,words\nperson0.png,one person\n")


@pytest.fixture
def judged(comfyui, object_info, item, files, sheets):
    """`judged(kind, inputs)`: a graph with a node of that kind, its other inputs as the editor gives them."""

    def build(kind: str, inputs: dict) -> dict:
        graph = {name: sampling("VACE", item.prompt)[name] for name in (LOAD, "2")} | {
            "20": node("IdentityGRPOLoadReward"),
            "21": node("IdentityGRPOPromptSet"),
            JUDGED: node(
                f"IdentityGRPO{kind}",
                policy=[LOAD, 0],
                reward=["20", 0],
                prompt_set=["21", 0],
                **{"references.ref0": ["2", 0]},
            ),
        }
        if not object_info[graph[JUDGED]["class_type"]]["output_node"]:
            graph["31"] = node("PreviewAny", source=[JUDGED, 0])
        for name in ("20", "21", JUDGED):
            graph[name]["inputs"] = as_in_the_editor(object_info[graph[name]["class_type"]], graph[name]["inputs"])
        graph[JUDGED]["inputs"] |= inputs
        return graph

    return build


@pytest.mark.parametrize(
    ("kind", "name", "value", "texts"),
    [
        ("LoadReward", "checkpoint", "nothing", ["models/identity_reward"]),
        ("LoadReward", "dtype", "int8", ["not in list"]),
        ("PromptSet", "file", "rows.csv", ["row 3", "nobody.png", "row 4"]),
        ("PromptSet", "file", "columns.csv", ["ref_paths"]),
        ("PromptSet", "file", "outside.csv", ["outside of ComfyUI's input and output folders"]),
        ("PromptSet", "file", "../outside.csv", ["input folder"]),
        ("PromptSet", "item", 0, ["smaller than min"]),
        ("PromptItem", "prompt", "  ", ["the prompt is empty; describe the video"]),
        ("Train", "preset", "none", ["not in list"]),
        ("Train", "frames", 80, ["frames 80 is not 4n+1 from 1 to 1025; use 81"]),
        ("Train", "devices", "GPU 99", ["not in list"]),
        ("Train", "start_lora", "nothing.safetensors", ["not in list"]),
        ("Train", "iterations", 0, ["smaller than min"]),
        ("Train", "learning_rate", 0.0, ["smaller than min"]),
        ("Run", "queue_again", "always", ["not in list"]),
        ("Run", "run", "../../nothing", ["there is no run `../../nothing`"]),
        ("Run", "wait", "for ever", ["not in list"]),
        ("SaveLoRA", "lora", "broken.safetensors", ["broken.safetensors"]),
    ],
)
def test_a_wrong_value_of_any_node_is_one_error_on_its_input(comfyui, judged, kind, name, value, texts):
    found = problem(comfyui, judged(kind, {name: value}), JUDGED)
    assert found[0] == name and [text for text in texts if text not in found[1]] == []


def test_half_a_size_is_an_error_of_train(comfyui, judged):
    graph = judged("Train", {"width": 80})
    del graph[JUDGED]["inputs"]["height"]
    result = comfyui.run(graph)
    assert result.failed_node == JUDGED and result.error.startswith("give both width and height")


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


def test_a_row_that_is_not_there_is_an_error(comfyui):
    result = comfyui.run({"1": node("IdentityGRPOPromptSet", file="TinyWorld: training (built in)", item=9999)})
    assert result.failed_node == "1" and "choose 1 to" in result.error


def test_a_model_of_the_other_kind_is_an_error_that_names_its_sampler(comfyui, item):
    graph = sampling("VACE", item.prompt)
    graph[LOAD]["inputs"]["model"] = "TinyWorld Phantom (built in)"
    result = comfyui.run(graph)
    assert result.failed_node == SAMPLE and "use the Phantom Sampler" in result.error


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example:8188"}, 403),
        ({"Host": "evil.example:8188", "Origin": "http://evil.example:8188"}, 403),
        ({"Host": "localhost:8188"}, 200),
        ({}, 200),
    ],
)
def test_a_page_whose_name_resolves_to_this_computer_does_not_see_the_runs(comfyui, headers, status):
    connection = http.client.HTTPConnection("127.0.0.1", comfyui.port, timeout=60)
    connection.request("GET", RUNS, headers=headers)
    assert connection.getresponse().status == status
    connection.close()


def test_the_server_has_survived_all_of_this(comfyui, item):
    assert comfyui.run(sampling("VACE", item.prompt)).status == "success"
