import pytest
import torch
from torch import nn

from trainers.grpo.ema import Ema


def parameters(value=1.0):
    return {"a": nn.Parameter(torch.full((2, 3), value)), "b": nn.Parameter(torch.full((4,), -value))}


def test_defect_15_moves_once_in_every_optimiser_steps():
    own = parameters(0.0)
    ema = Ema(own, decay=0.9, every=8)
    moved = []
    for step in range(1, 25):
        with torch.no_grad():
            own["a"].fill_(step)
        before = ema.average["a"].clone()
        ema.step(step)
        if not torch.equal(before, ema.average["a"]):
            moved.append(step)
    assert moved == [8, 16, 24]
    expected = 0.0
    for step in moved:
        expected = 0.9 * expected + 0.1 * step
    torch.testing.assert_close(ema.average["a"], torch.full((2, 3), expected))


def test_defect_15_trained_weights_come_back_exactly():
    own = parameters()
    ema = Ema(own, every=1)
    with torch.no_grad():
        own["a"].fill_(1 / 3)
    with ema.applied():
        assert torch.equal(own["a"], torch.ones(2, 3))
    assert torch.equal(own["a"], torch.full((2, 3), 1 / 3))


def test_defect_15_shares_no_memory_with_the_parameters():
    own = parameters()
    ema = Ema(own)
    kept = ema.state_dict()
    with torch.no_grad():
        own["a"].fill_(9.0)
    assert torch.equal(ema.average["a"], torch.ones(2, 3))
    ema.average["a"].fill_(5.0)
    assert torch.equal(kept["a"], torch.ones(2, 3))


def test_trained_weights_come_back_after_an_error():
    own = parameters(2.0)
    ema = Ema(own, every=1)
    with torch.no_grad():
        own["b"].fill_(7.0)
    with pytest.raises(RuntimeError), ema.applied():
        raise RuntimeError
    assert torch.equal(own["b"], torch.full((4,), 7.0))


def test_parameters_keep_their_identity_for_the_optimiser():
    own = parameters()
    place = own["a"].data_ptr()
    with Ema(own).applied():
        assert own["a"].data_ptr() == place


def test_state_goes_through_a_file_format():
    first, second = Ema(parameters(3.0)), Ema(parameters(1.0))
    second.load_state_dict(first.state_dict())
    assert torch.equal(second.average["b"], torch.full((4,), -3.0))


@pytest.mark.parametrize("state", [{"a": torch.zeros(2, 3)}, {"a": torch.zeros(2, 2), "b": torch.zeros(4)}])
def test_the_average_of_another_model_is_refused(state):
    with pytest.raises(ValueError, match="another model"):
        Ema(parameters()).load_state_dict(state)
