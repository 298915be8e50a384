"""What every node shows of itself: names, tooltips, defaults, help pages."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
DOCS = Path(__file__).parents[2] / "web" / "docs"
# Workflows depend on these: an id never changes.
IDS = [
    f"IdentityGRPO{name}"
    for name in (
        "LoadModel",
        "LoadLoRA",
        "ApplyLoRA",
        "VACESampler",
        "PhantomSampler",
        "SampleUntilRight",
        "VACEReferences",
        "LoadReward",
        "Score",
        "Compare",
        "LoadFaceNetworks",
        "CombineRewards",
        "FaceReport",
        "KeepBest",
        "Vote",
        "TrainReward",
        "CompareRewards",
        "PromptSet",
        "PromptItem",
        "MakePromptSet",
        "Train",
        "Run",
        "SaveLoRA",
    )
]


@pytest.fixture(params=IDS)
def found(request, schema):
    """A node's schema."""
    return schema(request.param)


def inputs_of(found) -> list:
    """All inputs, those of growing slots too."""
    return [*found.inputs, *(i.template.input for i in found.inputs if hasattr(i, "template"))]


def test_these_are_all_nodes(pack):
    assert sorted(pack.nodes) == sorted(IDS)


def test_it_is_found_by_name_category_and_aliases(found):
    assert found.display_name and found.search_aliases
    assert re.fullmatch(r"Identity-GRPO/[A-Za-z][A-Za-z ]+", found.category)


@pytest.mark.parametrize(
    ("typed", "nodes"),
    [
        ("person", ["VACESampler", "PhantomSampler", "VACEReferences", "Score", "Train", "FaceReport", "KeepBest"]),
        ("face", ["VACESampler", "PhantomSampler", "Score", "FaceReport", "KeepBest", "SampleUntilRight"]),
        ("identity", ["VACESampler", "LoadLoRA", "Score", "Compare", "Train"]),
        ("lora train", ["Train", "Run"]),
        ("grpo", ["Train", "Run", "LoadReward", "LoadLoRA", "PromptSet"]),
    ],
)
def test_the_search_finds_it_by_what_people_type(pack, typed, nodes):
    def texts(node: str) -> str:
        schema = pack.nodes[f"IdentityGRPO{node}"].GET_SCHEMA()
        return " | ".join([schema.display_name, *schema.search_aliases]).lower()

    assert [node for node in nodes if typed not in texts(node)] == []


def test_no_number_starts_at_zero_except_a_seed_and_weights(found):
    """A default that means "as the preset" is shown as the preset's value."""
    if found.node_id == "IdentityGRPOCombineRewards":
        return  # a reward of weight 0 is left out, which is what its tooltip says
    numbers = [i for i in found.inputs if i.get_io_type() in ("INT", "FLOAT") and i.id != "seed"]
    assert [i.id for i in numbers if not i.as_dict()["default"]] == []


def test_its_name_has_no_brackets(found):
    assert re.fullmatch(r"[A-Za-z ]+", found.display_name)


def test_its_check_names_one_widget_at_most(pack, found):
    """Core repeats the answer of `validate_inputs` for each widget that it names: one mistake would be several."""
    node = pack.nodes[found.node_id]
    named = inspect.signature(node.validate_inputs).parameters
    widgets = [i.id for i in found.inputs if i.id in named and i.get_io_type() in WIDGETS]
    assert len(widgets) <= 1, widgets


def test_its_description_is_a_sentence(found):
    assert len(found.description) > 20 and found.description.endswith(".")


def test_every_input_and_output_has_a_tooltip(found):
    assert [i.id for i in inputs_of(found) if not (i.tooltip or "").endswith(".")] == []
    assert [o.id for o in found.outputs if not (o.tooltip or "").endswith(".")] == []


def test_outputs_have_names(found):
    assert [o.id for o in found.outputs if re.fullmatch(r"_\d+_.*_", o.id)] == []
    assert all(o.display_name for o in found.outputs)


def test_every_widget_starts_with_a_value_that_can_be_queued(found):
    """A number without a default starts at 0, which its limits may not allow."""
    for given in found.inputs:
        options = given.as_dict()
        if given.get_io_type() in ("INT", "FLOAT"):
            assert options["min"] <= options["default"] <= options["max"], given.id
        # Files that are not there yet: a list may be empty.
        if given.get_io_type() == "COMBO" and options["options"]:
            assert options.get("default", options["options"][0]) in options["options"], given.id


def test_a_number_that_comfyui_randomizes_may_be_any_that_it_gives(found):
    randomized = [i for i in found.inputs if i.as_dict().get("control_after_generate")]
    assert [i.id for i in randomized if i.max != 2**64 - 1] == []


def test_object_info_is_made(pack, found):
    info = pack.nodes[found.node_id].GET_NODE_INFO_V1()
    assert info["name"] == found.node_id and len(info["output"]) == len(found.outputs)
    assert set(info["input_order"]) >= {"required"}


def test_its_help_page_names_every_input_and_output(found):
    page = (DOCS / f"{found.node_id}.md").read_text(encoding="utf-8")
    named = re.findall(r"`([^`]+)`|\*\*([^*]+)\*\*", page)
    words = {word for pair in named for word in pair if word}
    assert [i.id for i in found.inputs if not {i.id, i.display_name} & words] == []
    assert [o.id for o in found.outputs if o.id not in words and o.display_name not in words] == []


def test_pictures_of_its_help_page_are_there(found):
    page = (DOCS / f"{found.node_id}.md").read_text(encoding="utf-8")
    assert [p for p in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", page) if not (DOCS / p).is_file()] == []


def test_tooltips_and_the_help_page_agree_on_numbers(found):
    page = (DOCS / f"{found.node_id}.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.startswith("|")]
    for given in (*found.inputs, *found.outputs):
        row = next((row for row in rows if f"`{given.id}`" in row.split("|")[1]), "")
        shown, written = (
            set(re.findall(r"\d+(?:\.\d+)?", text.replace("x", " "))) for text in (given.tooltip or "", row)
        )
        assert not written or shown <= written, (given.id, shown - written)


def test_help_pages_have_a_node():
    assert {p.stem for p in DOCS.glob("IdentityGRPO*.md")} <= set(IDS)


@pytest.mark.parametrize("name", ["Train", "TrainReward", "MakePromptSet"])
def test_the_seed_of_a_training_is_no_other_one_after_each_queue(schema, name):
    """Another seed is another run."""
    (seed,) = (given for given in schema(f"IdentityGRPO{name}").inputs if given.id == "seed")
    assert seed.as_dict()["control_after_generate"] is False


def test_the_templates_that_help_pages_name_are_there():
    templates = {path.name.split(".")[0] for path in (DOCS.parents[1] / "workflows").glob("*.json")}
    pages = "".join(path.read_text(encoding="utf-8") for path in DOCS.glob("IdentityGRPO*.md"))
    named = set(re.findall(r"(?:template|workflow) \*([^*]+)\*", pages)) | set(re.findall(r"\*(\d\d_\w+)\*", pages))
    assert len(named) > 4 and sorted(named - templates) == []
