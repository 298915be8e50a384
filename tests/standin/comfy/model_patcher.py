"""A model that the memory management may move."""

from __future__ import annotations


class ModelPatcher:
    def __init__(self, model, load_device, offload_device, size: int = 0) -> None:
        self.model, self.load_device, self.offload_device, self.size = model, load_device, offload_device, size
        model.device = getattr(model, "device", offload_device)
        model.model_loaded_weight_memory = getattr(model, "model_loaded_weight_memory", 0)

    def model_size(self) -> int:
        self.size = self.size or sum(t.nbytes for t in self.model.state_dict().values())
        return self.size

    def loaded_size(self) -> int:
        return self.model.model_loaded_weight_memory

    def current_loaded_device(self):
        return self.model.device

    def load(
        self, device_to=None, lowvram_model_memory: int = 0, force_patch_weights: bool = False, full_load: bool = False
    ) -> None:
        self.model.to(device_to)
        self.model.device, self.model.model_loaded_weight_memory = device_to, self.model_size()

    def partially_load(self, device_to, extra_memory: int = 0, force_patch_weights: bool = False) -> int:
        before = self.loaded_size()
        self.load(device_to, full_load=True)
        return self.loaded_size() - before

    def partially_unload(self, device_to, memory_to_free: int = 0, force_patch_weights: bool = False) -> int:
        return 0

    def unpatch_model(self, device_to=None, unpatch_weights: bool = True) -> None:
        if unpatch_weights:
            self.model.to(device_to)
            self.model.device, self.model.model_loaded_weight_memory = device_to, 0

    def detach(self, unpatch_all: bool = True):
        if unpatch_all:
            self.unpatch_model(self.offload_device, unpatch_weights=True)
        return self.model
