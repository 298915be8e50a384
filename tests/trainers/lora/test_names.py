import json
from pathlib import Path

import pytest

from trainers.lora.names import AROUND, IN_BLOCK, find_module, to_diffusers, to_original

KEY_MAP = json.loads((Path(__file__).parents[2] / "golden" / "vace" / "key_map.json").read_text())


@pytest.mark.parametrize("layer", [0, 9, 10, 39])
def test_every_name_of_the_network_goes_both_ways_at_any_depth(layer):
    for original, diffusers in KEY_MAP.items():
        original, diffusers = (n.replace("blocks.1.", f"blocks.{layer}.") for n in (original, diffusers))
        assert to_diffusers(original) == diffusers
        assert to_original(diffusers) == original


def test_a_name_in_its_own_language_stays():
    for original, diffusers in KEY_MAP.items():
        assert to_diffusers(diffusers) == diffusers
        assert to_original(original) == original


def test_the_list_of_names_is_that_of_the_network():
    parts = {name.rpartition(".")[0] if name.endswith((".weight", ".bias")) else name for name in KEY_MAP}
    in_block = {part.split(".", 2)[2] for part in parts if "blocks." in part}
    around = {part for part in parts if "blocks." not in part}
    # A text-to-video network lacks the image-to-video part of the list.
    assert {name for name in IN_BLOCK if "_img" not in name} == in_block
    assert {name for name in AROUND if not name.startswith("img_emb")} == around


@pytest.mark.parametrize("prefix", ["blocks.7.", "vace_blocks.12.", ""])
def test_underscores_and_dots_mean_the_same_module(prefix):
    for name in IN_BLOCK if prefix else AROUND:
        diffusers = to_diffusers(prefix + name)
        for spelling in (prefix + name, diffusers):
            assert find_module(spelling) == diffusers
            assert find_module(spelling.replace(".", "_")) == diffusers


@pytest.mark.parametrize(
    "name",
    ["blocks.0.self_attn2.q", "blocks.q", "blocks.0", "double_blocks.0.self_attn.q", "blocks.99999.ffn.0", "", "q"],
)
def test_a_name_that_wan_does_not_have_is_not_found(name):
    assert find_module(name) is None
