"""Our files by the rules with which ComfyUI-WanVideoWrapper (nodes_model_loading.py) finds a LoRA's layers.

It renames what begins with RENAMED or contains REPLACED, then looks for `diffusion_model.<name>` of each weight of its
own model, which has the original Wan's names. That of the golden files stands for it.
"""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from trainers.lora.formats import LoRA, write_native
from trainers.lora.names import find_module, to_diffusers

GOLDEN = Path(__file__).parents[2] / "golden"
RENAMED = ("lycoris_blocks_", "transformer.", "pipe.dit.", "blocks.", "vace_blocks.", "lora_unet__")
REPLACED = (".default.", ".diff_m")
PARTS = (".lora_down.weight", ".lora_up.weight", ".alpha")


def layers(file: Path) -> dict[str, tuple[int, ...]]:
    """The shapes of all matrices by the original's names, without `.weight`."""
    return {
        name.removesuffix(".weight"): tuple(weight.shape)
        for name, weight in load_file(file).items()
        if name.endswith(".weight") and weight.ndim == 2
    }


@pytest.mark.parametrize("model", ["vace/vace_tiny", "phantom/phantom_tiny"])
def test_every_layer_is_found_under_its_own_name_with_its_alpha(tmp_path, model):
    known = layers(GOLDEN / f"{model}.safetensors")
    adapted = [name for name in known if find_module(to_diffusers(name)) is not None]
    assert len(adapted) > 20
    modules = {to_diffusers(name): (torch.zeros(4, known[name][1]), torch.zeros(known[name][0], 4)) for name in adapted}
    write_native(LoRA(modules, dict.fromkeys(modules, 8.0)), tmp_path / "a.safetensors", {"run": "a"})
    keys = set(load_file(tmp_path / "a.safetensors"))
    assert keys == {f"diffusion_model.{name}{part}" for name in adapted for part in PARTS}
    assert not [key for key in keys if key.startswith(RENAMED) or any(part in key for part in REPLACED)]
