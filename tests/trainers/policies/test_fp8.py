import pytest
import torch
from torch import nn
from torch.nn import Linear

from trainers.errors import UserError
from trainers.policies.fp8 import FP8, Fp8Linear, add_fp8, fast_products, quantise


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
