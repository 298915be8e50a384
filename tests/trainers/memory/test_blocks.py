"""Block swap computes what the resident transformer computes, without gradient and with it."""

from __future__ import annotations

import pytest
import torch
from torch.nn import Linear

from trainers.lora.inject import add_lora, lora_disabled, lora_parameters
from trainers.memory.blocks import BlockSwap
from trainers.memory.placement import move_rest
from trainers.tinyworld.models import build_phantom, build_text_encoder, build_vace

CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=["cpu", "cuda"])
def device(request) -> torch.device:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("there is no GPU")
    return torch.device(request.param)


@pytest.fixture(scope="module", params=["vace", "phantom"])
def models(request, device):
    """Twice the same transformer with a LoRA that changes something; the blocks of the second are swapped."""
    pair = []
    for _ in range(2):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            transformer = (build_vace if request.param == "vace" else build_phantom)().requires_grad_(False).eval()
        add_lora(transformer, rank=2, alpha=2, seed=0)
        for name, parameter in lora_parameters(transformer).items():
            if "lora_B" in name:
                parameter.data.normal_(generator=torch.Generator().manual_seed(len(name)))
        transformer.enable_gradient_checkpointing()
        pair.append(transformer)
    blocks = [*getattr(pair[1], "vace_blocks", ()), *pair[1].blocks]
    swap = BlockSwap(blocks, device)
    move_rest(pair[1], blocks, device)
    return pair[0].to(device), pair[1], blocks, swap


def velocity(transformer, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    given = {
        "hidden_states": torch.randn(1, 16, 2, 4, 4, generator=generator),
        "timestep": torch.tensor([500.0]),
        "encoder_hidden_states": torch.randn(1, 6, 64, generator=generator),
    }
    if hasattr(transformer, "vace_blocks"):
        given["control_hidden_states"] = torch.randn(1, 96, 2, 4, 4, generator=generator)
    device = transformer.proj_out.weight.device
    return transformer(**{name: tensor.to(device) for name, tensor in given.items()}, return_dict=False)[0]


def gradients(transformer) -> dict[str, torch.Tensor]:
    """Of a loss of two passes, the second without the LoRA and without gradient, as an update with the KL."""
    now = velocity(transformer)
    with torch.no_grad(), lora_disabled(transformer):
        base = velocity(transformer)
    (now - base).square().sum().backward()
    found = {name: p.grad.clone() for name, p in lora_parameters(transformer).items()}
    for parameter in lora_parameters(transformer).values():
        parameter.grad = None
    return found


def test_passes_without_gradient_are_equal_to_the_bit(models):
    resident, swapped, _, _ = models
    with torch.no_grad():
        for seed in range(2):
            assert torch.equal(velocity(resident, seed), velocity(swapped, seed))


def test_gradients_are_equal_step_after_step(models):
    resident, swapped, _, _ = models
    for _ in range(2):
        ours, theirs = gradients(swapped), gradients(resident)
        for name in theirs:
            # A GPU adds up gradients in an order of its own.
            close = {} if theirs[name].is_cuda else {"rtol": 0, "atol": 0}
            torch.testing.assert_close(ours[name], theirs[name], **close)
        assert any(gradient.any() for gradient in theirs.values())


def test_at_most_two_blocks_are_on_the_device(models):
    _, swapped, blocks, swap = models
    gradients(swapped)
    slots = [(slot.data_ptr(), slot.data_ptr() + slot.nbytes) for slot in swap._slots]
    most = []

    def count(*_) -> None:
        frozen = [[p for p in block.parameters() if not p.requires_grad] for block in blocks]
        inside = [all(any(a <= p.data_ptr() < b for a, b in slots) for p in own) for own in frozen]
        most.append(sum(inside))

    hooks = [block.register_forward_hook(count) for block in blocks]
    gradients(swapped)
    for hook in hooks:
        hook.remove()
    assert set(most) == {2}


def test_the_slots_hold_one_block_each_so_a_wrong_one_would_show(models):
    """Spoiling the block that waits in host memory changes the result: it is really copied from there."""
    resident, swapped, _, swap = models
    kept = swap._weights[2].buffer.clone()
    with torch.no_grad():
        before = velocity(swapped)
        swap._weights[2].buffer.zero_()
        assert not torch.equal(velocity(swapped), before)
        swap._weights[2].buffer.copy_(kept)
        assert torch.equal(velocity(swapped), velocity(resident))


def test_a_compiled_block_is_called_with_its_weights_in_place():
    block, calls = Linear(2, 2).requires_grad_(False), []
    home = None

    def compiled(x):
        calls.append(block.weight.data_ptr() != home)
        return block._call_impl(x)

    block._compiled_call_impl = compiled  # as nn.Module.compile sets it
    swap = BlockSwap([block], CPU)
    home = swap._weights[0].buffer.data_ptr()
    block(torch.ones(1, 2))
    assert calls == [True]


def test_emptied_slots_leave_the_weights_that_were_changed_meanwhile(models):
    """As a LoRA with differences of weights changes them between two videos."""
    resident, swapped, blocks, swap = models
    bias = blocks[1].ffn.net[2].bias
    with torch.no_grad():
        velocity(swapped)
        swap.empty()
        bias.add_(1)
        changed = velocity(swapped)
        swap.empty()
        bias.sub_(1)
        expected = velocity(resident)
        assert not torch.equal(changed, expected)
        torch.testing.assert_close(velocity(swapped), expected)


def test_blocks_compute_where_they_are_once_the_swap_is_removed():
    block = Linear(2, 2).requires_grad_(False)
    expected = block(torch.ones(1, 2))
    swap = BlockSwap([block], CPU)
    block(torch.ones(1, 2))
    swap.remove()
    assert block._compiled_call_impl is None and block.weight.data_ptr() == swap._weights[0].buffer.data_ptr()
    assert torch.equal(block(torch.ones(1, 2)), expected)


def test_a_text_encoder_with_swapped_blocks_gives_the_same_embeddings():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = build_text_encoder(20).requires_grad_(False).eval()
    ids, mask = torch.arange(12).view(2, 6), torch.ones(2, 6, dtype=torch.int64)
    with torch.no_grad():
        expected = encoder(ids, attention_mask=mask).last_hidden_state
        blocks = list(encoder.encoder.block)
        BlockSwap(blocks, CPU)
        move_rest(encoder, blocks, CPU)
        for _ in range(2):
            assert torch.equal(encoder(ids, attention_mask=mask).last_hidden_state, expected)
