import pytest
import torch
from diffusers.models.transformers.transformer_wan import WanAttention, WanAttnProcessor

from trainers.errors import UserError
from trainers.lora.inject import add_lora, lora_parameters
from trainers.policies.attention import CompiledAttention
from trainers.policies.compiling import compile_blocks, reason_against

from ..modelfiles.synthetic import make_transformer

DEVICE = torch.device("cuda")


def processors(policy):
    return {type(m.processor) for m in policy.transformer.modules() if isinstance(m, WanAttention)}


def test_on_a_cpu_nothing_is_compiled_and_the_reason_is_given(policy):
    assert "runs on cpu" in compile_blocks(policy.transformer, "auto")
    assert CompiledAttention not in processors(policy)


def test_asked_for_on_a_cpu_it_is_refused(policy):
    with pytest.raises(UserError, match="wrong gradients; set policy.compile to `auto`"):
        compile_blocks(policy.transformer, "always")


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
    assert compile_blocks(policy.transformer, "always", torch.device("cuda")) == ""
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


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("recomputed", [False, True])
@pytest.mark.parametrize("kind", ["vace", "phantom"])
def test_compiled_blocks_have_the_gradients_of_uncompiled_ones(kind, recomputed):
    """At this size VACE's gradients by the compiler's CPU kernels are wrong by their whole size, its velocity right."""
    plain, compiled = (_gradients(kind, recomputed, choice) for choice in ("never", "always"))
    for name, gradient in plain.items():
        assert (compiled[name] - gradient).norm() < 1e-3 * gradient.norm(), name


def _gradients(kind: str, recomputed: bool, choice: str) -> dict[str, torch.Tensor]:
    transformer = make_transformer(kind)
    transformer.to(DEVICE)
    add_lora(transformer, rank=4, alpha=4, seed=0)
    for name, factor in lora_parameters(transformer).items():
        if "lora_B" in name:
            factor.data.normal_(generator=torch.Generator(DEVICE).manual_seed(len(name)))
    if recomputed:
        transformer.enable_gradient_checkpointing()
        transformer.train()
    compile_blocks(transformer, choice)
    generator = torch.Generator(DEVICE).manual_seed(1)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, device=DEVICE)

    text = random(1, 5, transformer.config.text_dim)
    control = {"control_hidden_states": random(1, 96, 2, 4, 6)} if kind == "vace" else {}
    time = torch.tensor([500], device=DEVICE)
    velocity = transformer(random(1, 16, 2, 4, 6), time, text, **control, return_dict=False)[0]
    velocity.square().sum().backward()
    return {name: factor.grad for name, factor in lora_parameters(transformer).items()}
