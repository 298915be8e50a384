"""Loading a video model through its node."""

from __future__ import annotations

import json
import re
import shutil
from importlib import import_module
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

NODE = "IdentityGRPOLoadModel"
CHOICES = {
    "model": "TinyWorld VACE (built in)",
    "text_encoder": "beside the model",
    "vae": "beside the model",
    "dtype": "auto",
    "attention": "sdpa",
    "offload": "when memory is needed",
    "vace_module": "none",
}


def refusal(pack, run_node, **changes) -> tuple[str, str]:
    """Input and text of the one error with which these choices are not queued."""
    with pytest.raises(pack.Refused) as refused:
        run_node(NODE, **CHOICES | changes)
    (problem,) = refused.value.problems
    return problem


@pytest.fixture
def models(pack) -> Path:
    import folder_paths

    return Path(folder_paths.models_dir)


def folder(root: Path, kind: str, *parts: str) -> None:
    """A diffusers folder with a transformer's config and these empty parts."""
    (root / "transformer").mkdir(parents=True, exist_ok=True)
    (root / "transformer" / "config.json").write_text(json.dumps({"_class_name": kind}))
    for part in parts:
        (root / part).mkdir(exist_ok=True)


def test_the_built_in_model_is_loaded_frozen_and_known_by_its_files(run_node):
    (loaded,) = run_node(NODE, **CHOICES)
    assert loaded.policy.kind == "vace" and loaded.loras == ()
    assert loaded.config.source == "tinyworld" and loaded.config.dtype == "float32"
    assert not any(p.requires_grad for p in loaded.policy.transformer.parameters())


def test_parameters_can_be_trained_though_the_executor_runs_under_inference_mode(run_node):
    (loaded,) = run_node(NODE, **CHOICES)
    modules = loaded.policy.transformer, loaded.policy.vae.model, loaded.policy.text.encoder
    assert not any(t.is_inference() for m in modules for t in [*m.parameters(), *m.buffers()])


def test_the_node_shows_what_was_recognised(pack):
    shown = pack.nodes[NODE].execute(**CHOICES).ui.as_dict()["text"][0]
    assert shown.startswith("VACE, ") and "million parameters, float32, cpu" in shown


def test_the_dtype_asked_for_is_that_of_the_transformer(run_node):
    (loaded,) = run_node(NODE, **CHOICES | {"dtype": "bfloat16"})
    assert str(loaded.policy.dtype) == "torch.bfloat16" and loaded.config.dtype == "bfloat16"


def test_a_text_encoder_kept_on_the_cpu_is_not_managed(run_node):
    (loaded,) = run_node(NODE, **CHOICES | {"offload": "text encoder stays on the CPU"})
    assert not any(m is loaded.policy.text.encoder for m in loaded.managed.modules)


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("model", "../../etc/passwd", "there is no model `../../etc/passwd`; put .* into models/diffusion_models"),
        ("vae", "/etc/passwd", "not in list"),
        ("text_encoder", "umt5_xxl.safetensors", "not in list"),
        ("dtype", "float8", "not in list"),
        ("attention", "flash", "not in list"),  # there is no GPU here
        ("offload", "never", "not in list"),
        ("vace_module", "/etc/passwd", "not in list"),
    ],
)
def test_a_choice_that_is_not_offered_is_one_error_on_its_input(pack, run_node, name, value, text):
    found = refusal(pack, run_node, **{name: value})
    assert found[0] == name and re.search(text, found[1])


@pytest.mark.parametrize("name", ["model", "text_encoder", "vae", "dtype", "attention", "offload", "vace_module"])
def test_a_choice_that_comes_through_a_link_is_checked_too(pack, run_node, name):
    with pytest.raises(pack.UserError, match=f"{name} `/etc/passwd`|there is no .* `/etc/passwd`"):
        run_node(NODE, **CHOICES | {name: pack.Linked("/etc/passwd")})


def test_flash_attention_in_float32_is_refused(pack, run_node, monkeypatch):
    policies = import_module("identity_grpo.nodes.policies")
    monkeypatch.setattr(policies, "_attentions", lambda: ["sdpa", "flash"])
    with pytest.raises(pack.UserError, match="attention `flash` cannot compute in float32; choose dtype bfloat16"):
        run_node(NODE, **CHOICES | {"attention": "flash"})


def test_missing_parts_are_named_before_anything_loads(pack, run_node, models):
    folder(models / "diffusers" / "half", "WanVACETransformer3DModel", "vae")
    weights = import_module("identity_grpo.trainers.config").TINYWORLD_WEIGHTS / "vace" / "transformer"
    shutil.copytree(weights, models / "diffusers" / "half" / "transformer", dirs_exist_ok=True)
    with pytest.raises(pack.UserError) as error:
        run_node(NODE, **CHOICES | {"model": "diffusers/half"})
    assert "text_encoder:" in str(error.value) and "tokenizer:" in str(error.value) and "vae:" not in str(error.value)


def test_another_kind_of_model_is_refused_before_anything_runs(pack, run_node, models):
    folder(models / "diffusers" / "other", "FluxTransformer2DModel")
    name, text = refusal(pack, run_node, model="diffusers/other")
    assert name == "model" and "FluxTransformer2DModel" in text


def test_a_file_that_is_no_model_is_refused_before_anything_runs(pack, run_node, models):
    place = models / "diffusion_models"
    place.mkdir(parents=True, exist_ok=True)
    (place / "broken.safetensors").write_bytes(b"no weights")
    name, text = refusal(pack, run_node, model="diffusion_models/broken.safetensors")
    assert name == "model" and "broken.safetensors" in text


@pytest.fixture
def in_fp8(models) -> str:
    """A choice of `model`: TinyWorld's, whose blocks have weights of 8 bits."""
    place = models / "diffusers" / "in_fp8"
    weights = import_module("identity_grpo.trainers.config").TINYWORLD_WEIGHTS
    shutil.copytree(weights / "vace", place, dirs_exist_ok=True)
    (file,) = (place / "transformer").glob("*.safetensors")
    weights = load_file(file)
    in_blocks = [n for n, w in weights.items() if "blocks." in n and n.endswith(".weight") and w.ndim == 2]
    save_file(weights | {name: weights[name].to(torch.float8_e4m3fn) for name in in_blocks}, file)
    return "diffusers/in_fp8"


@pytest.mark.parametrize(
    "choice, room, stays, in_runs",
    [
        ("auto", 10**9, False, "converted"),
        ("auto", 10**5, True, "converted"),
        ("converted", 10**5, False, "converted"),
        ("stored", 10**9, True, "stored"),
    ],
)
def test_8bit_weights_stay_where_the_converted_model_does_not_fit(
    run_node, monkeypatch, in_fp8, choice, room, stays, in_runs
):
    monkeypatch.setattr(import_module("identity_grpo.nodes.policies"), "room", lambda: room)
    (loaded,) = run_node(NODE, **CHOICES | {"model": in_fp8, "weights": choice, "dtype": "bfloat16"})
    weight = loaded.policy.transformer.blocks[0].attn1.to_q.weight
    assert weight.dtype == (torch.float8_e4m3fn if stays else torch.bfloat16)
    assert loaded.config.weights == in_runs


def test_fp8_products_are_refused_where_they_cannot_run(pack, run_node):
    with pytest.raises(pack.UserError, match="`fp8 products` needs an NVIDIA GPU of the Ada.*choose weights auto"):
        run_node(NODE, **CHOICES | {"weights": "fp8 products"})


def test_fp8_products_multiply_the_weights_as_they_are_stored(run_node, monkeypatch, in_fp8):
    for module in ("nodes.policies", "trainers.policies.fp8"):
        monkeypatch.setattr(import_module(f"identity_grpo.{module}"), "require_fp8", lambda device, dtype: None)
    (loaded,) = run_node(NODE, **CHOICES | {"model": in_fp8, "weights": "fp8 products", "dtype": "bfloat16"})
    layer = loaded.policy.transformer.blocks[0].attn1.to_q
    assert type(layer).__name__ == "StoredFp8Linear" and layer.weight.dtype == torch.float8_e4m3fn
    assert loaded.config.fp8 and loaded.config.weights == "stored"
