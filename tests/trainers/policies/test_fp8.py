import pytest
import torch
from torch import nn
from torch.nn import Linear

from trainers.errors import UserError
from trainers.policies import fp8
from trainers.policies.fp8 import FP8, Fp8Linear, StoredFp8Linear, add_fp8, fast_products, quantise
from trainers.policies.stored import StoredLinear


def test_rows_come_back_within_the_rounding_of_fp8():
    rows = torch.randn(5, 64) * torch.tensor([1e-3, 1.0, 30.0, 1e4, 1.0])[:, None]
    rows[4] = 0
    quantised, scale = quantise(rows)
    assert quantised.dtype == FP8 and scale.shape == (5, 1)
    error = (quantised.float() * scale - rows).norm(dim=1)
    assert (error <= 0.04 * rows.norm(dim=1)).all()


def test_while_it_is_not_asked_to_be_fast_it_is_the_layer_itself():
    linear, x = Linear(16, 32), torch.randn(3, 16)
    layer = Fp8Linear(linear)
    assert torch.equal(layer(x), linear(x))
    assert layer.state_dict().keys() == linear.state_dict().keys()


def test_layers_are_fast_within_the_block_only():
    model = nn.Sequential(Fp8Linear(Linear(16, 16)))
    with fast_products(model):
        assert model[0].fast
    assert not model[0].fast


def test_where_it_cannot_run_it_is_refused(policy):
    with pytest.raises(UserError, match=r"policy\.fp8"):
        add_fp8(policy.transformer)


def stored(scale: torch.Tensor | None, dtype: torch.dtype = FP8) -> StoredLinear:
    linear = Linear(64, 48).bfloat16()
    weight = (linear.weight.detach().float() / (1.0 if scale is None else scale)).to(dtype)
    layer = StoredLinear(linear, weight, scale)
    layer.load_state_dict(
        {"weight": weight, "bias": linear.bias} | ({} if scale is None else {"scale": scale}), assign=True
    )
    return layer


@pytest.mark.parametrize("scale", [None, torch.tensor(0.01), torch.linspace(0.005, 0.02, 48)[:, None]])
@pytest.mark.parametrize("unscaled", [False, True])
@torch.no_grad()
def test_stored_weights_are_multiplied_themselves(scale, unscaled):
    layer = StoredFp8Linear(stored(scale), unscaled)
    x = torch.randn(2, 5, 64).bfloat16()
    exact = layer(x).float()
    layer.fast = True
    error = (layer(x).float() - exact).norm() / exact.norm()
    assert 0 < error < 0.04  # the rounding of x to FP8
    assert layer.weight.dtype == FP8 and {n for n, _ in layer.named_buffers()} == {"scale", "fp8_scale"} - (
        {"scale"} if scale is None else set()
    )


def test_stored_layers_of_float8_alone_become_fast(policy, monkeypatch):
    monkeypatch.setattr(fp8, "require_fp8", lambda device, dtype: None)
    transformer, one = policy.transformer, torch.tensor(0.01)
    for name, layer in (("to_q", stored(one)), ("to_k", stored(one, torch.int8))):
        transformer.set_submodule(f"blocks.0.attn1.{name}", layer)
    add_fp8(transformer)
    attention = transformer.blocks[0].attn1
    assert type(attention.to_q) is StoredFp8Linear and type(attention.to_k) is StoredLinear
    with fast_products(transformer):
        assert attention.to_q.fast and attention.to_v.fast
    assert not attention.to_q.fast
