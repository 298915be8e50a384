"""Memory management of a machine without a GPU, and Cancel."""

from __future__ import annotations

import gc
import weakref

import torch

OOM_EXCEPTION = torch.OutOfMemoryError
_CPU = torch.device("cpu")
_loaded: list[weakref.ref] = []  # ComfyUI drops a model that has no other reference
_interrupted = False


class InterruptProcessingException(BaseException):
    pass


def get_torch_device() -> torch.device:
    return _CPU


def get_total_memory(dev=None) -> int:
    return 2**40


def minimum_inference_memory() -> int:
    return 0


def unet_offload_device() -> torch.device:
    return _CPU


def vae_offload_device() -> torch.device:
    return _CPU


def text_encoder_offload_device() -> torch.device:
    return _CPU


def intermediate_device() -> torch.device:
    return _CPU


def should_use_bf16(device=None, *_, **__) -> bool:
    return False


def loaded_models(only_currently_used: bool = False) -> list:
    return [patcher for held in _loaded if (patcher := held()) is not None]


def load_models_gpu(
    models, memory_required=0, force_patch_weights=False, minimum_memory_required=None, force_full_load=False
) -> None:
    for patcher in models:
        if not any(patcher is other for other in loaded_models()):
            _loaded.insert(0, weakref.ref(patcher))
        patcher.partially_load(patcher.load_device, 1e32)


def free_memory(memory_required, device, keep_loaded=(), *_, **__) -> list:
    """Detach loaded models until as many bytes are free; the CPU's memory counts as full."""
    freed = []
    for patcher in reversed(loaded_models()):
        if memory_required > 0 and not any(patcher is kept for kept in keep_loaded):
            memory_required -= patcher.loaded_size()
            patcher.detach()
            freed.append(patcher)
    _loaded[:] = [held for held in _loaded if not any(held() is patcher for patcher in freed)]
    return freed


def unload_all_models() -> None:
    free_memory(1e30, _CPU)


def soft_empty_cache(force: bool = False) -> None:
    gc.collect()


def cleanup_models_gc() -> None:
    gc.collect()


def interrupt_current_processing(value: bool = True) -> None:
    global _interrupted
    _interrupted = value


def processing_interrupted() -> bool:
    return _interrupted


def throw_exception_if_processing_interrupted() -> None:
    if _interrupted:
        interrupt_current_processing(False)
        raise InterruptProcessingException
