import json
from pathlib import Path

import pytest

from trainers.lora.names import to_diffusers, to_original

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
