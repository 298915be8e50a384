"""LoRA files: what is read from them and written to them, in one place to import from."""

from .adapter import LoRA
from .reading import LoRAHeader, read_lora, read_lora_header
from .writing import native_tensors, write_diffusers, write_native, write_peft

__all__ = [
    "LoRA",
    "LoRAHeader",
    "native_tensors",
    "read_lora",
    "read_lora_header",
    "write_diffusers",
    "write_native",
    "write_peft",
]
