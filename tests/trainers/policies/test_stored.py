"""8-bit weights that stay as their file has them give the numbers of the converted ones, in half the memory."""

from __future__ import annotations

from itertools import chain

import pytest
import torch
from safetensors.torch import save_file

from trainers.config import make_config
from trainers.errors import UserError
from trainers.lora.formats import LoRA
from trainers.lora.inject import add_lora, check_fits, lora_parameters
from trainers.memory.blocks import BlockSwap
from trainers.memory.plan import require_sharding
from trainers.policies.blocks import running_blocks
from trainers.policies.compiling import reason_against
from trainers.policies.stored import StoredLinear
from trainers.policies.transformer_file import describe_transformer, load_transformer

from ..modelfiles.synthetic import int8, make_transformer, matrices, scaled_fp8, transformer_weights

FORMS = {
    "fp8 without scales": lambda weights: (
        weights | {name: weights[name].to(torch.float8_e4m3fn) for name in matrices(weights)}
    ),
    "fp8": scaled_fp8,
    "fp8 per row": lambda weights: scaled_fp8(weights, per_row=True),
    "int8": int8,
}


@pytest.fixture(scope="module", params=["vace", "phantom"])
def weights(request):
    return transformer_weights(make_transformer(request.param))


@pytest.fixture
def path(weights, request, tmp_path):
    file = tmp_path / "weights.safetensors"
    save_file(FORMS[getattr(request, "param", "fp8")](weights), file)
    return file


@pytest.fixture
def both(path):
    """The transformer with converted weights, and with its own as they are stored."""
    return [load_transformer(path, torch.bfloat16, stored=stored) for stored in (False, True)]


def velocity(model):
    generator = torch.Generator().manual_seed(1)

    def random(*shape):
        return torch.randn(shape, generator=generator).bfloat16()

    text = random(1, 5, model.config.text_dim)
    control = {"control_hidden_states": random(1, 96, 2, 4, 6)} if hasattr(model, "vace_blocks") else {}
    return model(random(1, 16, 2, 4, 6), torch.tensor([500]), text, **control, return_dict=False)[0]


def gradients(model):
    add_lora(model, rank=4, alpha=4, seed=0)
    for name, factor in lora_parameters(model).items():
        if "lora_B" in name:
            factor.data.normal_(generator=torch.Generator().manual_seed(len(name)))
    velocity(model).float().square().sum().backward()
    return {name: factor.grad for name, factor in lora_parameters(model).items()}


@pytest.mark.parametrize("path", FORMS, indirect=True)
@torch.no_grad()
def test_the_velocity_is_the_same_to_the_last_bit(both):
    assert torch.equal(velocity(both[0]), velocity(both[1]))


@pytest.mark.parametrize("path", ["fp8", "int8"], indirect=True)
def test_so_are_the_gradients_of_a_lora(both):
    converted, stored = map(gradients, both)
    assert converted.keys() == stored.keys()
    assert all(torch.equal(converted[name], stored[name]) and converted[name].any() for name in converted)


def test_the_blocks_take_a_byte_for_each_weight(both, path, weights):
    matrices_ = sum(weights[name].numel() for name in matrices(weights))
    converted, stored = (sum(t.nbytes for t in chain(m.parameters(), m.buffers())) for m in both)
    assert converted - stored == pytest.approx(matrices_, rel=0.01)
    assert describe_transformer(path).stored == matrices_


def test_no_converted_weight_waits_for_the_backward_pass(both):
    kept = set()

    def pack(tensor):
        kept.add((tuple(tensor.shape), tensor.dtype))
        return tensor

    model = both[1]
    add_lora(model, rank=4, alpha=4, seed=0)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        velocity(model)
    shapes = {tuple(m.weight.shape) for m in model.modules() if isinstance(m, StoredLinear)}
    assert shapes and not {shape for shape, dtype in kept if dtype == torch.bfloat16} & shapes


@torch.no_grad()
def test_swapped_blocks_keep_them_so(both):
    expected, model = velocity(both[0]), both[1]
    BlockSwap(running_blocks(model), torch.device("cpu"))
    assert torch.equal(velocity(model), expected)


def test_weights_that_are_not_8_bit_are_converted(weights, tmp_path):
    save_file(weights, tmp_path / "plain.safetensors")
    model = load_transformer(tmp_path / "plain.safetensors", torch.bfloat16, stored=True)
    assert not any(isinstance(module, StoredLinear) for module in model.modules())
    assert {p.dtype for p in model.blocks[0].attn1.parameters()} == {torch.bfloat16}


def test_a_damaged_weight_is_named(weights, tmp_path):
    broken = dict(scaled_fp8(weights))
    name = "blocks.1.ffn.0.weight"
    broken[name] = torch.full_like(broken[name].float(), float("nan")).to(torch.float8_e4m3fn)
    save_file(broken, tmp_path / "broken.safetensors")
    with pytest.raises(UserError, match=r"blocks\.1\.ffn\.0\.weight holds numbers that are not finite"):
        load_transformer(tmp_path / "broken.safetensors", stored=True)


@pytest.mark.parametrize(
    "path, capability, compiled",
    [("fp8", (8, 6), False), ("fp8", (8, 9), True), ("int8", (8, 6), True)],
    indirect=["path"],
)
def test_float8_is_not_compiled_where_triton_lacks_it(both, monkeypatch, capability, compiled):
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: capability)
    monkeypatch.setattr("trainers.policies.compiling.has_triton", lambda: True)
    assert ("FP8 as stored" not in reason_against(both[1], torch.device("cuda"))) == compiled


def test_a_lora_that_changes_whole_weights_is_refused(both):
    difference = torch.zeros_like(both[0].blocks[0].ffn.net[2].weight)
    lora = LoRA({}, {}, {}, {"blocks.0.ffn.net.2.weight": difference})
    check_fits(both[0], lora)
    with pytest.raises(UserError, match="`weights` converted"):
        check_fits(both[1], lora)


def test_frozen_loras_need_converted_weights():
    with pytest.raises(UserError, match="stored` cannot be used with loras"):
        make_config("fast", {"policy": {"weights": "stored", "loras": ["a.safetensors"]}})


def test_sharding_is_refused():
    with pytest.raises(UserError, match=r"policy\.weights `stored`"):
        require_sharding(make_config("fast", {"policy": {"weights": "stored"}}), 2)
