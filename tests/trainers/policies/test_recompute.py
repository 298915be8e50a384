import pytest
import torch
from torch import nn

from trainers.policies.recompute import Recompute


class Block(nn.Linear):
    """Counts how often it runs."""

    runs = 0

    def forward(self, x):
        self.runs += 1
        return super().forward(x).tanh()


def model(count=4):
    transformer = nn.Module()
    transformer.blocks = nn.ModuleList(Block(3, 3) for _ in range(count))
    return transformer


def run(transformer, share):
    run_block, x = Recompute(transformer, share), torch.ones(2, 3, requires_grad=True)
    hidden = x
    for block in transformer.blocks:
        hidden = run_block(block, hidden)
    hidden.sum().backward()
    return [block.runs for block in transformer.blocks], x.grad


@pytest.mark.parametrize(
    "share, runs",
    [(0.0, [1, 1, 1, 1]), (0.5, [1, 2, 1, 2]), (0.25, [1, 1, 1, 2]), (1.0, [2, 2, 2, 2]), ("auto", [1, 1, 1, 1])],
)
def test_the_share_of_the_blocks_is_recomputed_and_spread_evenly(share, runs):
    assert run(model(), share)[0] == runs


def test_recomputing_changes_no_gradient():
    transformer = model()
    assert torch.equal(run(transformer, 0.0)[1], run(transformer, 1.0)[1])


def test_on_a_gpu_as_many_blocks_keep_their_activations_as_its_memory_holds(monkeypatch):
    recompute = Recompute(model(), "auto")
    shape = (2, 3)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (300, 1000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 150)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 50)
    device = torch.device("cuda")
    assert recompute._fitting(device, shape) == 1, "nothing was measured yet: one block shows what it takes"
    recompute.bytes[shape] = 100
    # 300 free and 100 unused of what is reserved, less a tenth of the whole.
    assert recompute._fitting(device, shape) == 3
