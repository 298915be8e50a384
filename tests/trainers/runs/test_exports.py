"""What a run's exports carry: who reads them, and that folders of the user's are not among it."""

from __future__ import annotations

import base64
import hashlib
import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from trainers.config import make_config
from trainers.errors import UserError
from trainers.lora.adapter import LoRA
from trainers.lora.formats import write_native
from trainers.modelfiles.inspection import inspect_file
from trainers.prompts import PromptItem
from trainers.runs.exports import Exports, keep
from trainers.runs.folder import RunFolder

LORA = LoRA({"blocks.0.attn1.to_q": (torch.ones(2, 1536), torch.ones(1536, 2))}, {"blocks.0.attn1.to_q": 2.0})


@pytest.fixture
def run(tmp_path) -> RunFolder:
    """A run that has written a clip, under a frozen LoRA."""
    frozen = tmp_path / "home of anna" / "few steps.safetensors"
    frozen.parent.mkdir()
    write_native(LORA, frozen)
    config = make_config(
        "distilled",
        {
            "publish": str(tmp_path / "loras"),
            "prompts": str(frozen.parent / "people.csv"),
            "policy": {"source": str(frozen.parent / "wan"), "loras": [f"{frozen}:0.5"]},
        },
    )
    run = RunFolder.create(tmp_path / "runs", config)
    video = np.random.default_rng(0).integers(0, 255, (1, 5, 48, 800, 3), np.uint8)
    run.write_clips(0, [PromptItem("a", "two people", ())], video, 10.0)
    return run


def header(path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return file.metadata()


def test_the_header_says_what_it_is_by_the_names_that_others_read(run):
    found = header(Exports(run, run.config()).write(LORA, 3, "vace"))
    assert found["modelspec.title"] == f"{run.id}, iteration 3"
    assert found["ss_base_model_version"] == "Wan Video 1.3B t2v" and found["modelspec.architecture"] == "wan2.1/lora"
    assert "4 steps, cfg 1, shift 5; use it together with few steps.safetensors at 0.5" in found["modelspec.usage_hint"]
    assert (found["run"], found["iteration"], found["policy"]) == (run.id, "3", "vace")
    assert all(isinstance(value, str) for value in found.values())


def test_the_settings_are_in_it_without_the_user_s_folders(run):
    found = header(Exports(run, run.config()).write(LORA, 3, "vace"))
    settings = json.loads(found["identity_grpo.config"])
    assert settings["rollout"]["steps"] == 4 and settings["prompts"] == "people.csv"
    assert settings["policy"]["loras"] == ["few steps.safetensors:0.5"]
    assert "home of anna" not in json.dumps(found)


def test_the_hash_is_that_of_the_tensors_in_the_file(run):
    path = Exports(run, run.config()).write(LORA, 3, "vace")
    written = path.read_bytes()
    digest = hashlib.sha256(written[8 + int.from_bytes(written[:8], "little") :]).hexdigest()
    assert (header(path)["sshs_model_hash"], header(path)["modelspec.hash_sha256"]) == (digest, f"0x{digest}")


def test_the_newest_clip_is_its_preview_where_it_is_published_too(run, tmp_path):
    path = Exports(run, run.config()).write(LORA, 3, "vace")
    beside = Image.open(tmp_path / "loras" / run.id / path.with_suffix(".webp").name)
    assert (beside.format, beside.width, beside.n_frames) == ("WEBP", 480, 5)
    (still,) = json.loads(header(path)["ssmd_cover_images"])
    assert Image.open(io.BytesIO(base64.b64decode(still))).size == (256, 15)


def test_a_preview_goes_with_its_export(run, tmp_path):
    config = run.config()
    exports = Exports(run, config.model_copy(update={"checkpoint": config.checkpoint.model_copy(update={"keep": 1})}))
    for iteration in (1, 2):
        exports.write(LORA, iteration, "vace")
    for folder in (run.exports_folder, tmp_path / "loras" / run.id):
        assert sorted(p.name for p in folder.glob(f"{run.id}*")) == [
            f"{run.id}-000002.safetensors",
            f"{run.id}-000002.webp",
        ]


def test_an_export_that_the_user_keeps_is_not_removed_until_it_is_let_go(run):
    config = run.config()
    exports = Exports(run, config.model_copy(update={"checkpoint": config.checkpoint.model_copy(update={"keep": 1})}))
    exports.write(LORA, 1, "vace")
    keep(run, 1)
    exports.write(LORA, 2, "vace")
    assert [export.iteration for export in run.exports()] == [1, 2]
    keep(run, 1, kept=False)
    exports.prune()
    assert [export.iteration for export in run.exports()] == [2]


def test_only_an_export_that_is_there_can_be_kept(run):
    with pytest.raises(UserError, match="no LoRA of iteration 5; it has none yet"):
        keep(run, 5)


def test_a_clip_that_cannot_be_read_costs_the_preview_and_not_the_lora(run):
    run.clips()[0][0].write_bytes(b"RIFF")
    path = Exports(run, run.config()).write(LORA, 1, "vace")
    assert path.is_file() and not path.with_suffix(".webp").exists()
    assert "ssmd_cover_images" not in header(path)


def test_the_inspector_names_the_run_and_the_frozen_lora(run):
    path = Exports(run, run.config()).write(LORA, 3, "vace")
    said = inspect_file(path)
    assert f"trained with Identity-GRPO (run {run.id}), on vace under few steps.safetensors, iteration 3" in said
