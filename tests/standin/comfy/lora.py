"""The weights that a LoRA with ComfyUI's names changes; it is never applied here."""

from __future__ import annotations


def model_lora_keys_unet(model, key_map):
    weights = (key for key in model.state_dict() if key.startswith("diffusion_model.") and key.endswith(".weight"))
    return key_map | {key.removesuffix(".weight"): key for key in weights}


def load_lora(lora, to_load, log_missing=True):
    found = {key: lora[f"{name}.lora_up.weight"] for name, key in to_load.items() if f"{name}.lora_up.weight" in lora}
    if log_missing and len(found) < sum(name.endswith(".alpha") for name in lora):
        raise NotImplementedError("core logs what is missing; the stand-in does not")
    return found
