import json

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file
from torch.nn import Linear

from trainers.errors import UserError
from trainers.lora.formats import LoRA, read_lora, write_peft
from trainers.lora.inject import add_lora, load_lora_into, lora_disabled, lora_parameters, remove_lora, to_lora


def shake(transformer, seed=3):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in lora_parameters(transformer).values():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))


def test_every_attention_projection_of_both_stacks_is_adapted_and_nothing_else(transformer):
    add_lora(transformer, 4, 8.0, seed=0)
    modules = {name.rsplit(".", 2)[0] for name in lora_parameters(transformer)}
    expected = {
        f"{stack}.{n}.attn{a}.{part}"
        for stack, count in (("blocks", 3), ("vace_blocks", 2))
        for n in range(count)
        for a in (1, 2)
        for part in ("to_q", "to_k", "to_v", "to_out.0")
    }
    assert modules == expected
    trained = [p for p in transformer.parameters() if p.requires_grad]
    assert {id(p) for p in trained} == {id(p) for p in lora_parameters(transformer).values()}


def test_a_fresh_lora_changes_nothing(transformer, velocity):
    before = velocity(transformer)
    add_lora(transformer, 4, 8.0, seed=0)
    assert torch.equal(velocity(transformer), before)


def test_the_seed_decides_the_start_and_the_global_generator_is_left_alone(transformer):
    state = torch.get_rng_state()
    add_lora(transformer, 4, 8.0, seed=5)
    assert torch.equal(torch.get_rng_state(), state)
    first = to_lora(transformer)
    remove_lora(transformer)
    torch.manual_seed(99)
    add_lora(transformer, 4, 8.0, seed=5)
    second = to_lora(transformer)
    remove_lora(transformer)
    add_lora(transformer, 4, 8.0, seed=6)
    third = to_lora(transformer)
    for name in first.modules:
        assert torch.equal(first.modules[name][0], second.modules[name][0])
        assert not torch.equal(first.modules[name][0], third.modules[name][0])


def test_a_starts_normal_with_deviation_one_over_rank_and_b_zero(transformer):
    add_lora(transformer, 16, 16.0, seed=0)
    lora = to_lora(transformer)
    downs = torch.cat([a.flatten() for a, _ in lora.modules.values()])
    assert downs.std().item() == pytest.approx(1 / 16, rel=0.03)
    assert downs.mean().abs() < 2e-3
    assert all(not b.any() for _, b in lora.modules.values())


def test_defect_17_the_lora_is_float32_on_a_half_precision_base(transformer, velocity):
    transformer.to(torch.bfloat16)
    before = velocity(transformer)
    add_lora(transformer, 4, 8.0, seed=0)
    assert {p.dtype for p in lora_parameters(transformer).values()} == {torch.float32}
    assert torch.equal(velocity(transformer), before)
    shake(transformer)
    found = velocity(transformer)
    assert not torch.equal(found, before)
    found.square().mean().backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.any() for p in lora_parameters(transformer).values())


def test_the_reference_policy_is_the_bare_model(transformer, velocity):
    before = velocity(transformer)
    add_lora(transformer, 4, 8.0, seed=0)
    shake(transformer)
    tuned = velocity(transformer)
    with lora_disabled(transformer):
        assert torch.equal(velocity(transformer), before)
    assert torch.equal(velocity(transformer), tuned)
    assert not torch.allclose(tuned, before)


def test_defect_4_the_reference_pass_leaves_an_open_graph_trainable(transformer, velocity):
    add_lora(transformer, 4, 8.0, seed=0)
    shake(transformer)
    loss = velocity(transformer).square().mean()
    with torch.no_grad(), lora_disabled(transformer):
        velocity(transformer)
    assert all(p.requires_grad for p in lora_parameters(transformer).values())
    loss.backward()
    assert all(p.grad is not None and p.grad.any() for p in lora_parameters(transformer).values())


def test_the_lora_is_on_again_after_an_error(transformer, velocity):
    add_lora(transformer, 4, 8.0, seed=0)
    shake(transformer)
    tuned = velocity(transformer)
    with pytest.raises(RuntimeError), lora_disabled(transformer):
        raise RuntimeError
    assert torch.equal(velocity(transformer), tuned)


def test_what_is_read_out_acts_the_same_in_a_bare_model(transformer, velocity):
    add_lora(transformer, 4, 10.0, seed=0)
    shake(transformer)
    tuned, lora = velocity(transformer), to_lora(transformer)
    remove_lora(transformer)
    load_lora_into(transformer, lora)
    torch.testing.assert_close(velocity(transformer), tuned, atol=1e-6, rtol=0)
    assert not any(p.requires_grad for p in lora_parameters(transformer).values())
    assert to_lora(transformer).alpha == lora.alpha


@pytest.mark.parametrize("strength", [0.0, 0.5, -1.0])
def test_strength_scales_the_merged_change(transformer, velocity, strength):
    add_lora(transformer, 4, 10.0, seed=0)
    shake(transformer)
    lora = to_lora(transformer)
    remove_lora(transformer)
    load_lora_into(transformer, lora, strength)
    found = velocity(transformer)
    remove_lora(transformer)
    with torch.no_grad():
        for name in lora.modules:
            transformer.get_submodule(name).weight += lora.merged_delta(name, strength)
        torch.testing.assert_close(found, velocity(transformer), atol=2e-5, rtol=1e-4)


def test_a_file_whose_alpha_is_zero_changes_nothing(transformer, velocity):
    plain, lora = velocity(transformer), lora_for("blocks.0.attn1.to_q")
    load_lora_into(transformer, LoRA(lora.modules, dict.fromkeys(lora.modules, 0.0)))
    assert torch.equal(velocity(transformer), plain)


def test_a_strength_that_is_no_number_is_refused(transformer):
    with pytest.raises(UserError, match="strength nan"):
        load_lora_into(transformer, lora_for("blocks.0.attn1.to_q"), float("nan"))


def test_taking_the_lora_out_restores_the_model(transformer, velocity):
    names, before = list(transformer.state_dict()), velocity(transformer)
    add_lora(transformer, 4, 8.0, seed=0)
    shake(transformer)
    remove_lora(transformer)
    assert list(transformer.state_dict()) == names
    assert torch.equal(velocity(transformer), before)


def test_training_starts_from_a_file_whatever_its_alpha(transformer, velocity):
    add_lora(transformer, 4, 10.0, seed=0)
    shake(transformer)
    tuned, lora = velocity(transformer), to_lora(transformer)
    remove_lora(transformer)
    add_lora(transformer, 4, 32.0, seed=1)
    load_lora_into(transformer, lora)
    torch.testing.assert_close(velocity(transformer), tuned, atol=1e-5, rtol=0)
    assert set(to_lora(transformer).alpha.values()) == {32.0}
    assert all(p.requires_grad for p in lora_parameters(transformer).values())


def test_ranks_and_alphas_may_differ_between_modules(transformer, velocity):
    generator = torch.Generator().manual_seed(0)
    sizes = {"blocks.0.attn1.to_q": (1, 3.0), "blocks.0.attn1.to_out.0": (5, 2.0), "vace_blocks.1.attn2.to_v": (2, 8.0)}
    modules = {
        n: (torch.randn(r, 24, generator=generator), torch.randn(24, r, generator=generator))
        for n, (r, _) in sizes.items()
    }
    lora = LoRA(modules, {n: a for n, (_, a) in sizes.items()})
    load_lora_into(transformer, lora)
    found = velocity(transformer)
    assert to_lora(transformer).alpha == lora.alpha
    remove_lora(transformer)
    with torch.no_grad():
        for name in lora.modules:
            transformer.get_submodule(name).weight += lora.merged_delta(name)
        torch.testing.assert_close(found, velocity(transformer), atol=2e-5, rtol=1e-4)


def test_peft_reads_our_folder_with_the_same_effect(transformer, velocity, tmp_path):
    from peft import inject_adapter_in_model, set_peft_model_state_dict

    add_lora(transformer, 4, 10.0, seed=0)
    shake(transformer)
    tuned = velocity(transformer)
    write_peft(to_lora(transformer), tmp_path / "out")
    remove_lora(transformer)
    config = LoraConfig.from_pretrained(str(tmp_path / "out"))
    inject_adapter_in_model(config, transformer)
    state = {
        k.removeprefix("base_model.model."): v
        for k, v in load_file(tmp_path / "out" / "adapter_model.safetensors").items()
    }
    set_peft_model_state_dict(transformer, state)
    torch.testing.assert_close(velocity(transformer), tuned, atol=1e-6, rtol=0)
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["lora_alpha"] == 10.0
    assert read_lora(tmp_path / "out").rank("blocks.0.attn1.to_q") == 4


def lora_for(name, rows=24, columns=24, rank=4):
    return LoRA({name: (torch.ones(rank, columns), torch.ones(rows, rank))}, {name: 4.0})


@pytest.mark.parametrize(
    ("lora", "reason"),
    [
        (lora_for("blocks.7.attn1.to_q"), r"blocks\.7\.attn1\.to_q, which this model does not have"),
        (lora_for("blocks.0.attn1.to_q", rows=32), "model of another size"),
    ],
)
def test_a_lora_of_another_model_is_refused_before_anything_changes(transformer, velocity, lora, reason):
    before = velocity(transformer)
    with pytest.raises(UserError, match=reason):
        load_lora_into(transformer, lora)
    assert lora_parameters(transformer) == {}
    assert torch.equal(velocity(transformer), before)


@pytest.mark.parametrize(
    ("lora", "reason"),
    [
        (lora_for("blocks.0.attn1.to_q", rank=2), "set lora.rank to 2"),
        (lora_for("blocks.0.ffn.net.2", columns=32), "does not have adapted"),
    ],
)
def test_a_start_that_does_not_fit_the_training_is_refused(transformer, lora, reason):
    add_lora(transformer, 4, 8.0, seed=0)
    with pytest.raises(UserError, match=reason):
        load_lora_into(transformer, lora)


def test_a_second_lora_and_an_absent_one_are_refused(transformer):
    with pytest.raises(UserError, match="no LoRA to save"):
        to_lora(transformer)
    add_lora(transformer, 4, 8.0, seed=0)
    with pytest.raises(UserError, match="a LoRA already"):
        add_lora(transformer, 4, 8.0, seed=0)


def test_a_model_without_attention_projections_is_refused():
    with pytest.raises(UserError, match="no attention projections"):
        add_lora(torch.nn.Sequential(Linear(2, 2)), 4, 8.0, seed=0)
