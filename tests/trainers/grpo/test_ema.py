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


def published(values: list[float], decay: float = 0.9) -> list[float]:
    """The averages of the published warm-up: decay = min((1 + n) / (10 + n), 0.9), n counting averages, from 0."""
    average, found = 0.0, []
    for n, value in enumerate(values):
        weight = min((1 + n) / (10 + n), decay)
        average = weight * average + (1 - weight) * value
        found.append(average)
    return found


@pytest.mark.parametrize("every", [1, 8])
def test_the_average_is_the_published_one_over_300_updates(every):
    """Under linear growth. The first average replaces the initial values, of which the published one keeps a tenth."""
    own = parameters(0.0)
    ema = Ema(own, decay=0.9, every=every)
    expected = published([float(step) for step in range(every, 301, every)])
    for step in range(1, 301):
        with torch.no_grad():
            own["a"].fill_(step)
        ema.step(step)
        n = step // every
        if step % every == 0 and n > 2:
            assert ema.average["a"][0, 0].item() == pytest.approx(expected[n - 1], rel=0.02 if n < 6 else 1e-4)


@pytest.mark.parametrize("updates, least", [(20, 0.65), (80, 0.8)])
def test_the_average_holds_most_of_what_was_learned(updates, least):
    """With the presets' decay and cadence; without the warm-up it held 12% and 41%."""
    own = parameters(0.0)
    ema = Ema(own, decay=0.9, every=8)
    for step in range(1, updates + 1):
        with torch.no_grad():
            own["a"].fill_(step)
        ema.step(step)
    assert ema.average["a"][0, 0].item() / updates > least


def test_a_resumed_average_goes_on_as_if_never_interrupted():
    def run(stop: int | None) -> torch.Tensor:
        own = parameters(0.0)
        ema = Ema(own, every=2)
        for step in range(1, 21):
            if step == stop:
                state = ema.state_dict()
                ema = Ema(own, every=2)
                ema.load_state_dict(state)
            with torch.no_grad():
                own["a"].fill_(step**0.5)
            ema.step(step)
        return ema.average["a"]

    assert torch.equal(run(None), run(11))


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
