"""Checks that two processes make together, each called in both of them by `small_run.Forge.call`."""

from __future__ import annotations

import torch
import torch.distributed as dist

from trainers.errors import Stopped
from trainers.grpo.lockstep import Lockstep
from trainers.lora.inject import add_lora, lora_disabled, lora_parameters
from trainers.memory.shards import shard_blocks
from trainers.policies.context import Context, split_tokens
from trainers.policies.cpu_blocks import use_cpu_blocks
from trainers.policies.patches import use_patch_products
from trainers.policies.recompute import Recompute
from trainers.tinyworld.models import build_phantom, build_vace

CPU = torch.device("cpu")


def make(kind: str, share: float = 0.5):
    """A transformer with a LoRA that changes something; the same in every call and process."""
    torch.manual_seed(0)
    transformer = (build_vace if kind == "vace" else build_phantom)().requires_grad_(False).eval()
    use_patch_products(transformer)
    use_cpu_blocks(transformer)
    add_lora(transformer, rank=2, alpha=2, seed=0)
    for name, parameter in lora_parameters(transformer).items():
        if "lora_B" in name:
            parameter.data.normal_(std=0.1, generator=torch.Generator().manual_seed(len(name)))
    transformer.enable_gradient_checkpointing(Recompute(transformer, share))
    return transformer


def blocks(transformer) -> list:
    return [*getattr(transformer, "vace_blocks", ()), *transformer.blocks]


def velocity(transformer, seed: int = 0) -> torch.Tensor:
    """Of two videos of 45 tokens each."""
    generator = torch.Generator().manual_seed(seed)
    given = {
        "hidden_states": torch.randn(2, 16, 3, 6, 10, generator=generator),
        "timestep": torch.tensor([500.0, 300.0]),
        "encoder_hidden_states": torch.randn(2, 6, 64, generator=generator),
    }
    if hasattr(transformer, "vace_blocks"):
        given["control_hidden_states"] = torch.randn(2, 96, 3, 6, 10, generator=generator)
    return transformer(**given, return_dict=False)[0]


def gradients(transformer) -> dict[str, torch.Tensor]:
    """Of a loss of two passes, the second without the LoRA and without gradient, as an update with the KL."""
    now = velocity(transformer)
    with torch.no_grad(), lora_disabled(transformer):
        base = velocity(transformer)
    (now - base).square().mean().backward()
    found = {name: p.grad.clone() for name, p in lora_parameters(transformer).items()}
    for parameter in lora_parameters(transformer).values():
        parameter.grad = None
    return found


def sharded_passes(kind: str) -> None:
    """The same numbers to the bit, with half of the blocks recomputed, while each process holds half of every block."""
    whole, sharded = make(kind), make(kind)
    shard_blocks(sharded, blocks(sharded), CPU)
    held = sum(p.to_local().numel() for block in blocks(sharded) for p in block.parameters() if not p.requires_grad)
    all_of_it = sum(p.numel() for block in blocks(whole) for p in block.parameters() if not p.requires_grad)
    assert abs(held - all_of_it / 2) < 0.01 * all_of_it
    with torch.no_grad():
        assert torch.equal(velocity(sharded), velocity(whole))
    for _ in range(2):
        ours, theirs = gradients(sharded), gradients(whole)
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def split_passes(kind: str) -> None:
    """Velocity and gradients of a video whose odd number of tokens two processes share."""
    whole, split = make(kind), make(kind)
    split_tokens(split, Context(dist.group.WORLD, dist.get_rank(), 2))
    with torch.no_grad():
        torch.testing.assert_close(velocity(split), velocity(whole), rtol=1e-5, atol=1e-5)
    ours, theirs = gradients(split), gradients(whole)
    for name, expected in theirs.items():
        own = ours[name].clone()
        dist.all_reduce(own)
        assert (own - expected).norm() <= 1e-5 * expected.norm(), name
    assert any((ours[name] - expected).norm() > 0.01 * expected.norm() for name, expected in theirs.items())


def unequal_passes(kind: str) -> None:
    """The second process has work, the first makes its passes with it; then one stops between two passes."""
    transformer = make(kind)
    shard_blocks(transformer, blocks(transformer), CPU)
    lockstep = Lockstep(transformer)
    lockstep.begin()
    if dist.get_rank() == 1:
        expected = gradients(make(kind))
        assert all(torch.equal(found, expected[name]) for name, found in gradients(transformer).items())
    lockstep.finish()
    assert not any(p.grad.any() for p in lora_parameters(transformer).values() if p.grad is not None)
    lockstep.begin()
    with torch.no_grad():
        velocity(transformer)
        try:
            if dist.get_rank() == 0:
                raise Stopped
            velocity(transformer)
        except Stopped:
            assert lockstep.leave()
        else:
            raise AssertionError("the other process has stopped")
        lockstep.begin()
        velocity(transformer)
    lockstep.finish()
