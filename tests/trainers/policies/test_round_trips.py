"""One model in every form that people have it in: the same weights and the same velocity.

The model is small. With IDENTITY_GRPO_FULL_SIZE=1 it has the size of the published 1.3B ones (a form takes some minutes
and 30 GB of memory).
"""

from __future__ import annotations

import os

import pytest
import torch
from safetensors.torch import save_file

from trainers.bench.sizes import transformer_config
from trainers.policies.transformer_file import describe_transformer, load_transformer

from ..modelfiles.synthetic import int8, make_transformer, scaled_fp8, transformer_weights, write_gguf

# The largest error of a weight, as a share of the largest of its matrix: half a step of the quantisation, and a little.
ROUNDING = {
    "fp8": 1 / 27.9,
    "fp8 per row": 1 / 27.9,
    "int8": 1 / 250,
    "Q4_K": 1 / 12,
    "Q5_K": 1 / 24,
    "Q6_K": 1 / 50,
    "Q8_0": 1 / 240,
    "F16": 1e-3,
    "BF16": 1 / 250,
}


FULL_SIZE = os.environ.get("IDENTITY_GRPO_FULL_SIZE") == "1"
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(scope="module", params=["vace", "phantom"])
def model(request):
    return make_transformer(request.param, **transformer_config("1.3b", request.param) if FULL_SIZE else {})


def write(model, form, folder):
    path = folder / f"{form}.safetensors"
    if form == "folder":
        model.save_pretrained(folder / "transformer")
        return folder / "transformer"
    if form in ("original", "diffusers", "native"):
        save_file(transformer_weights(model, form), path)
        return path
    weights = transformer_weights(model)
    if form in ("fp8", "fp8 per row"):
        save_file(scaled_fp8(weights, per_row=form != "fp8"), path)
    elif form == "int8":
        save_file(int8(weights), path)
    else:
        return write_gguf(folder / f"{form}.gguf", weights, form)
    return path


@torch.no_grad()
def velocity(model):
    generator = torch.Generator().manual_seed(1)

    def random(*shape):
        return torch.randn(shape, generator=generator).to(DEVICE)

    text = random(1, 5, model.config.text_dim)
    control = {"control_hidden_states": random(1, 96, 2, 4, 6)} if hasattr(model, "vace_blocks") else {}
    time = torch.tensor([500], device=DEVICE)
    found = model.to(DEVICE)(random(1, 16, 2, 4, 6), time, text, **control, return_dict=False)[0]
    model.to("cpu")
    return found.cpu()


@pytest.mark.parametrize("form", ["folder", "original", "diffusers", "native", "F32"])
def test_a_form_in_full_precision_gives_the_same_velocity(model, form, tmp_path):
    read = load_transformer(write(model, form, tmp_path))
    assert (velocity(read) - velocity(model)).abs().max() < 1e-5


@pytest.mark.parametrize("form", ROUNDING)
def test_a_quantised_form_gives_every_weight_within_its_rounding(model, form, tmp_path):
    path = write(model, form, tmp_path)
    assert describe_transformer(path).parameters == sum(p.numel() for p in model.parameters())
    read, changed = load_transformer(path), 0
    for name, expected in model.state_dict().items():
        error = float((read.state_dict()[name] - expected).abs().max() / expected.abs().max())
        assert error <= ROUNDING[form], name
        changed += error > 0
    assert changed == sum("blocks." in n and t.ndim == 2 for n, t in model.state_dict().items())
    difference = (velocity(read) - velocity(model)).norm() / velocity(model).norm()
    # At full size errors of 30 layers add up, and the largest weight of a matrix is further from the others.
    assert difference < (8 if FULL_SIZE else 2) * ROUNDING[form]
