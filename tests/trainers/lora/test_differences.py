"""Full differences of a LoRA: applied as ComfyUI applies them, and taken back."""

from __future__ import annotations

import pytest
import torch

from trainers.errors import UserError
from trainers.lora.adapter import LoRA
from trainers.lora.formats import native_tensors, read_lora, write_diffusers, write_native, write_peft
from trainers.lora.inject import add_lora, load_lora_into, lora_disabled, remove_lora

NAMES = [
    "blocks.0.attn1.to_q.bias",
    "blocks.1.ffn.net.2.bias",
    "blocks.0.norm2.weight",
    "vace_blocks.0.scale_shift_table",
    "patch_embedding.weight",
]


@pytest.fixture
def lora(transformer):
    """Factors of one module, and differences of several parameters."""
    generator = torch.Generator().manual_seed(0)
    own = dict(transformer.named_parameters())
    differences = {n: torch.randn(own[n].shape, generator=generator) for n in NAMES}
    factors = torch.randn(2, 24, generator=generator), torch.randn(24, 2, generator=generator)
    return LoRA({"blocks.0.attn1.to_q": factors}, {"blocks.0.attn1.to_q": 2.0}, {}, differences)


def parameters(transformer):
    return {n.replace(".base.", "."): p.clone() for n, p in transformer.named_parameters() if "lora_" not in n}


@pytest.mark.parametrize("strength", [1.0, -0.5])
def test_a_parameter_has_strength_times_its_difference_added_until_the_lora_is_removed(transformer, lora, strength):
    before = parameters(transformer)
    load_lora_into(transformer, lora, strength)
    for name, value in parameters(transformer).items():
        expected = before[name] + strength * lora.differences[name] if name in lora.differences else before[name]
        torch.testing.assert_close(value, expected, atol=1e-6, rtol=0)
    remove_lora(transformer)
    assert all(torch.equal(value, before[name]) for name, value in parameters(transformer).items())


def test_the_velocity_is_that_of_the_changed_weights(transformer, lora, velocity):
    base = velocity(transformer)
    load_lora_into(transformer, lora)
    changed = velocity(transformer)
    with lora_disabled(transformer):
        assert torch.equal(velocity(transformer), base)
    assert torch.equal(velocity(transformer), changed) and not torch.allclose(changed, base)
    remove_lora(transformer)
    with torch.no_grad():
        for name, parameter in transformer.named_parameters():
            if name in lora.differences:
                parameter += lora.differences[name]
        transformer.blocks[0].attn1.to_q.weight += lora.merged_delta("blocks.0.attn1.to_q").float()
    torch.testing.assert_close(velocity(transformer), changed, atol=1e-5, rtol=0)


def test_a_lora_of_differences_alone_replaces_the_one_before(transformer, lora):
    before = parameters(transformer)
    alone = LoRA({}, {}, {}, lora.differences)
    load_lora_into(transformer, alone)
    load_lora_into(transformer, alone, 2.0)
    name = NAMES[0]
    torch.testing.assert_close(parameters(transformer)[name], before[name] + 2 * lora.differences[name])
    remove_lora(transformer)
    assert all(torch.equal(value, before[n]) for n, value in parameters(transformer).items())


def test_half_precision_is_restored_to_the_last_bit(transformer, lora):
    transformer.to(torch.bfloat16)
    before = parameters(transformer)
    load_lora_into(transformer, lora)
    remove_lora(transformer)
    assert all(torch.equal(value, before[n]) for n, value in parameters(transformer).items())


@pytest.mark.parametrize(
    ("differences", "reason"),
    [
        ({"blocks.9.norm2.weight": torch.ones(24)}, "changes blocks.9.norm2.weight, which this model does not have"),
        ({"blocks.0.norm2.weight": torch.ones(25)}, r"\(25,\), the model's \(24,\)"),
    ],
)
def test_a_difference_that_does_not_fit_is_refused_before_anything_changes(transformer, lora, differences, reason):
    before = parameters(transformer)
    with pytest.raises(UserError, match=reason):
        load_lora_into(transformer, LoRA(lora.modules, lora.alpha, {}, lora.differences | differences))
    assert all(torch.equal(value, before[n]) for n, value in parameters(transformer).items())


def test_training_does_not_start_from_differences(transformer, lora):
    add_lora(transformer, 2, 2.0, 0)
    with pytest.raises(UserError, match=r"without factors, which training cannot continue"):
        load_lora_into(transformer, LoRA(lora.modules, lora.alpha, {}, lora.differences))


def test_comfyuis_format_keeps_differences_and_the_others_refuse_them(lora, tmp_path):
    assert {"diffusion_model.blocks.0.norm3.diff", "diffusion_model.blocks.0.self_attn.q.diff_b"} <= native_tensors(
        lora
    ).keys()
    write_native(lora, tmp_path / "a.safetensors")
    again = read_lora(tmp_path / "a.safetensors")
    assert again.differences.keys() == lora.differences.keys()
    assert all(torch.equal(value, lora.differences[name]) for name, value in again.differences.items())
    for write in (write_peft, write_diffusers):
        with pytest.raises(UserError, match="write ComfyUI's format"):
            write(lora, tmp_path / "folder")
