"""Our models under ComfyUI's memory management: loading another model frees ours, and using ours brings them back.

Our layers are plain torch ones that cannot fetch weights while they compute, so a model is on the device whole or not
at all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import comfy.model_management as management
import torch
from comfy.model_patcher import ModelPatcher
from torch import nn


class Managed:
    """Models that belong together, each of which ComfyUI may move off the device when it needs the memory.

    The modules come lying on `management.unet_offload_device()`; what asks a parameter for its device follows them.
    `leave`: give up the device after every `use`, for cards that have no room to spare.
    """

    def __init__(self, *modules: nn.Module, leave: bool = False) -> None:
        self.modules = modules
        self.leave = leave
        device, offload = management.get_torch_device(), management.unet_offload_device()
        self._patchers = [_Whole(_named(module), device, offload) for module in modules]

    def load(self, working_bytes: float = 0, only: Sequence[nn.Module] = ()) -> torch.device:
        """Bring all modules, or `only` these, onto the device with room for `working_bytes` beside them; the device."""
        wanted = [p for p, m in zip(self._patchers, self.modules, strict=True) if not only or any(m is o for o in only)]
        management.load_models_gpu(wanted, memory_required=working_bytes, force_full_load=True)
        return management.get_torch_device()

    @contextmanager
    def use(self, *only: nn.Module, working_bytes: float = 0) -> Iterator[torch.device]:
        """`load` for a block of work that Cancel ends between two layers of any module.

        Afterwards the modules stay until ComfyUI needs the memory, or leave at once. `only` may name modules that are
        not managed (they compute where they are).
        """
        device = self.load(working_bytes, only)
        try:
            with _interruptible(only or self.modules):
                yield device
        finally:
            if self.leave:
                self.unload()

    def unload(self) -> None:
        """Move every module off the device now."""
        for patcher in self._patchers:
            patcher.detach()
        management.soft_empty_cache()


@contextmanager
def _interruptible(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Within the block every layer asks first whether the user has pressed Cancel."""
    waiting: list[torch.cuda.Event] = []

    def ask(*_) -> None:
        management.throw_exception_if_processing_interrupted()

    def keep_pace(*_) -> None:
        # Python runs ahead of the GPU by many layers, and would ask long before the work it asks about.
        if torch.cuda.is_available():
            event = torch.cuda.Event()
            event.record()
            if waiting:
                waiting.pop().synchronize()
            waiting.append(event)

    parts = [part for module in modules for part in module.modules()]
    blocks = [block for part in parts if isinstance(part, nn.ModuleList) for block in part]
    hooks = [block.register_forward_pre_hook(keep_pace) for block in blocks]
    hooks += [part.register_forward_pre_hook(ask) for part in parts if next(part.children(), None) is None]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class _Whole(ModelPatcher):
    """A patcher whose model moves whole.

    ComfyUI calls these methods while it executes a node, under inference_mode: parameters made there could never be
    trained or changed outside of it, so they are moved outside.
    """

    def load(self, device_to=None, *_, **__) -> None:
        self._move(device_to)
        self.model.model_loaded_weight_memory = self.model_size()

    def partially_load(self, device_to, *_, **__) -> int:
        if self.loaded_size():
            return 0
        self.load(device_to)
        return self.loaded_size()

    def partially_unload(self, *_, **__) -> int:
        return 0  # ComfyUI then detaches the whole

    def unpatch_model(self, device_to=None, unpatch_weights=True) -> None:
        if unpatch_weights:
            self._move(device_to)
            self.model.model_loaded_weight_memory = 0

    def _move(self, device: torch.device | None) -> None:
        if device is not None and device != self.model.device:
            with torch.inference_mode(False):
                try:
                    self.model.to(device)
                except BaseException:
                    # Out of memory halfway: the half that has moved must not stay.
                    self.model.to(self.model.device)
                    raise
            self.model.device = device


def _named(module: nn.Module) -> nn.Module:
    """The module in a container: it takes ComfyUI's attributes (`device` is read-only in diffusers) and keeps the name
    that ComfyUI's log shows."""
    return type(type(module).__name__, (nn.ModuleList,), {})([module])
