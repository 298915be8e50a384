"""Graphs as `POST /prompt` takes them."""

from __future__ import annotations

WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
NOTES = {"Note", "MarkdownNote"}
MUTED, BYPASSED = 2, 4
LOAD, SAMPLE, SHOW = "1", "4", "5"
REWARD, TRAIN, RUN, LORA = "20", "24", "25", "10"


def to_api(workflow: dict, object_info: dict) -> dict:
    """The graph that the editor would queue for a workflow file.

    Handles notes, reroutes and muted nodes; a bypassed node is an error.
    """
    nodes = {node["id"]: node for node in workflow["nodes"]}
    links = {link[0]: (link[1], link[2]) for link in workflow["links"]}
    graph = {}
    for node in nodes.values():
        if node["type"] in NOTES or node["type"] == "Reroute" or node.get("mode") == MUTED:
            continue
        assert node.get("mode") != BYPASSED, f"node {node['id']} is bypassed"
        inputs = dict(zip(*widget_values(node, object_info[node["type"]]), strict=True))
        for slot in node.get("inputs", []):
            if slot.get("link") is not None:
                source = origin(nodes, links, slot["link"])
                if nodes[int(source[0])].get("mode") != MUTED:
                    inputs[slot["name"]] = source
        graph[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
    return graph


def origin(nodes: dict, links: dict, link: int) -> list:
    """[node id, slot] at the beginning of a link, through reroutes."""
    node, slot = links[link]
    if nodes[node]["type"] == "Reroute":
        return origin(nodes, links, nodes[node]["inputs"][0]["link"])
    return [str(node), slot]


def widget_names(info: dict) -> list[str | None]:
    """A node's widgets in the order in which the editor keeps their values; None for those that are not sent."""
    names: list[str | None] = []
    for kind in ("required", "optional"):
        for name in info["input_order"].get(kind, []):
            given = info["input"][kind][name]
            options = given[1] if len(given) > 1 else {}
            if (isinstance(given[0], list) or given[0] in WIDGETS) and not options.get("forceInput"):
                names.append(name)
                names += [None] if options.get("control_after_generate") else []
                names += [None] if options.get("image_upload") else []
    return names


def widget_values(node: dict, info: dict) -> tuple[list[str], list]:
    names, values = widget_names(info), node.get("widgets_values", [])
    assert len(values) >= len([n for n in names if n]), f"{node['type']} has widgets {names} and values {values}"
    kept = [(name, value) for name, value in zip(names, values, strict=False) if name]
    return [name for name, _ in kept], [value for _, value in kept]


def node(kind: str, **inputs) -> dict:
    return {"class_type": kind, "inputs": inputs}


def sampling(kind: str, prompt: str, **changes) -> dict:
    """Load, sample with the two people of `item`, show."""
    scales = {"cfg": 2.0} if kind == "VACE" else {"text_cfg": 3.0, "image_cfg": 2.0}
    return {
        LOAD: node(
            "IdentityGRPOLoadModel",
            model=f"TinyWorld {kind} (built in)",
            text_encoder="beside the model",
            vae="beside the model",
            dtype="auto",
            attention="sdpa",
            offload="when memory is needed",
        ),
        "2": node("LoadImage", image="person0.png"),
        "3": node("LoadImage", image="person1.png"),
        SAMPLE: node(
            f"IdentityGRPO{kind}Sampler",
            **{
                "policy": [LOAD, 0],
                "references.ref0": ["2", 0],
                "references.ref1": ["3", 0],
                "prompt": prompt,
                "negative": "",
                "width": 80,
                "height": 48,
                "frames": 9,
                "steps": 3,
                "shift": 3.0,
                "seed": 1,
                **scales,
                **changes,
            },
        ),
        SHOW: node("PreviewImage", images=[SAMPLE, 0]),
    }


def training(item, wait: str = "no", **changes) -> dict:
    """A short run: two training rows, one held-out row."""
    return {
        **{name: sampling("VACE", item.prompt)[name] for name in (LOAD, "2", "3")},
        REWARD: node(
            "IdentityGRPOLoadReward",
            checkpoint="TinyWorld (built in)",
            base_model="as the checkpoint says",
            dtype="auto",
            device="auto",
        ),
        "21": node(
            "IdentityGRPOPromptItem",
            **{"references.ref0": ["2", 0], "references.ref1": ["3", 0]},
            prompt=item.prompt,
            negative="",
        ),
        "22": node(
            "IdentityGRPOPromptItem",
            **{"references.ref0": ["3", 0]},
            prompt=item.prompt,
            negative="",
            prompt_set=["21", 0],
        ),
        "23": node("IdentityGRPOPromptItem", **{"references.ref0": ["2", 0]}, prompt=item.prompt, negative=""),
        TRAIN: node(
            "IdentityGRPOTrain",
            policy=[LOAD, 0],
            reward=[REWARD, 0],
            prompt_set=["22", 0],
            evaluation_set=["23", 0],
            **{
                "preset": "auto",
                "name": "from the graph",
                "iterations": 2,
                "learning_rate": 0.05,
                "groups_per_update": 2,
                "width": 0,
                "height": 0,
                "frames": 0,
                "evaluate_every": 0,
                "seed": 3,
                "devices": "auto",
                "start_lora": "none",
            }
            | changes,
        ),
        RUN: node("IdentityGRPORun", run="newest run", training_run=[TRAIN, 0], wait=wait),
    }


def following(item) -> dict:
    """An open graph that samples with the newest run's LoRA."""
    graph = sampling("VACE", item.prompt, policy=[LORA, 0])
    return graph | {LORA: node("IdentityGRPOLoadLoRA", policy=[LOAD, 0], lora="newest run: latest", strength=1.0)}
