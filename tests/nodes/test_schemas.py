"""What every node tells the user before it is used."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "web" / "docs"
# Workflows depend on these: an id stays for ever.
IDS = [
    f"IdentityGRPO{name}"
    for name in (
        "LoadModel",
        "LoadLoRA",
        "ApplyLoRA",
        "VACESampler",
        "PhantomSampler",
        "VACEReferences",
        "LoadReward",
        "Score",
        "Compare",
        "PromptSet",
        "PromptItem",
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


def test_it_is_found_by_name_place_and_other_words(found):
    assert found.display_name and found.search_aliases
    assert re.fullmatch(r"Identity-GRPO/[A-Za-z][A-Za-z ]+", found.category)


def test_it_says_what_it_does(found):
    assert len(found.description) > 20 and found.description.endswith(".")


def test_every_input_and_output_has_a_tooltip(found):
    assert [i.id for i in inputs_of(found) if not (i.tooltip or "").endswith(".")] == []
    assert [o.id for o in found.outputs if not (o.tooltip or "").endswith(".")] == []


def test_outputs_have_names(found):
    assert [o.id for o in found.outputs if re.fullmatch(r"_\d+_.*_", o.id)] == []
    assert all(o.display_name for o in found.outputs)


def test_every_widget_starts_with_something_that_can_be_queued(found):
    """A number without a default starts at 0, which its limits may not allow."""
    for given in found.inputs:
        options = given.as_dict()
        if given.get_io_type() in ("INT", "FLOAT"):
            assert options["min"] <= options["default"] <= options["max"], given.id
        # Files that are not there yet: a list may be empty.
        if given.get_io_type() == "COMBO" and options["options"]:
            assert options.get("default", options["options"][0]) in options["options"], given.id


def test_a_number_that_comfyui_draws_may_be_any_that_it_draws(found):
    drawn = [i for i in found.inputs if i.as_dict().get("control_after_generate")]
    assert [i.id for i in drawn if i.max != 2**64 - 1] == []


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


def test_help_pages_have_a_node():
    assert {p.stem for p in DOCS.glob("IdentityGRPO*.md")} <= set(IDS)
