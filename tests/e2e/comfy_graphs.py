"""Graphs as `POST /prompt` takes them."""

from __future__ import annotations

import copy

WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
NOTES = {"Note", "MarkdownNote"}
MUTED, BYPASSED = 2, 4
LOAD, SAMPLE, SHOW = "1", "4", "5"
REWARD, TRAIN, RUN, LORA = "20", "24", "25", "10"


def to_api(workflow: dict, object_info: dict) -> dict:
    """The graph that the editor would queue for a workflow file.

    Handles subgraphs, notes, reroutes and muted nodes; a bypassed node is an error.
    """
    workflow = flatten(workflow)
    nodes = {node["id"]: node for node in workflow["nodes"]}
    by_name = {str(name): node for name, node in nodes.items()}
    links = {link[0]: (link[1], link[2]) for link in workflow["links"]}
    graph = {}
    for node in nodes.values():
        if node["type"] in NOTES or node["type"] == "Reroute" or node.get("mode") == MUTED:
            continue
        assert node.get("mode") != BYPASSED, f"node {node['id']} is bypassed"
        inputs = dict(zip(*widget_values(node, object_info[node["type"]]), strict=True)) | node.get("given", {})
        for slot in node.get("inputs", []):
            if slot.get("link") is not None:
                source = origin(nodes, links, slot["link"])
                if by_name[source[0]].get("mode") != MUTED:
                    inputs[slot["name"]] = source
        graph[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
    return graph


def flatten(workflow: dict) -> dict:
    """The workflow with every subgraph in place of the node that shows it; ids of inner nodes are "outer:inner".

    A widget that the outer node shows for inner ones gives them its value.
    """
    definitions = {d["id"]: d for d in workflow.get("definitions", {}).get("subgraphs", [])}
    if not any(node["type"] in definitions for node in workflow["nodes"]):
        return workflow
    nodes = [node for node in workflow["nodes"] if node["type"] not in definitions]
    links = [list(link) for link in workflow["links"]]
    for outer in (node for node in workflow["nodes"] if node["type"] in definitions):
        inside(outer, definitions[outer["type"]], nodes, links)
    return flatten(workflow | {"nodes": nodes, "links": links})


def inside(outer: dict, definition: dict, nodes: list[dict], links: list[list]) -> None:
    """Put the nodes and links of a subgraph into `nodes` and `links`."""

    def name(number) -> str:
        return f"{outer['id']}:{number}"

    copies = {node["id"]: copy.deepcopy(node) | {"id": name(node["id"])} for node in definition["nodes"]}
    for node in copies.values():
        for slot in node.get("inputs", []):
            slot["link"] = name(slot["link"]) if slot.get("link") is not None else None
    values = iter(outer.get("widgets_values") or [])
    shown = [slot for slot in definition["inputs"] if slot_of(outer["inputs"], slot["name"]).get("widget")]
    values = {slot["name"]: value for slot, value in zip(shown, values, strict=False)}
    for link in definition["links"]:
        given = [name(link[key]) if key == "id" else link[key] for key in ("id", "origin_id", "origin_slot")]
        target = copies.get(link["target_id"])
        if target is None:  # an output of the subgraph
            for outside in links:
                if outside[1:3] == [outer["id"], link["target_slot"]]:
                    outside[1:3] = [copies[link["origin_id"]]["id"], link["origin_slot"]]
        elif link["origin_id"] not in copies:  # an input of the subgraph
            entry = definition["inputs"][link["origin_slot"]]["name"]
            outside = slot_of(outer["inputs"], entry).get("link")
            slot = target["inputs"][link["target_slot"]]
            slot["link"] = outside
            if outside is None and entry in values:
                target.setdefault("given", {})[slot["widget"]["name"]] = values[entry]
        else:
            links.append([given[0], copies[given[1]]["id"], given[2], target["id"], link["target_slot"], link["type"]])
    nodes += copies.values()


def slot_of(slots: list[dict], name: str) -> dict:
    return next((slot for slot in slots if slot["name"] == name), {})


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
