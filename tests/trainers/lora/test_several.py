"""Several LoRAs at once, with the keys that distilled LoRAs have, beside a trained one or in the weights."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from trainers.errors import UserError
from trainers.lora.adapter import LoRA
from trainers.lora.formats import read_lora
from trainers.lora.inject import add_lora, load_lora_into, lora_disabled, lora_parameters, remove_lora
from trainers.lora.several import combine, load_loras_into, merge_loras


@pytest.fixture
def distilled(transformer, tmp_path):
    """As the files of distilled LoRAs: factors of ranks of their own, biases, norms, and the image embedder's keys."""
    generator = torch.Generator().manual_seed(0)

    def randn(*shape):
        return torch.randn(*shape, generator=generator) * 0.3

    start = "diffusion_model.blocks"
    tensors = {
        f"{start}.0.self_attn.q.lora_down.weight": randn(4, 24),
        f"{start}.0.self_attn.q.lora_up.weight": randn(24, 4),
        f"{start}.0.self_attn.q.diff_b": randn(24),
        f"{start}.1.ffn.0.lora_down.weight": randn(3, 24),
        f"{start}.1.ffn.0.lora_up.weight": randn(32, 3),
        f"{start}.1.cross_attn.norm_k.diff": randn(24),
        f"{start}.2.norm3.diff": randn(24),
        f"{start}.2.norm3.diff_b": randn(24),
        f"{start}.0.cross_attn.k_img.lora_down.weight": randn(4, 24),
        f"{start}.0.cross_attn.k_img.lora_up.weight": randn(24, 4),
        "diffusion_model.img_emb.proj.0.diff": randn(24),
    }
    save_file(tensors, tmp_path / "distilled.safetensors")
    return read_lora(tmp_path / "distilled.safetensors")


@pytest.fixture
def ours(transformer):
    """Factors of rank 2 on a module that the distilled one changes too, and on another."""
    generator = torch.Generator().manual_seed(1)
    names = ["blocks.0.attn1.to_q", "vace_blocks.1.attn2.to_v"]
    modules = {n: (torch.randn(2, 24, generator=generator), torch.randn(24, 2, generator=generator)) for n in names}
    return LoRA(modules, dict.fromkeys(names, 1.0))


def by_hand(transformer, loras) -> None:
    """Add every change to the weights, in float64."""
    own = dict(transformer.named_parameters())
    with torch.no_grad():
        for lora, strength in loras:
            for name in lora.modules:
                own[f"{name}.weight"].add_(lora.merged_delta(name, strength).float())
            for name, difference in lora.differences.items():
                own[name].add_(strength * difference)


@pytest.mark.parametrize("apply", [load_loras_into, merge_loras])
def test_several_loras_act_as_the_sum_of_their_changes(transformer, velocity, distilled, ours, apply):
    both = [(distilled, 0.75), (ours, -0.5)]
    base = {name: value.clone() for name, value in transformer.state_dict().items()}
    by_hand(transformer, both)
    expected = velocity(transformer)
    transformer.load_state_dict(base)
    apply(transformer, both)
    torch.testing.assert_close(velocity(transformer), expected, atol=1e-5, rtol=1e-5)


def test_several_loras_are_removed_together(transformer, velocity, distilled, ours):
    before = velocity(transformer)
    load_loras_into(transformer, [(distilled, 1.0), (ours, 1.0)])
    assert not torch.equal(velocity(transformer), before)
    remove_lora(transformer)
    assert torch.equal(velocity(transformer), before)


def test_a_merged_lora_is_part_of_the_base_policy_of_one_that_is_trained_on_top(transformer, velocity, distilled, ours):
    merge_loras(transformer, [(distilled, 1.0)])
    merged = velocity(transformer)
    add_lora(transformer, 2, 2.0, seed=0)
    with torch.no_grad():
        for parameter in lora_parameters(transformer).values():
            parameter.fill_(0.1)
    trained = velocity(transformer)
    with lora_disabled(transformer):
        assert torch.equal(velocity(transformer), merged)
    assert not torch.allclose(trained, merged)


def test_weights_in_half_precision_are_rounded_once(transformer, distilled, ours):
    transformer.to(torch.bfloat16)
    name = "blocks.0.attn1.to_q"
    weight = transformer.get_submodule(name).weight.double()
    total = weight + distilled.merged_delta(name, 0.5) + ours.merged_delta(name, 2.0)
    merge_loras(transformer, [(distilled, 0.5), (ours, 2.0)])
    torch.testing.assert_close(transformer.get_submodule(name).weight, total.bfloat16(), atol=0, rtol=2**-8)


def test_the_rank_of_two_loras_on_a_module_is_the_sum(distilled, ours):
    both = combine([(distilled, 1.0), (ours, 1.0)])
    assert {name: both.rank(name) for name in both.modules} == {
        "blocks.0.attn1.to_q": 6,
        "blocks.1.ffn.net.0.proj": 3,
        "vace_blocks.1.attn2.to_v": 2,
    }


@pytest.mark.parametrize("apply", [load_loras_into, merge_loras])
def test_one_that_does_not_fit_is_refused_before_anything_changes(transformer, distilled, apply):
    before = {name: value.clone() for name, value in transformer.state_dict().items()}
    foreign = LoRA(distilled.modules, distilled.alpha, {"policy": "phantom"})
    with pytest.raises(UserError, match="trained for phantom"):
        apply(transformer, [(distilled, 1.0), (foreign, 1.0)])
    assert all(torch.equal(value, before[name]) for name, value in transformer.state_dict().items())
    load_lora_into(transformer, distilled)  # it has none yet


def test_the_one_that_does_not_fit_is_named(transformer, tmp_path):
    name = "diffusion_model.blocks.0.self_attn.q"
    for file, width, value in (("good", 24, 1.0), ("large", 5120, 1.0), ("broken", 24, float("nan"))):
        factors = {f"{name}.lora_down.weight": torch.ones(4, width), f"{name}.lora_up.weight": torch.ones(width, 4)}
        save_file({key: factor * value for key, factor in factors.items()}, tmp_path / f"{file}.safetensors")
    good, large = (read_lora(tmp_path / f"{file}.safetensors") for file in ("good", "large"))
    with pytest.raises(UserError, match=r"large\.safetensors: the LoRA's blocks\.0\.attn1\.to_q is 5120x5120"):
        load_loras_into(transformer, [(good, 1.0), (large, 1.0)])
    with pytest.raises(UserError, match=r"broken\.safetensors: the LoRA holds numbers that are not finite"):
        read_lora(tmp_path / "broken.safetensors")
