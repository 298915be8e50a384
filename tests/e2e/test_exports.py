"""What ComfyUI's own model browser shows of a LoRA that a run has published."""

import io
import shutil

import numpy as np
import torch
from PIL import Image

from trainers.config import make_config
from trainers.lora.adapter import LoRA
from trainers.prompts import PromptItem
from trainers.runs.exports import Exports
from trainers.runs.folder import RunFolder

LORA = LoRA({"blocks.0.attn1.to_q": (torch.ones(2, 1536), torch.ones(1536, 2))}, {"blocks.0.attn1.to_q": 2.0})


def test_core_finds_preview_and_description(comfyui, tmp_path):
    """The preview is the clip, in the size that it has beside the LoRA."""
    folder = comfyui.base / "models" / "loras" / "identity_grpo"
    run = RunFolder.create(tmp_path, make_config("fast", {"publish": str(folder)}))
    video = np.random.default_rng(0).integers(0, 255, (1, 5, 48, 800, 3), np.uint8)
    run.write_clips(0, [PromptItem("a", "two people", ())], video, 10.0)
    name = Exports(run, run.config()).write(LORA, 3, "vace").name
    try:
        path = f"identity_grpo/{run.id}/{name}"
        described = comfyui.get("/view_metadata/loras", filename=path)
        assert described["modelspec.title"] == f"{run.id}, iteration 3" and described["sshs_model_hash"]
        index = next(
            place
            for place, known in enumerate(
                next(kind["folders"] for kind in comfyui.get("/experiment/models") if kind["name"] == "loras")
            )
            if known == str(folder.parent)
        )
        shown = Image.open(io.BytesIO(comfyui.bytes(f"/experiment/models/preview/loras/{index}/{path}")))
        assert (shown.format, shown.size) == ("WEBP", (480, 29))
    finally:
        shutil.rmtree(folder / run.id)
