import pytest
import torch
from diffusers.models.transformers.transformer_wan import WanAttention, WanAttnProcessor

from trainers.policies.attention import CompiledAttention
from trainers.policies.compiling import compile_blocks, reason_against


def processors(policy):
    return {type(m.processor) for m in policy.transformer.modules() if isinstance(m, WanAttention)}


def test_on_a_cpu_nothing_is_compiled_and_the_reason_is_given(policy):
    assert "runs on cpu" in compile_blocks(policy.transformer, "auto")
    assert CompiledAttention not in processors(policy)


def test_never_means_never(policy):
    assert "policy.compile" in compile_blocks(policy.transformer, "never")


def test_a_small_policy_on_a_gpu_is_not_compiled(monkeypatch, policy):
    monkeypatch.setattr("trainers.policies.compiling.device_type", lambda transformer: "cuda")
    monkeypatch.setattr("trainers.policies.compiling.has_triton", lambda: True)
    monkeypatch.setattr("shutil.which", lambda name: name)
    assert "too small" in reason_against(policy.transformer)


def test_without_triton_nothing_is_compiled(monkeypatch, policy):
    monkeypatch.setattr("trainers.policies.compiling.device_type", lambda transformer: "cuda")
    monkeypatch.setattr("trainers.policies.compiling.has_triton", lambda: False)
    assert "Triton" in reason_against(policy.transformer)


def test_without_a_c_compiler_nothing_is_compiled(monkeypatch, policy):
    monkeypatch.setattr("trainers.policies.compiling.device_type", lambda transformer: "cuda")
    monkeypatch.setattr("trainers.policies.compiling.has_triton", lambda: True)
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert "install gcc" in reason_against(policy.transformer)


def test_asked_for_every_block_is_compiled_for_the_compilers_attention(policy):
    assert compile_blocks(policy.transformer, "always") == ""
    assert processors(policy) == {CompiledAttention}
    assert all(block._compiled_call_impl is not None for block in policy.transformer.blocks)


@pytest.mark.parametrize("cross", [False, True])
def test_the_compilers_attention_has_the_numbers_of_diffusers(cross):
    torch.manual_seed(0)
    attention = WanAttention(24, heads=2, dim_head=12, is_cross_attention=cross, processor=WanAttnProcessor())
    hidden, text = torch.randn(2, 6, 24), torch.randn(2, 5, 24) if cross else None
    rotary = None if cross else (torch.randn(1, 6, 1, 12), torch.randn(1, 6, 1, 12))
    expected = attention(hidden, text, None, rotary)
    attention.set_processor(CompiledAttention())
    assert torch.equal(attention(hidden, text, None, rotary), expected)
