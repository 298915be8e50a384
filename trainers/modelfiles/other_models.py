"""Models that are offered beside VACE and Phantom and are neither, named for what they are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ..errors import UserError
from .identify import identify

LATENT_CHANNELS = 16
"""Of Wan 2.1's VAE, which VACE and Phantom read and write."""
CONTROL_CHANNELS = 96
"""Of VACE's control input: inactive and reactive latents, and the mask of every 8x8 cell."""
IMAGE_TO_VIDEO = "a Wan image-to-video model"
# Parts that only other Wan transformers have; the first that is there names the model.
OTHER_TRANSFORMERS = {
    "face_adapter.": "Wan Animate",
    "pose_patch_embedding.": "Wan Animate",
    "casual_audio_encoder.": "Wan 2.2 S2V",
    "audio_proj.audio_proj_glob": "HuMo",
    "audio_proj.": "a talking-head model (MultiTalk)",
    "control_adapter.": "Wan Fun-Camera",
    "ref_conv.": "Wan Fun-Control",
    "patch_embedding_pose.": "SCAIL",
    "patch_embedding_mask.": "SCAIL",
    "patch_embedding_global.": "WanDancer",
    "img_emb.": IMAGE_TO_VIDEO,
    "condition_embedder.image_embedder.": IMAGE_TO_VIDEO,
    "blocks.0.cross_attn.k_img.": IMAGE_TO_VIDEO,
}
REMEDY = "give a VACE or Phantom transformer of Wan 2.1"


def refuse_other_models(shapes: Mapping[str, tuple[int, ...]], path: object) -> None:
    """Raises UserError that names the model, when these are not the weights of VACE or Phantom.

    `shapes`: of all weights, by the original's names. Phantom has the weights of Wan 2.1's text-to-video model and no
    others, so that one is not refused.
    """
    vace = any(name.startswith(("vace_blocks.", "vace_patch_embedding.")) for name in shapes)
    if "patch_embedding.weight" not in shapes or "head.head.weight" not in shapes:
        if vace and not any(name.startswith("blocks.") for name in shapes):
            raise UserError(
                f"{path} holds only VACE's control blocks; give a full VACE model, or its text-to-video model "
                "with this file as policy.vace_module"
            )
        what = identify(shapes)
        if what and "reward" in what:
            raise UserError(f"{path} is {what}, not a Wan transformer; give the reward's whole folder as --reward")
        found = f"is {what}, not a Wan transformer" if what else "is not a Wan transformer"
        raise UserError(f"{path} {found}: it has no patch_embedding.weight or no head.head.weight; {REMEDY}")
    embedding, head = shapes["patch_embedding.weight"], shapes["head.head.weight"]
    cell = embedding[2] * embedding[3] * embedding[4] if len(embedding) == 5 else 0
    if not cell or len(head) != 2:
        raise UserError(f"{path} is not a Wan transformer: its weights have other dimensions; {REMEDY}")
    inputs, outputs = embedding[1], head[0] // cell
    if what := name_relative(shapes, inputs, outputs):
        base = f"VACE on {what}" if vace else what
        raise UserError(
            f"{path} is {base}, with inputs that neither VACE nor Phantom have ({inputs} latent channels in, {outputs} "
            f"out; {LATENT_CHANNELS} and {LATENT_CHANNELS} are expected); {REMEDY}"
        )
    control = shapes.get("vace_patch_embedding.weight")
    if vace and (control is None or control[1:2] != (CONTROL_CHANNELS,)):
        raise UserError(
            f"{path} has a control input of {control[1] if control and len(control) > 1 else 'no'} channels, "
            f"{CONTROL_CHANNELS} are expected; {REMEDY}"
        )


def name_relative(names: Iterable[str], inputs: int, outputs: int) -> str | None:
    """Which other Wan model has these weights, by the original's or diffusers' names, and channels of latents.

    None for VACE, Phantom and the text-to-video model.
    """
    what = _first(OTHER_TRANSFORMERS, names)
    # Many relatives have an image embedder, and the channels show which it is.
    return _by_channels(inputs, outputs) or what if what in (None, IMAGE_TO_VIDEO) else what


def _by_channels(inputs: int, outputs: int) -> str | None:
    if (inputs, outputs) == (LATENT_CHANNELS, LATENT_CHANNELS):
        return None
    if outputs == 48 and inputs >= 48:
        return "Wan 2.2 TI2V-5B" if inputs == 48 else "a relative of Wan 2.2 TI2V-5B"
    if outputs == LATENT_CHANNELS:
        return {36: IMAGE_TO_VIDEO, 48: "Wan Fun-Control"}.get(inputs, "another Wan transformer")
    return "another Wan transformer"


def _first(models: Mapping[str, str], names: Iterable[str]) -> str | None:
    names = list(names)
    return next((what for part, what in models.items() if any(name.startswith(part) for name in names)), None)
