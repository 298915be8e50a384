"""The hashes of a LoRA's tensors that other tools identify its file by."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from safetensors.torch import save
from torch import Tensor

SD_SCRIPTS, SD_SCRIPTS_LEGACY, MODELSPEC = "sshs_model_hash", "sshs_legacy_hash", "modelspec.hash_sha256"


def tensor_hashes(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """SHA-256 of a .safetensors file's tensors without its header, by sd-scripts' and ModelSpec's names."""
    written = memoryview(save(dict(tensors)))
    digest = hashlib.sha256(written[8 + int.from_bytes(written[:8], "little") :]).hexdigest()
    return {SD_SCRIPTS: digest, MODELSPEC: f"0x{digest}"}


def without_hashes(metadata: Mapping[str, str]) -> dict[str, str]:
    """A header without them: what is written next has others."""
    return {name: text for name, text in metadata.items() if name not in (SD_SCRIPTS, SD_SCRIPTS_LEGACY, MODELSPEC)}
