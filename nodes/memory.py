"""The pack's models under ComfyUI's memory management: loading another model unloads them, using them loads them again.

Their layers are plain torch modules that cannot fetch weights while they compute. So a model is on the device whole,
or, where it does not fit beside its work, all but its blocks: these are copied there one by one (`BlockSwap`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import comfy.model_management as management
import torch
from comfy.model_patcher import ModelPatcher
from torch import nn

from ..trainers.memory.blocks import BlockSwap
from ..trainers.memory.placement import move_rest


class Managed:
    """Models that belong together; ComfyUI may move each of them off the device when it needs the memory.

    The modules must lie on `management.unet_offload_device()` at first. `release`: move them off the device after every
    `use`, for cards with little memory.
    """

    def __init__(self, *modules: nn.Module, release: bool = False) -> None:
        self.modules = modules
        self.release = release
        device, offload = management.get_torch_device(), management.unet_offload_device()
        self._patchers = [_Patcher(_container(module), device, offload) for module in modules]

    def load(self, working_bytes: float = 0, only: Sequence[nn.Module] = ()) -> torch.device:
        """Move all modules, or `only` these, onto the device with `working_bytes` free beside them; the device."""
        management.load_models_gpu(self._of(only), memory_required=working_bytes, force_full_load=True)
        return management.get_torch_device()

    @contextmanager
    def use(
        self, *only: nn.Module, working_bytes: float = 0, swapped: Sequence[nn.Module] = ()
    ) -> Iterator[torch.device]:
        """`load` for a block of work, which Cancel interrupts between two layers of any of the modules.

        Afterwards the modules stay on the device until ComfyUI needs the memory, unless `release` is set. `only` may
        name modules that are not managed (they compute where they are). `swapped`: blocks of the one module named, in
        the order in which they compute, which wait in host memory this time.
        """
        for patcher in self._of(only):
            patcher.swap(swapped)
        device = self.load(working_bytes, only)
        try:
            with _interruptible(only or self.modules):
                yield device
        finally:
            self.empty_slots()
            if self.release:
                self.unload()

    def empty_slots(self) -> None:
        """Swapped blocks have their weights in host memory, where they may be changed, until one computes again."""
        for patcher in self._patchers:
            patcher.empty_slots()

    def _of(self, only: Sequence[nn.Module]) -> list[_Patcher]:
        pairs = zip(self._patchers, self.modules, strict=True)
        return [p for p, m in pairs if not only or any(m is o for o in only)]

    def unload(self) -> None:
        """Move every module off the device now."""
        for patcher in self._patchers:
            patcher.detach()
        management.soft_empty_cache()


@contextmanager
def _interruptible(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Within the block every layer checks first whether the user has pressed Cancel."""
    waiting: list[torch.cuda.Event] = []

    def check_cancel(*_) -> None:
        management.throw_exception_if_processing_interrupted()

    def wait_for_device(*_) -> None:
        # Python runs many layers ahead of the GPU: without waiting, the checks would be made long before the work.
        if torch.cuda.is_available():
            event = torch.cuda.Event()
            event.record()
            if waiting:
                waiting.pop().synchronize()
            waiting.append(event)

    parts = [part for module in modules for part in module.modules()]
    blocks = [block for part in parts if isinstance(part, nn.ModuleList) for block in part]
    hooks = [block.register_forward_pre_hook(wait_for_device) for block in blocks]
    hooks += [part.register_forward_pre_hook(check_cancel) for part in parts if next(part.children(), None) is None]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class _Patcher(ModelPatcher):
    """A patcher that moves its model as a whole, or all of it but the swapped blocks.

    ComfyUI calls these methods while it executes a node, under inference_mode. Parameters created there could not be
    trained or changed outside of it, so the model is moved outside of it.
    """

    _blocks: Sequence[nn.Module] = ()
    _swap: BlockSwap | None = None

    def swap(self, blocks: Sequence[nn.Module]) -> None:
        """From now on these blocks wait in host memory; none: the model moves as a whole."""
        if bool(blocks) == (self._swap is not None):
            return
        self.detach()
        with torch.inference_mode(False):
            if self._swap is not None:
                self._swap.remove()
            self._blocks, self._swap = blocks, BlockSwap(blocks, self.load_device) if blocks else None
        # What ComfyUI frees for it.
        waiting = sum(module_bytes(block) for block in blocks) - (self._swap.bytes if self._swap else 0)
        self.size = module_bytes(self.model) - waiting

    def empty_slots(self) -> None:
        if self._swap is not None:
            with torch.inference_mode(False):
                self._swap.empty()

    def load(self, device_to=None, *_, **__) -> None:
        self._move(device_to)
        self.model.model_loaded_weight_memory = self.model_size()

    def partially_load(self, device_to, *_, **__) -> int:
        if self.loaded_size():
            return 0
        self.load(device_to)
        return self.loaded_size()

    def partially_unload(self, *_, **__) -> int:
        return 0  # ComfyUI then unloads the model as a whole

    def unpatch_model(self, device_to=None, unpatch_weights=True) -> None:
        if unpatch_weights:
            self._move(device_to)
            self.model.model_loaded_weight_memory = 0

    def _move(self, device: torch.device | None) -> None:
        if device is not None and device != self.model.device:
            with torch.inference_mode(False):
                try:
                    self._move_all(device)
                except BaseException:
                    # Out of memory halfway: the half that has moved must not stay.
                    self._move_all(self.model.device)
                    raise
            self.model.device = device

    def _move_all(self, device: torch.device) -> None:
        if self._swap is None:
            self.model.to(device)
        else:
            self._swap.empty()
            move_rest(self.model, self._blocks, device)


def module_bytes(module: nn.Module) -> int:
    """Of all parameters and buffers."""
    return sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))


def _container(module: nn.Module) -> nn.Module:
    """The module in a container that takes ComfyUI's attributes (`device` is read-only in diffusers' models).

    Its class has the module's name, which ComfyUI's log shows.
    """
    return type(type(module).__name__, (nn.ModuleList,), {})([module])
