"""What the loaders of diffusers and PEFT make of the files that are written here, and the other way round."""

from pathlib import Path

import numpy as np
import pytest
import torch

import trainers
from trainers.lora.formats import LoRA, read_lora, write_diffusers, write_native, write_peft

WEIGHTS = Path(trainers.__file__).parent / "tinyworld" / "weights"
TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]
# `proj_out` as a target also means the control blocks' `proj_out`, which get factors without effect.
pytestmark = pytest.mark.filterwarnings("ignore:(?s).*(additional target modules|missing adapter keys).*proj_out")


@pytest.fixture(scope="module", params=["vace", "phantom"])
def kind(request):
    return request.param


@pytest.fixture
def pipeline(kind):
    """diffusers' pipeline with TinyWorld's transformer, and nothing else in it."""
    from diffusers import WanPipeline, WanTransformer3DModel, WanVACEPipeline, WanVACETransformer3DModel

    model, wrapper = {
        "vace": (WanVACETransformer3DModel, WanVACEPipeline),
        "phantom": (WanTransformer3DModel, WanPipeline),
    }[kind]
    transformer = model.from_pretrained(WEIGHTS / kind / "transformer")
    return wrapper(tokenizer=None, text_encoder=None, vae=None, scheduler=None, transformer=transformer)


@pytest.fixture
def lora(pipeline):
    """Ranks and alphas differ between modules; names that are the end of another name are among them."""
    rng = np.random.default_rng(0)
    layers = dict(pipeline.transformer.named_modules())
    names = ["blocks.0.attn1.to_q", "blocks.0.attn2.to_out.0", "blocks.1.ffn.net.2", "proj_out"]
    names += ["vace_blocks.0.attn1.to_q", "vace_blocks.1.attn2.to_v"] if "vace_blocks.0" in layers else []
    names += ["vace_blocks.0.proj_out"] if "vace_blocks.0" in layers else []
    modules = {}
    for number, name in enumerate(names):
        rank, layer = 3 if number % 3 == 2 else 2, layers[name]
        sizes = (rank, layer.in_features), (layer.out_features, rank)
        modules[name] = tuple(torch.from_numpy(rng.standard_normal(size)).float() for size in sizes)
    return LoRA(modules, {name: 8.0 if number % 2 else 3.0 for number, name in enumerate(names)})


def assert_acts(transformer, lora):
    """Every module of the LoRA, and no other, changes its layer by alpha / r B A."""
    for name, layer in transformer.named_modules():
        if not hasattr(layer, "lora_A"):
            assert name not in lora.modules
            continue
        (adapter,) = layer.lora_A
        down, up = (part[adapter].weight.detach().double().numpy() for part in (layer.lora_A, layer.lora_B))
        found = layer.scaling[adapter] * up @ down
        if name not in lora.modules:
            assert not found.any()
            continue
        down, up = (part.double().numpy() for part in lora.modules[name])
        np.testing.assert_allclose(found, lora.alpha[name] / len(down) * up @ down, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("write", [write_diffusers, write_peft])
def test_diffusers_loads_our_folders_at_the_right_scale(pipeline, lora, tmp_path, write):
    write(lora, tmp_path / "out")
    pipeline.load_lora_weights(tmp_path / "out")
    assert_acts(pipeline.transformer, lora)


def test_diffusers_loads_our_native_file_unless_it_has_control_blocks(kind, pipeline, lora, tmp_path):
    # diffusers' converter ignores the alpha of the head, and in older releases assumes one rank for all.
    plain = LoRA({n: p for n, p in lora.modules.items() if n != "proj_out" and lora.rank(n) == 2}, lora.alpha)
    write_native(plain, tmp_path / "a.safetensors")
    if kind == "vace":
        with pytest.raises(ValueError, match="vace_blocks"):
            pipeline.load_lora_weights(tmp_path / "a.safetensors")
        return
    pipeline.load_lora_weights(tmp_path / "a.safetensors")
    assert_acts(pipeline.transformer, plain)


def test_peft_loads_its_folder_at_the_right_scale(pipeline, lora, tmp_path):
    from peft import PeftModel

    write_peft(lora, tmp_path / "out")
    PeftModel.from_pretrained(pipeline.transformer, tmp_path / "out")
    assert_acts(pipeline.transformer, lora)


@pytest.mark.parametrize(
    "config",
    [
        {"r": 4, "lora_alpha": 16},
        {"r": 4, "lora_alpha": 16, "use_rslora": True},
        {"r": 4, "lora_alpha": 16, "alpha_pattern": {"attn1.to_q": 2}, "rank_pattern": {"attn1.to_k": 8}},
        {"r": 4, "lora_alpha": 2, "alpha_pattern": {"blocks.0.attn1.to_q": 7, "to_q": 5}},
    ],
)
@pytest.mark.parametrize("writer", ["pipeline", "transformer", "peft"])
def test_files_of_diffusers_and_peft_are_read_at_their_scale(pipeline, tmp_path, config, writer):
    from peft import LoraConfig, get_peft_model, get_peft_model_state_dict

    transformer = pipeline.transformer
    config = LoraConfig(**config, target_modules=TARGETS, init_lora_weights=False)
    if writer == "peft":
        get_peft_model(transformer, config).save_pretrained(tmp_path)
    else:
        transformer.add_adapter(config)
        if writer == "transformer":
            transformer.save_lora_adapter(tmp_path)
        else:
            type(pipeline).save_lora_weights(
                tmp_path,
                transformer_lora_layers=get_peft_model_state_dict(transformer),
                transformer_lora_adapter_metadata=transformer.peft_config["default"].to_dict(),
            )
    found = read_lora(tmp_path)
    layers = {name: layer for name, layer in transformer.named_modules() if hasattr(layer, "lora_A")}
    assert found.modules.keys() == layers.keys()
    for name, layer in layers.items():
        assert found.scale(name) == pytest.approx(layer.scaling["default"])
        assert torch.equal(found.modules[name][0], layer.lora_A["default"].weight)
