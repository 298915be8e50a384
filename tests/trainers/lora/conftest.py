import pytest
import torch


@pytest.fixture
def transformer():
    """A small VACE transformer of the real class, random."""
    from diffusers import WanVACETransformer3DModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = WanVACETransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=12,
            text_dim=16,
            freq_dim=32,
            ffn_dim=32,
            num_layers=3,
            vace_layers=[0, 2],
            vace_in_channels=96,
            rope_max_seq_len=64,
        )
    return model.eval()


@pytest.fixture
def velocity():
    generator = torch.Generator().manual_seed(1)
    inputs = {
        name: torch.randn(shape, generator=generator)
        for name, shape in {
            "hidden_states": (1, 16, 2, 4, 4),
            "encoder_hidden_states": (1, 6, 16),
            "control_hidden_states": (1, 96, 2, 4, 4),
        }.items()
    }

    def run(model):
        dtype = model.patch_embedding.weight.dtype
        given = {name: value.to(dtype) for name, value in inputs.items()}
        return model(timestep=torch.tensor([500]), return_dict=False, **given)[0].float()

    return run
