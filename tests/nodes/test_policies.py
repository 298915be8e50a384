"""Loading a video model through its node."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

NODE = "IdentityGRPOLoadModel"
CHOICES = {
    "model": "TinyWorld VACE (built in)",
    "text_encoder": "beside the model",
    "vae": "beside the model",
    "dtype": "auto",
    "attention": "sdpa",
    "offload": "when memory is needed",
}


def problem(pack, **changes) -> str:
    """What queueing with these choices is refused with."""
    chosen = CHOICES | changes
    chosen.pop("offload")
    found = pack.nodes[NODE].validate_inputs(**chosen)
    assert found is not True
    return found


@pytest.fixture
def models(pack) -> Path:
    import folder_paths

    return Path(folder_paths.models_dir)


def folder(root: Path, kind: str, *parts: str) -> None:
    """A diffusers folder that has only the first bytes of these parts."""
    (root / "transformer").mkdir(parents=True, exist_ok=True)
    (root / "transformer" / "config.json").write_text(json.dumps({"_class_name": kind}))
    for part in parts:
        (root / part).mkdir(exist_ok=True)


def test_the_built_in_model_is_loaded_frozen_and_known_by_its_files(run_node):
    (loaded,) = run_node(NODE, **CHOICES)
    assert loaded.policy.kind == "vace" and loaded.lora is None
    assert loaded.config.source == "tinyworld" and loaded.config.dtype == "float32"
    assert not any(p.requires_grad for p in loaded.policy.transformer.parameters())


def test_parameters_can_be_trained_though_the_executor_runs_under_inference_mode(run_node):
    (loaded,) = run_node(NODE, **CHOICES)
    modules = loaded.policy.transformer, loaded.policy.vae.model, loaded.policy.text.encoder
    assert not any(t.is_inference() for m in modules for t in [*m.parameters(), *m.buffers()])


def test_the_node_says_what_was_recognised(pack):
    shown = pack.nodes[NODE].execute(**CHOICES).ui.as_dict()["text"][0]
    assert shown.startswith("VACE, ") and "million parameters" in shown and "float32" in shown


def test_the_dtype_asked_for_is_that_of_the_transformer(run_node):
    (loaded,) = run_node(NODE, **CHOICES | {"dtype": "bfloat16"})
    assert str(loaded.policy.dtype) == "torch.bfloat16" and loaded.config.dtype == "bfloat16"


def test_a_text_encoder_kept_on_the_cpu_is_not_managed(run_node):
    (loaded,) = run_node(NODE, **CHOICES | {"offload": "text encoder stays on the CPU"})
    assert not any(m is loaded.policy.text.encoder for m in loaded.managed.modules)


def test_a_choice_that_is_not_offered_is_refused(pack):
    assert "models/diffusion_models" in problem(pack, model="../../etc/passwd")
    assert "models/vae" in problem(pack, vae="/etc/passwd")
    assert "dtype `float8`" in problem(pack, dtype="float8")
    assert "attention `magic`" in problem(pack, attention="magic")


def test_missing_parts_are_named_before_anything_loads(pack, models):
    folder(models / "diffusers" / "half", "WanVACETransformer3DModel", "vae")
    message = problem(pack, model="diffusers/half")
    assert "text_encoder" in message and "tokenizer" in message and "vae:" not in message


def test_another_kind_of_model_is_refused_before_anything_loads(pack, models):
    folder(models / "diffusers" / "other", "FluxTransformer2DModel", "vae", "text_encoder", "tokenizer")
    (models / "diffusers" / "other" / "tokenizer" / "tokenizer_config.json").write_text("{}")
    assert "FluxTransformer2DModel" in problem(pack, model="diffusers/other")


def test_a_file_that_is_no_model_is_refused_before_anything_loads(pack, models):
    place = models / "diffusion_models"
    place.mkdir(parents=True, exist_ok=True)
    (place / "broken.safetensors").write_bytes(b"no weights")
    for part in ("vae", "text_encoder", "tokenizer"):
        (place / part).mkdir(exist_ok=True)
    (place / "tokenizer" / "tokenizer_config.json").write_text("{}")
    assert "broken.safetensors" in problem(pack, model="diffusion_models/broken.safetensors")
